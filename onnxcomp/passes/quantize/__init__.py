"""Quantization: int8 through ONNX Runtime, with every weight accounted for."""

from onnxcomp.passes.quantize.correct_bias import CorrectBias
from onnxcomp.passes.quantize.dynamic import QuantizeDynamic
from onnxcomp.passes.quantize.equalize import Equalize
from onnxcomp.passes.quantize.smooth import Smooth
from onnxcomp.passes.quantize.static import QuantizeStatic
from onnxcomp.passes.quantize.weights import QuantizeWeights

__all__ = ["CorrectBias", "Equalize", "QuantizeDynamic", "QuantizeStatic", "QuantizeWeights", "Smooth"]
