"""How much a unit matters: by its weights, or by what they make of real activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from onnxcomp.activations import observe
from onnxcomp.activations.statistics import State
from onnxcomp.data import Batches
from onnxcomp.passes.prune.analysis import Analysis
from onnxcomp.passes.prune.atoms import Use
from onnxcomp.passes.prune.units import Group

#: numbers that are float64 at a time
_AT_ONCE = 1 << 20

Measure = Literal["l1", "l2", "activation"]


class Squares:
    """The mean square of each channel, a `Statistic` of `onnxcomp.activations`.

    Args:
        axis: of the channels; below 0 from the end.

    Attributes:
        total: float64, (channels,); empty before the first batch.
        count: values of each channel.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.total = np.zeros(0)
        self.count = 0

    @property
    def name(self) -> str:
        """What it keeps."""
        return f"squares of axis {self.axis}"

    def update(self, array: np.ndarray) -> None:
        """Add a batch of one or more axes; the channels must be as many as in the first."""
        if array.size == 0:
            return
        axis = self.axis % array.ndim
        others = tuple(i for i in range(array.ndim) if i != axis)
        total = np.square(array, dtype=np.float64).sum(others)
        self.total = total if not self.count else self.total + total
        self.count += array.size // array.shape[axis]

    @property
    def mean(self) -> np.ndarray:
        """float64, (channels,)."""
        mean: np.ndarray = self.total / max(self.count, 1)
        return mean

    def state(self) -> State:
        """All of it as arrays."""
        return {"total": self.total, "count": np.array(self.count)}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.total, self.count = state["total"], int(state["count"])


def by_weights(analysis: Analysis, group: Group, measure: Measure) -> np.ndarray:
    """The norm of all weights that go with a unit: float64, (units,).

    Parameters of one axis (biases, normalizations) count only where there is nothing else.
    """
    graph = analysis.model.graph
    power = np.abs if measure == "l1" else np.square
    score = np.zeros(len(group))
    members = [(graph.initializers[name], axis) for name, axis in group.members]
    ranks = [len(analysis.atoms.dims(value)) for value, _ in members]
    for (value, axis), rank in zip(members, ranks, strict=True):
        if rank < 2 <= max(ranks) or value.const_value is None:
            continue
        _add(score, analysis.units_of(group, value, axis), _sums(value.const_value.numpy(), axis, power))
    return score if measure == "l1" else np.sqrt(score)


def by_activations(
    analysis: Analysis, data: Batches, workdir: Path, store: Path | None, *, known: Collection[int] = ()
) -> Mapping[int, np.ndarray]:
    """{index of a group: score of its units, float64, (units,)}, for the groups whose uses can be observed.

    `known`: indices of groups that need none.

    The score is the sum over all sums that a unit leaves through of (root mean square of the activation times
    weight) ** 2: what the output loses, were all channels independent. After Wanda (Sun et al. 2023,
    arXiv:2306.11695), over whole units.
    """
    groups = [(index, group) for index, group in enumerate(analysis.groups) if index not in known]
    wanted = {use: Squares(use.activation_axis) for _, group in groups for use in group.uses}
    by_tensor: dict[str, list[Squares]] = {}
    for use, statistic in wanted.items():
        by_tensor.setdefault(use.activation.name or "", []).append(statistic)
    observe(analysis.model, data, by_tensor, workdir=workdir, store=store)
    found = {}
    for index, group in groups:
        parts = [(use, _loss(use, wanted[use])) for use in group.uses]
        if all(loss is not None for _, loss in parts):
            score = np.zeros(len(group))
            for use, loss in parts:
                assert loss is not None
                _add(score, analysis.units_of(group, use.activation, use.activation_axis), loss)
            found[index] = score
    return found


def _loss(use: Use, squares: Squares) -> np.ndarray | None:
    """For each channel of the activation, its mean square times the squares of its weights: float64."""
    matrix = use.matrix()
    if matrix is None or not squares.count:
        return None
    if use.groups > 1:  # (groups * out, in, ...): channel g * in + j is column j of the rows of group g
        parts = matrix.reshape(use.groups, -1, *matrix.shape[1:])
        weights = np.concatenate([_sums(part, 1, np.square) for part in parts])
    else:
        weights = _sums(matrix, use.weight_axis, np.square)
    return None if len(weights) != len(squares.total) else weights * squares.mean


def _sums(array: np.ndarray, axis: int, power: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """For each index of an axis the sum of the powers: float64. A part of the array at a time is wide."""
    rows = np.moveaxis(array, axis, 0)
    step = max(1, _AT_ONCE * len(rows) // max(array.size, 1))
    others = tuple(range(1, rows.ndim))
    parts = [power(rows[i : i + step].astype(np.float64)).sum(others) for i in range(0, len(rows), step)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _add(score: np.ndarray, units: np.ndarray, values: np.ndarray) -> None:
    """Add values of indices to the units that they belong to."""
    there = units >= 0
    np.add.at(score, units[there], values[there])
