"""Losses on self-attention: its probabilities, or relations that need neither equal widths nor equal heads."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from onnxcomp.errors import DataError, UsageError
from onnxcomp.pytorch.distillation.losses.base import Loss, Shape, mean, positive
from onnxcomp.pytorch.distillation.losses.response import divergence

#: the logit of a padded key: its probability is 0, and the float32 arithmetic around it stays finite
_NEVER = -1e30

#: a probability below it counts as this one in a logarithm
_LEAST = 1e-12

#: relation heads, where nothing is said: MiniLM's
_HEADS = 12


class Attention(Loss):
    """Mean over samples, heads and queries of KL(a_t || a_s), or of the mean over keys of (a_s - a_t)^2.

    Student and teacher: probabilities, (samples, heads, queries, keys), the same number of heads. With a
    mask (samples, positions), padded keys count for nothing, nor do padded queries (where there are as many
    queries as keys). A graph that fuses attention into one operator has no such tensor; `Relation` does
    without. KL after MiniLM, Wang et al. 2020, arXiv 2002.10957, eq. 1; MSE after TinyBERT, Jiao et al. 2020,
    arXiv 1909.10351, on probabilities in place of scores.

    Args:
        kind: 'kl' or 'mse'.
    """

    def __init__(self, *, kind: Literal["kl", "mse"] = "kl") -> None:
        super().__init__()
        if kind not in ("kl", "mse"):
            raise UsageError("unknown kind", where=f"kind={kind}", hint="kl or mse")
        self.kind = kind

    def check(self, student: Shape, teacher: Shape) -> None:
        """Equal shapes with four axes."""
        if len(student) == len(teacher) == 4 and student[1] != teacher[1]:
            raise UsageError(
                f"{student[1]} heads of the student, {teacher[1]} of the teacher",
                hint="relation, on queries, keys or values, takes any number of heads",
            )
        super().check(student, teacher)
        if len(student) != 4:
            raise UsageError(f"shape {tuple(student)}", hint="attention has samples, heads, queries and keys")

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`."""
        queries, keys = student.shape[2:]
        real = _keys(mask, (len(student), keys), student)
        if self.kind == "kl":
            each = torch.xlogy(teacher, teacher) - teacher * student.clamp_min(_LEAST).log()
        else:
            each = (student - teacher).square() / real.sum(1).clamp_min(1)[:, None, None, None]
        each = each.masked_fill(~real[:, None, None, :], 0).sum(-1)
        return mean(each.transpose(1, 2)[real] if queries == keys else each[real.any(1)])


class Relation(Loss):
    """Mean over samples, relation heads and positions of KL(R_t || R_s), R = softmax(x x^T / sqrt(width of a head)).

    Each row of R says how one position relates to the others. Student and teacher: queries, keys, values
    or hidden states, (samples, positions, width) or (samples, heads, positions, width of a head); each width
    is cut anew into `heads` parts, so widths and heads may differ, and no projector is needed. With a mask
    (samples, positions), padding is left out on both sides of R. After MiniLMv2, Wang et al. 2021,
    arXiv 2012.15828, eq. 4 and 5: one such loss for each of queries, keys and values.

    Args:
        heads: number of relation heads, which divides both widths; None: the most up to 12 that does.
    """

    def __init__(self, *, heads: int | None = None) -> None:
        super().__init__()
        positive(**({} if heads is None else {"heads": heads}))
        self.heads = heads

    def check(self, student: Shape, teacher: Shape) -> None:
        """The same samples and positions; widths that the heads divide."""
        places = []
        for who, shape in (("student", student), ("teacher", teacher)):
            if len(shape) not in (3, 4):
                raise UsageError(f"shape {tuple(shape)} of the {who}", hint="relations need 3 or 4 axes")
            places.append((shape[0], shape[-2]))
            width = _width(shape)
            if self.heads is not None and width % self.heads:
                raise UsageError(f"{self.heads} relation heads do not divide the {who}'s width {width}")
        if places[0] != places[1]:
            raise UsageError(f"samples and positions {places[0]} of the student, {places[1]} of the teacher")

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`."""
        real = _keys(mask, (len(student), student.shape[-2]), student)
        heads = self.heads or _most_heads(_width(student.shape), _width(teacher.shape))
        s, t = (_scores(x, heads).masked_fill(~real[:, None, None, :], _NEVER) for x in (student, teacher))
        return mean(divergence(s, t).transpose(1, 2)[real])


def _width(shape: Shape) -> int:
    """Of all heads together."""
    return shape[-1] if len(shape) == 3 else shape[1] * shape[3]


def _most_heads(*widths: int) -> int:
    return next(heads for heads in range(_HEADS, 0, -1) if math.gcd(*widths) % heads == 0)


def _scores(x: Tensor, heads: int) -> Tensor:
    """(samples, heads, positions, positions)."""
    joined = x.transpose(1, 2).flatten(2) if x.ndim == 4 else x
    cut = joined.reshape(*joined.shape[:2], heads, -1).transpose(1, 2)
    return (cut @ cut.transpose(-1, -2)) / math.sqrt(cut.shape[-1])


def _keys(mask: Tensor | None, shape: tuple[int, int], like: Tensor) -> Tensor:
    """(samples, positions) bool: what is no padding."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=like.device)
    if mask.shape != shape:
        raise DataError(f"a mask of {tuple(mask.shape)}, where {shape} is needed", where="mask")
    return mask
