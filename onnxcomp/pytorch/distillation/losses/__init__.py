"""Losses between a student's and a teacher's tensors, by the names that recipes and the command line use.

All work without labels. `Objective` puts them together.
"""

from collections.abc import Mapping

from onnxcomp.pytorch.distillation.losses.attention import Attention, Relation
from onnxcomp.pytorch.distillation.losses.base import Loss
from onnxcomp.pytorch.distillation.losses.dist import DIST
from onnxcomp.pytorch.distillation.losses.embedding import MSE, Cosine
from onnxcomp.pytorch.distillation.losses.feature import Hint
from onnxcomp.pytorch.distillation.losses.objective import Losses, Objective, Term, pairs
from onnxcomp.pytorch.distillation.losses.response import DKD, KL
from onnxcomp.pytorch.distillation.losses.samples import RKD

LOSSES: Mapping[str, type[Loss]] = {
    "kl": KL,
    "dkl": DKD,
    "dist": DIST,
    "mse": MSE,
    "cosine": Cosine,
    "rkd": RKD,
    "hint": Hint,
    "attention": Attention,
    "relation": Relation,
}

__all__ = [
    "DIST",
    "DKD",
    "KL",
    "LOSSES",
    "MSE",
    "RKD",
    "Attention",
    "Cosine",
    "Hint",
    "Loss",
    "Losses",
    "Objective",
    "Relation",
    "Term",
    "pairs",
]
