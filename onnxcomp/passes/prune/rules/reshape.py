"""The rule of Reshape: which index of the output comes from which of the input, digit by digit.

Sizes before and after are refined to common factors, the digits of a mixed radix: (batch, heads * width) and
(batch * heads, width) both are (batch, heads, width). One digit of those that come together or apart is free,
the others stay: heads of attention, and channels before a Flatten, follow from this.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.size import ONE, Dims, Size, product
from onnxcomp.passes.prune.atoms import Atoms, Axis, RefusedError

_STAYS = "a Reshape joins it with an axis that can be cut"


@dataclasses.dataclass(frozen=True)
class Place:
    """An axis of the input or output of a Reshape, with the digits that make it, outermost first."""

    axis: Axis
    digits: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """Neighbouring axes that a Reshape joins or splits, and nothing else.

    Attributes:
        node: the Reshape.
        digits: sizes of the common factors, outermost first.
        places: the axes of both sides.
    """

    node: ir.Node
    digits: tuple[Size, ...]
    places: tuple[Place, ...]

    @property
    def candidates(self) -> list[int]:
        """Digits that may be free: the outer before the inner, a pair (as of a shuffle) only at last."""
        plain = [k for k, size in enumerate(self.digits) if (size.number or 1) > 1]
        return sorted((k for k in plain if self._readable(k)), key=lambda k: self.digits[k].factor == 2)

    def alone(self, digit: int) -> list[Axis]:
        """Axes that are this digit and no other."""
        return [place.axis for place in self.places if place.digits == (digit,)]

    def holding(self, digit: int) -> list[Axis]:
        """Axes that this digit is part of."""
        return [place.axis for place in self.places if digit in place.digits]

    def free(self, at: Atoms, digit: int) -> None:
        """Unite what shares a value of this digit; axes without it stay."""
        at.node = self.node
        first: np.ndarray | None = None
        for place in self.places:
            if digit not in place.digits:
                at.keep(place.axis, _STAYS)
                continue
            inner = product(self.digits[k] for k in place.digits[place.digits.index(digit) + 1 :]).factor
            atoms = place.axis.atoms
            values = (np.arange(len(atoms)) // inner) % self.digits[digit].factor
            if first is None:  # one atom for each value: its first in this axis
                _, first = np.unique(values, return_index=True)
                first = atoms[first]
            at.pair(first[values], atoms)

    def stay(self, at: Atoms) -> None:
        """No digit is free."""
        at.node = self.node
        for place in self.places:
            at.keep(place.axis, "a Reshape joins axes, none of which can be cut alone")

    def _readable(self, digit: int) -> bool:
        """Whether an index gives the digit: within an axis, no inner digit may be a name."""
        for place in self.places:
            if digit in place.digits:
                inner = place.digits[place.digits.index(digit) + 1 :]
                if any(self.digits[k].names for k in inner) or not place.axis.count:
                    return False
        return True


def reshape(at: Atoms, node: ir.Node) -> list[Run]:
    """Unite what stays an axis of its own; the runs for which a digit is to be chosen."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None:
        raise RefusedError("Reshape without input")
    before, after = at.dims(x), at.dims(y)
    found = []
    for left, right in _runs(before, after):
        if len(left) == 1 and len(right) == 1 and before[left[0]] == after[right[0]]:
            at.same(x, left[0], y, right[0])
            continue
        places = [(at.axis(x, i), before[i]) for i in left], [(at.axis(y, j), after[j]) for j in right]
        run = _refined(node, *places)
        if run is None:
            for axis, _ in (*places[0], *places[1]):
                at.keep(axis, "a Reshape joins axes whose sizes are not known")
        elif run.candidates:
            found.append(run)
        else:
            run.stay(at)
    return found


def _runs(before: Dims, after: Dims) -> list[tuple[list[int], list[int]]]:
    """Smallest neighbouring axes of equal product on both sides, from the right, then from the left."""
    left = [i for i, size in enumerate(before) if size != ONE]
    right = [j for j, size in enumerate(after) if size != ONE]
    found = _from_right(left, right, before, after)
    rest = (
        [i for i in left if not any(i in run[0] for run in found)],
        [j for j in right if not any(j in run[1] for run in found)],
    )
    more = _from_right(rest[0][::-1], rest[1][::-1], before, after)
    found += [(a[::-1], b[::-1]) for a, b in more]
    rest = (
        [i for i in rest[0] if not any(i in run[0] for run in found)],
        [j for j in rest[1] if not any(j in run[1] for run in found)],
    )
    return found + ([rest] if rest[0] or rest[1] else [])


def _from_right(
    left: Sequence[int], right: Sequence[int], before: Dims, after: Dims
) -> list[tuple[list[int], list[int]]]:
    ends = {product(before[i] for i in left[k:]): k for k in range(len(left))}
    found, stop_left, stop_right = [], len(left), len(right)
    for k in reversed(range(len(right))):
        whole = product(after[j] for j in right[k:])
        if whole in ends:
            found.append((list(left[ends[whole] : stop_left]), list(right[k:stop_right])))
            stop_left, stop_right = ends[whole], k
    return found


def _refined(node: ir.Node, left: list[tuple[Axis, Size]], right: list[tuple[Axis, Size]]) -> Run | None:
    """The common factors of both sides; None where one does not divide the next."""
    ends = {ONE}
    for side in (left, right):
        ends |= {product(size for _, size in side[k:]) for k in range(len(side))}
    ordered = sorted(ends, key=lambda size: (len(size.names), size.factor))
    digits: list[Size] = []
    for inner, outer in itertools.pairwise(ordered):
        factor = outer.over(inner)
        if factor is None or factor == ONE:
            return None
        digits.append(factor)
    places = []
    for side in (left, right):
        for k, (axis, _) in enumerate(side):
            low = ordered.index(product(size for _, size in side[k + 1 :]))
            high = ordered.index(product(size for _, size in side[k:]))
            places.append(Place(axis, tuple(len(digits) - 1 - i for i in reversed(range(low, high)))))
    return Run(node, tuple(reversed(digits)), tuple(places))


def choose(at: Atoms, runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Choose a free digit for each run, and give the components of `Atoms.components`.

    The outermost digit that nothing else holds; where what follows from the choice holds it, the next.
    """
    if not runs:
        return at.components()
    labels, stays = at.components()

    def held(axes: Sequence[Axis]) -> bool:
        return any(bool(np.all(stays[labels[axis.atoms]] >= 0)) for axis in axes if axis.count)

    options = [[k for k in run.candidates if not held(run.alone(k))] for run in runs]
    taken = [0] * len(runs)
    mark = at.mark()
    for _ in range(max(map(len, options), default=0) + 1):
        at.rewind(mark)
        for run, option, index in zip(runs, options, taken, strict=True):
            if option:
                run.free(at, option[index])
            else:
                run.stay(at)
        labels, stays = at.components()
        stuck = [
            i
            for i, (run, option) in enumerate(zip(runs, options, strict=True))
            if taken[i] + 1 < len(option) and held(run.holding(option[taken[i]]))
        ]
        if not stuck:
            break
        for i in stuck:
            taken[i] += 1
    return labels, stays
