"""The catalogue of passes: one literal tuple, in the order of a sensible recipe."""

from onnxcomp.passes.base import Context, Effect, Note, Pass
from onnxcomp.passes.batchnorm import FoldBatchNorm
from onnxcomp.passes.cast import CastFloat
from onnxcomp.passes.distill import Distill
from onnxcomp.passes.fuse import Fuse
from onnxcomp.passes.opset import UpgradeOpset
from onnxcomp.passes.prune import PruneBlocks, PruneMagnitude, PruneStructured
from onnxcomp.passes.quantize import (
    CorrectBias,
    Equalize,
    QuantizeDynamic,
    QuantizeStatic,
    QuantizeWeights,
    Smooth,
)
from onnxcomp.passes.share import ClusterWeights, LowRank, TieInitializers
from onnxcomp.passes.simplify import Simplify

CATALOGUE: tuple[type[Pass], ...] = (
    UpgradeOpset,
    Simplify,
    PruneBlocks,
    PruneStructured,
    FoldBatchNorm,
    LowRank,
    Distill,
    Fuse,
    PruneMagnitude,
    Equalize,
    Smooth,
    CorrectBias,
    QuantizeDynamic,
    QuantizeStatic,
    QuantizeWeights,
    CastFloat,
    ClusterWeights,
    TieInitializers,
)

__all__ = [
    "CATALOGUE",
    "CastFloat",
    "ClusterWeights",
    "Context",
    "CorrectBias",
    "Distill",
    "Effect",
    "Equalize",
    "FoldBatchNorm",
    "Fuse",
    "LowRank",
    "Note",
    "Pass",
    "PruneBlocks",
    "PruneMagnitude",
    "PruneStructured",
    "QuantizeDynamic",
    "QuantizeStatic",
    "QuantizeWeights",
    "Simplify",
    "Smooth",
    "TieInitializers",
    "UpgradeOpset",
]
