"""Quantization: int8 through ONNX Runtime, with every weight accounted for."""

from onnxcomp.passes.quantize.dynamic import QuantizeDynamic
from onnxcomp.passes.quantize.static import QuantizeStatic

__all__ = ["QuantizeDynamic", "QuantizeStatic"]
