"""DIST: a student need not match a strong teacher's probabilities, only how they go together (Huang et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.distillation.losses.base import (
    Loss,
    Shape,
    mean,
    not_negative,
    positive,
    rows,
    several_classes,
)


class DIST(Loss):
    """T^2 * (beta * inter + gamma * intra), with r Pearson's correlation and p = softmax(x / T).

    inter = mean over rows of 1 - r(p_s[i, :], p_t[i, :]), within a sample over classes;
    intra = mean over classes of 1 - r(p_s[:, j], p_t[:, j]), within a class over the rows of the batch: this
    part knows more in a larger batch, and is left out for a single row. Shapes as in `KL`. Two classes
    correlate fully or not at all; use three at least. After Huang et al. 2022, arXiv 2205.10536.

    Args:
        temperature: T.
        beta: weight of inter.
        gamma: weight of intra.
        axis: of the classes.
    """

    def __init__(self, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0, axis: int = -1) -> None:
        super().__init__()
        positive(temperature=temperature)
        not_negative(beta=beta, gamma=gamma)
        self.temperature, self.beta, self.gamma, self.axis = temperature, beta, gamma, axis

    def check(self, student: Shape, teacher: Shape) -> None:
        """Equal shapes, two classes at least."""
        super().check(student, teacher)
        several_classes(student, self.axis)

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`."""
        s, t = (torch.softmax(rows(x, self.axis, mask) / self.temperature, -1) for x in (student, teacher))
        found = self.beta * mean(1 - _pearson(s, t))
        if len(s) > 1:
            found = found + self.gamma * mean(1 - _pearson(s.T, t.T))
        return self.temperature**2 * found


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    """(rows,) correlation of each row."""
    return functional.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), eps=1e-8)
