"""Biases from means alone: nothing as large as second moments is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.activations import moments_of, observe
from onnxcomp.activations.statistics import State
from onnxcomp.activations.window import Window
from onnxcomp.data import Batches
from onnxcomp.passes.base import Context
from onnxcomp.passes.prune.repair import fit
from onnxcomp.passes.prune.repair.consumers import Consumer


class Means:
    """The sum of the rows that a node multiplies with its weight, and their number: `Moments` without products.

    Args:
        window: how a Conv cuts its input; None for MatMul and Gemm.

    Attributes:
        total: float64, (groups, width); empty before the first batch.
        count: rows.
    """

    def __init__(self, window: Window | None = None) -> None:
        self.window = window
        self.total = np.zeros((0, 0))
        self.count = 0

    @property
    def name(self) -> str:
        """What it keeps."""
        return f"means of {self.window or 'rows'}"

    def update(self, array: np.ndarray) -> None:
        """Add a batch: (..., width), or (samples, channels, ...) for a Conv."""
        if array.size == 0:
            return
        rows = self.window.patches(array) if self.window else array.reshape(-1, 1, array.shape[-1])
        axes = tuple(range(array.ndim - 1 if self.window else 1))
        total = rows.sum(axes, dtype=np.float64)
        total = total.reshape(len(total), -1)
        self.total = total if not self.count else self.total + total
        self.count += int(np.prod([rows.shape[axis] for axis in axes]))

    def state(self) -> State:
        """All of it as arrays."""
        return {"total": self.total, "count": np.array(self.count)}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.total, self.count = state["total"], int(state["count"])


def mean_biases(
    model: ir.Model, sets: Sequence[Sequence[Consumer]], data: Batches, context: Context
) -> dict[Consumer, fit.Fitted]:
    """`fit.biases` of each consumer, from what it reads in the model before the cut."""
    nodes = list(model.graph)
    seen: dict[Consumer, Means] = {}
    wanted: dict[str, list[Means]] = {}
    for consumer in (each for members in sets for each in members):
        node = nodes[consumer.place]
        value = node.inputs[0]
        seen[consumer] = Means(moments_of(node).window)
        wanted.setdefault(value.name or "" if value is not None else "", []).append(seen[consumer])
    observe(model, data, wanted, workdir=context.workdir, store=context.store)
    found: dict[Consumer, fit.Fitted] = {}
    for members in sets:
        if all(seen[c].count for c in members):
            sums = [fit.Seen.means(seen[c].count, seen[c].total, members[0].inputs) for c in members]
            biased = [c.has_bias(c.use.node) for c in members]
            found |= zip(members, fit.biases(members, sums, biased), strict=True)
    return found
