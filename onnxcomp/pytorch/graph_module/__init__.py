"""Any ONNX graph as a trainable torch module; its weights go back into the same graph."""

from onnxcomp.pytorch.graph_module.module import GraphModule

__all__ = ["GraphModule"]
