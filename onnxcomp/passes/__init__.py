"""The catalogue of passes: one literal tuple, in the order of a sensible recipe."""

from onnxcomp.passes.base import Context, Effect, Note, Pass
from onnxcomp.passes.batchnorm import FoldBatchNorm
from onnxcomp.passes.cast import CastFloat
from onnxcomp.passes.fuse import Fuse
from onnxcomp.passes.opset import UpgradeOpset
from onnxcomp.passes.prune import PruneMagnitude
from onnxcomp.passes.quantize import QuantizeDynamic, QuantizeStatic, Smooth
from onnxcomp.passes.simplify import Simplify

CATALOGUE: tuple[type[Pass], ...] = (
    UpgradeOpset,
    Simplify,
    FoldBatchNorm,
    Fuse,
    PruneMagnitude,
    Smooth,
    QuantizeDynamic,
    QuantizeStatic,
    CastFloat,
)

__all__ = [
    "CATALOGUE",
    "CastFloat",
    "Context",
    "Effect",
    "FoldBatchNorm",
    "Fuse",
    "Note",
    "Pass",
    "PruneMagnitude",
    "QuantizeDynamic",
    "QuantizeStatic",
    "Simplify",
    "Smooth",
    "UpgradeOpset",
]
