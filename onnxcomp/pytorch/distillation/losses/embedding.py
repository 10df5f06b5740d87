"""Losses on vectors of one width: embeddings, regressions, hidden states."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.distillation.losses.base import Loss, mean, rows


class MSE(Loss):
    """Mean over rows and width of (s - t)^2. Any equal shapes; the last axis is the width."""

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`."""
        s, t = (rows(x, -1, mask) for x in (student, teacher))
        return mean((s - t).square())


class Cosine(Loss):
    """Mean over rows of 1 - cos(s, t): the direction counts, not the length. Shapes as in `MSE`."""

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`."""
        s, t = (rows(x, -1, mask) for x in (student, teacher))
        return mean(1 - functional.cosine_similarity(s, t, dim=-1))
