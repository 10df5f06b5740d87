"""The only package that imports torch: export with a gate. Everything else works without torch."""

from onnxcomp.pytorch.export import Exported, export

__all__ = ["Exported", "export"]
