"""Units, what must be cut together, and groups of units that are alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.size import integer
from onnxcomp.passes.prune.atoms import Atoms, Use

#: operators whose second axis of input and output are channels that kernels take in blocks
CONVOLUTIONS = {"Conv", "ConvTranspose"}

#: channels: fewer are not blocked by any kernel of ONNX Runtime
_SMALLEST_BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that touch the same axes of all the same values: cut by the same rule, and compared with each other.

    A unit is what must go together: a channel with all that reads and writes it, through residual
    connections too; a head; a position in each group of a convolution.

    Attributes:
        units: label of each unit, ascending by its first atom: int64, (units,).
        members: (initializer's name, axis) that the units touch.
        uses: the sums through which the units leave the model.
        channels: how many channels that kernels block together one unit is: the fewest over all convolutions, of a
            grouped one those of one of its groups; 0 where no convolution sees it.
        width: how many indices of a stored axis one unit is, at most: of a head, its columns.
    """

    units: np.ndarray
    members: tuple[tuple[str, int], ...]
    uses: tuple[Use, ...]
    channels: int
    width: int

    def __len__(self) -> int:
        return len(self.units)


def find_groups(model: ir.Model, atoms: Atoms, labels: np.ndarray, stays: np.ndarray) -> tuple[Group, ...]:
    """The groups of two units and more, in the order of the model; arguments as `Atoms.components` gives them."""
    members: list[tuple[str, int]] = []
    for name, value in model.graph.initializers.items():
        for i, axis in enumerate(atoms.known_axes(value)):
            if axis.count:
                members.append((name, i))
    leaving = [np.unique(labels[atoms.axis(use.activation, use.activation_axis).atoms]) for use in atoms.uses]
    stored = [labels[atoms.axis(model.graph.initializers[name], i).atoms] for name, i in members]
    group_of = _partition(atoms, labels, stays, np.concatenate([*stored, labels[:0]]), leaving)
    member_of, use_of = _by_group(group_of, map(np.unique, stored)), _by_group(group_of, leaving)
    widths = _each(stored, group_of, max)
    channels = _each(_convolved(model, atoms, labels), group_of, min)
    position = np.full(len(stays), atoms.count, np.int64)
    np.minimum.at(position, labels, np.arange(atoms.count))
    made = []
    for g in range(int(group_of.max(initial=-1)) + 1):
        units = np.flatnonzero(group_of == g)
        made.append(
            Group(
                units[np.argsort(position[units])],
                tuple(members[m] for m in member_of[g]),
                tuple(atoms.uses[u] for u in use_of[g]),
                channels[g],
                widths[g],
            )
        )
    made.sort(key=lambda group: int(position[group.units[0]]))
    return tuple(group for group in made if len(group) > 1)


def _partition(
    atoms: Atoms, labels: np.ndarray, stays: np.ndarray, stored: np.ndarray, leaving: Sequence[np.ndarray]
) -> np.ndarray:
    """For each label its group, or -1 where it stays, is not stored, or leaves through no sum: (labels,).

    The values inside count too: of both parts of a Split something must stay, whoever reads them.
    """
    axes = [axis for axis in atoms.axes() if axis.count]
    # a random number for each axis: equal sums are equal sets
    marks = np.random.default_rng(0).integers(0, 2**63, len(axes), dtype=np.uint64)
    signature = np.zeros(len(stays), np.uint64)
    for mark, axis in zip(marks, axes, strict=True):
        signature[np.unique(labels[axis.atoms])] += mark
    chosen = np.zeros((2, len(stays)), bool)
    chosen[0, stored] = True
    chosen[1, np.concatenate([*leaving, labels[:0]])] = True
    free = np.flatnonzero((stays < 0) & chosen.all(0))
    group_of = np.full(len(stays), -1)
    group_of[free] = np.unique(signature[free], return_inverse=True)[1]
    return group_of


def _by_group(group_of: np.ndarray, sets: Iterable[np.ndarray]) -> list[list[int]]:
    """For each group, which of the sets of labels hold one of its units."""
    found: list[list[int]] = [[] for _ in range(int(group_of.max(initial=-1)) + 1)]
    for i, each in enumerate(sets):
        for g in np.unique(group_of[each]):
            if g >= 0:
                found[g].append(i)
    return found


def _convolved(model: ir.Model, atoms: Atoms, labels: np.ndarray) -> Iterator[np.ndarray]:
    """The labels of the channels of every convolution, on both sides.

    Of a grouped one only those of its first group, where kernels may block them: each group is blocked alone.
    """
    for node in model.graph:
        if node.op_type in CONVOLUTIONS and not node.domain:
            groups = integer(node, "group", 1)
            for value in (node.inputs[0], node.outputs[0]):
                if value is not None and len(atoms.sizes.of(value) or ()) >= 2:
                    found = labels[atoms.axis(value, 1).atoms]
                    inside = len(found) // max(groups, 1)
                    yield found[:inside] if inside and inside % _SMALLEST_BLOCK == 0 else found


def _each(axes: Iterable[np.ndarray], group_of: np.ndarray, pick: Callable[[int, int], int]) -> list[int]:
    """For each group, how many indices one unit has in an axis, given by labels: the most or fewest of all axes."""
    found = [0] * (int(group_of.max(initial=-1)) + 1)
    for labels in axes:
        units, times = np.unique(labels, return_counts=True)
        for g in np.unique(group_of[units]):
            if g >= 0:
                most = int(times[group_of[units] == g].max())
                found[g] = pick(found[g] or most, most)
    return found
