"""Weights ranked by their size times that of what they are multiplied with (Wanda)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.activations import observe
from onnxcomp.inspect import Weight
from onnxcomp.passes.base import Context
from onnxcomp.passes.prune.importance import Squares
from onnxcomp.passes.prune.zeros.patterns import Pattern
from onnxcomp.passes.prune.zeros.sums import Summed

_WHY_WHOLE = "what its weight is multiplied with is not observed: the weight stays whole"


@dataclasses.dataclass(frozen=True)
class Scored:
    """How to zero a weight by its scores.

    Attributes:
        axis: of the weight, that is summed over.
        root_mean_square: of what meets each index of the axis: float64.
    """

    axis: int
    root_mean_square: np.ndarray

    def by_share(self, array: np.ndarray, share: float) -> np.ndarray:
        """Zeros in place of round(share * n) of the n weights of each output."""
        if array.ndim == 2 or self.axis != 1:
            size = array.shape[self.axis]
            return Pattern(size - round(share * size), size).zeroed(array, self.axis, self.root_mean_square)
        rows = array.reshape(len(array), -1)  # a kernel: all that one channel of the output sums
        size = rows.shape[1]
        scale = np.repeat(self.root_mean_square, size // array.shape[1])
        return Pattern(size - round(share * size), size).zeroed(rows, 1, scale).reshape(array.shape)

    def by_pattern(self, array: np.ndarray, pattern: Pattern) -> np.ndarray:
        """Zeros by a pattern along the axis."""
        return pattern.zeroed(array, self.axis, self.root_mean_square)


def scored(
    model: ir.Model, chosen: Sequence[Weight], used: Mapping[ir.Value, Sequence[Summed]], context: Context
) -> Mapping[ir.Value, Scored]:
    """{weight: its scores}, of those that can be observed; a note for each of the others.

    The score is |w| times the root mean square of what it is multiplied with, over all samples and all nodes that
    use it; only weights of one output are compared (Sun et al. 2023, arXiv:2306.11695).
    """
    assert context.data is not None
    context.data.require_real("pruning")
    wanted: dict[str, list[Squares]] = {}
    seen: dict[ir.Value, tuple[int, list[Squares]]] = {}
    for weight in chosen:
        uses = [use for use in used[weight.value] if "Gather" not in use.node.op_type]
        inputs = [use.activation if use.node.graph is model.graph else None for use in uses]
        axes = {use.axis for use in uses}
        if not uses or None in inputs or len(axes) > 1:
            context.note(_WHY_WHOLE, weight.node.name or weight.node.op_type)
            continue
        statistics = []
        for value, axis in filter(None, inputs):
            statistics.append(Squares(axis))
            wanted.setdefault(value.name or "", []).append(statistics[-1])
        axis_of_weight = uses[0].axis
        assert axis_of_weight is not None
        seen[weight.value] = (axis_of_weight, statistics)
    observe(model, context.data, wanted, workdir=context.workdir, store=context.store)
    return {
        value: Scored(axis, np.sqrt(np.sum([s.mean for s in statistics], axis=0)))
        for value, (axis, statistics) in seen.items()
    }
