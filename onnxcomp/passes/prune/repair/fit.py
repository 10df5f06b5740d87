"""Weights that make good what a node no longer reads, from second moments of what it read and reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxcomp.activations import Moments
from onnxcomp.passes.prune.repair.consumers import Consumer
from onnxcomp.passes.prune.repair.least_squares import product, solve

#: weights are drawn to what they were by this share of the inputs' mean square. On MiniLM 0.001 to 0.03 differ by
#: 0.002 in cosine, less on sentences of another kind, and 0.1 is worse
DAMPING = 1e-2


@dataclasses.dataclass(frozen=True)
class Seen:
    """Sums over rows: of all inputs x of a node before the cut, and of the inputs z that it has left.

    Attributes:
        count: of rows.
        gram: z z^T, float64, (groups, left, left).
        cross: z x^T, float64, (groups, left, width).
        left: z, float64, (groups, left).
        total: x, float64, (groups, width).
    """

    count: int
    gram: np.ndarray
    cross: np.ndarray
    left: np.ndarray
    total: np.ndarray

    @staticmethod
    def before(moments: Moments, kept: np.ndarray) -> Seen:
        """What is left is read as it was before the cut."""
        cross = moments.gram[:, kept]
        return Seen(moments.count, cross[:, :, kept], cross, moments.total[:, kept], moments.total)

    @staticmethod
    def means(count: int, total: np.ndarray, kept: np.ndarray) -> Seen:
        """Likewise, without products: enough for biases."""
        none = np.zeros((len(total), 0, 0))
        return Seen(count, none, none, total[:, kept], total)

    @staticmethod
    def both(moments: Moments, width: int) -> Seen:
        """Moments of rows (x, z)."""
        below, total = moments.gram[:, width:], moments.total
        return Seen(moments.count, below[:, :, width:], below[:, :, :width], total[:, width:], total[:, :width])


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Of one consumer.

    Attributes:
        weight: float64, (groups, outputs of a group, inputs that stay).
        shift: of its bias, float64, (outputs,); None without one.
    """

    weight: np.ndarray
    shift: np.ndarray | None


def biases(consumers: Sequence[Consumer], seen: Sequence[Seen], biased: Sequence[bool]) -> list[Fitted]:
    """The weights as they were; biases that keep the mean of each output: b + W E[x] - W_kept E[z].

    biased: whether each consumer has one.
    """
    weight = consumers[0].weight
    start = weight[:, :, consumers[0].inputs]
    return [Fitted(start, _shift(weight, start, sums) if has else None) for sums, has in zip(seen, biased, strict=True)]


def least_squares(consumers: Sequence[Consumer], seen: Sequence[Seen], biased: Sequence[bool]) -> list[Fitted]:
    """The weights W' and biases b' that minimize |W' z + b' - W x - b|^2 + damping |W' - W_kept|^2.

    Consumers of one weight get one, and biases of their own, where all have one: rows are then counted from the
    mean of each.
    Layer by layer reconstruction as in He et al. 2017 (arXiv:1707.06168), from moments alone, with the damping of
    Frantar & Alistarh 2022 (arXiv:2208.11580).
    """
    weight = consumers[0].weight
    start = weight[:, :, consumers[0].inputs]
    count, centred = sum(sums.count for sums in seen), all(biased)
    found = np.empty_like(start)
    for g in range(len(weight)):
        damping = DAMPING * sum(float(np.diagonal(sums.gram[g]).mean()) for sums in seen) / count
        if damping == 0:  # nothing but zeros was seen
            found[g] = start[g]
            continue
        parts = [_about(sums, g, centred) for sums in seen]
        gram = np.add.reduce([gram for gram, _ in parts]) / count
        cross = np.add.reduce([cross for _, cross in parts]) / count
        gram[np.diag_indices(len(gram))] += damping
        found[g] = solve(gram, product(cross, weight[g].T) + damping * start[g].T).T
    return [Fitted(found, _shift(weight, found, sums) if centred else None) for sums in seen]


def error(consumers: Sequence[Consumer], seen: Sequence[Moments], fitted: Sequence[Fitted] | None) -> float:
    """Square error of the outputs relative to their square about the mean, one-shot; None: plainly cut.

    seen: of what was read before the cut.
    """
    wrong = whole = 0.0
    weight, kept = consumers[0].weight, consumers[0].inputs
    for i, moments in enumerate(seen):
        change = weight.copy()
        change[:, :, kept] -= weight[:, :, kept] if fitted is None else fitted[i].weight
        shift = fitted[i].shift if fitted is not None else None
        mean = moments.total / moments.count
        for g, matrix in enumerate(change):
            gram = moments.gram[g] / moments.count
            centred = gram - np.outer(mean[g], mean[g])
            wrong += float(np.sum((matrix @ (gram if shift is None else centred)) * matrix))
            whole += float(np.sum((weight[g] @ centred) * weight[g]))
    return max(wrong, 0.0) / whole if whole > 0 else 0.0


def _about(sums: Seen, g: int, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """(z z^T, z x^T) of a group, about the means or not."""
    gram, cross = sums.gram[g], sums.cross[g]
    if centred:
        # not by BLAS, which may add in another order
        gram = gram - sums.left[g][:, np.newaxis] * (sums.left[g] / sums.count)
        cross = cross - sums.left[g][:, np.newaxis] * (sums.total[g] / sums.count)
    return gram, cross


def _shift(weight: np.ndarray, found: np.ndarray, sums: Seen) -> np.ndarray:
    """W E[x] - W' E[z]: (outputs,)."""
    parts = [
        product(weight[g], sums.total[g][:, np.newaxis] / sums.count)
        - product(found[g], sums.left[g][:, np.newaxis] / sums.count)
        for g in range(len(weight))
    ]
    return np.concatenate(parts)[:, 0]
