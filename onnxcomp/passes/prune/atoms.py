"""Atoms: one number for every index of every axis of every value, and what operators say about them.

Rules of operators only say which atoms are one and which must stay. What follows (units, groups, cuts) is the
same for every architecture: a residual connection, a Concat or a head needs no pattern of its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from scipy import sparse
from scipy.sparse import csgraph

from onnxcomp.inspect import stored_origin
from onnxcomp.passes.fusions.size import ONE, Dims
from onnxcomp.passes.fusions.sizes import Sizes


class RefusedError(Exception):
    """A rule does not understand its node: every axis that the node touches stays."""


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why an axis stays.

    Attributes:
        node: name of the node; of the input or output of the model, where no node is the reason.
        reason: one sentence.
        understood: False where it is onnxcomp that lacks a rule.
    """

    node: str
    reason: str
    understood: bool = True


@dataclasses.dataclass(frozen=True)
class Use:
    """A sum over an axis in which a stored weight multiplies an activation: where removed units leave the model.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        activation, activation_axis: the input that is summed over, and along which axis.
        weight, weight_axis: the weight as the node reads it, and the axis of the sum.
        groups: of a Conv: index j of the weight's axis stands for the indices g * size + j of the activation's.
    """

    node: ir.Node
    activation: ir.Value
    activation_axis: int
    weight: ir.Value
    weight_axis: int
    groups: int = 1

    @property
    def initializer(self) -> str:
        """Name of the stored tensor that the weight is, up to order, shape and type."""
        origin = stored_origin(self.weight)
        return "" if origin is None else origin[0].name or ""

    def matrix(self) -> np.ndarray | None:
        """The weight as the node reads it; None where more than a Transpose stands before it."""
        value, turns = self.weight, []
        while (node := value.producer()) is not None:
            source = node.inputs[0] if node.inputs else None
            if node.op_type not in ("Transpose", "Identity") or source is None:
                return None
            if node.op_type == "Transpose":
                turns.append(node.attributes.get_ints("perm", None))
            value = source
        if value.const_value is None:
            return None
        array = value.const_value.numpy()
        for turn in reversed(turns):
            array = array.transpose(turn)
        return array


@dataclasses.dataclass(frozen=True)
class Axis:
    """The atoms of one axis: `count` from `start` on.

    An axis of size 4 * batch has four atoms, the residues of the index: names are the outer part. An axis
    of size 1 or of a name alone has none.
    """

    start: int
    count: int

    @property
    def atoms(self) -> np.ndarray:
        """int64, (count,)."""
        return np.arange(self.start, self.start + self.count)


class Atoms:
    """All atoms of a model's main graph, with what unites and what freezes them.

    Attributes:
        sizes: of all values.
        count: of atoms so far.
        causes: of what stays; the first one counts.
        uses: every sum over an axis with a stored weight.
        node: whose rule is running.
        touched: the values that its rule has said something about.
        opset: of the default domain.
    """

    def __init__(self, sizes: Sizes, opset: int) -> None:
        self.sizes = sizes
        self.opset = opset
        self.touched: set[ir.Value] = set()
        self.count = 0
        self.causes: list[Cause] = []
        self.uses: list[Use] = []
        self.node: ir.Node | None = None
        self._axes: dict[tuple[ir.Value, int], Axis] = {}
        self._ranges: list[tuple[int, int, int]] = []
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._stays: list[tuple[int, int, int]] = []

    def dims(self, value: ir.Value | None) -> Dims:
        """The sizes of the axes. Raises RefusedError where not even their number is known."""
        dims = self.sizes.of(value)
        if dims is None:
            raise RefusedError(f"the number of axes of '{'' if value is None else value.name}' is not known")
        return dims

    def rank(self, value: ir.Value | None) -> int:
        """The number of axes. Raises RefusedError."""
        return len(self.dims(value))

    def axis(self, value: ir.Value, index: int) -> Axis:
        """The atoms of an axis, counted from 0. Raises RefusedError."""
        self.touched.add(value)
        key = (value, index)
        if key not in self._axes:
            factor = self.dims(value)[index].factor
            self._axes[key] = Axis(self.count, factor if factor > 1 else 0)
            self.count += self._axes[key].count
        return self._axes[key]

    def axes(self) -> list[Axis]:
        """Every axis that was looked at."""
        return list(self._axes.values())

    def known_axes(self, value: ir.Value) -> list[Axis]:
        """Every axis, none where their number is not known."""
        dims = self.sizes.of(value) or ()
        return [self.axis(value, i) for i in range(len(dims))]

    def same(self, a: ir.Value, i: int, b: ir.Value, j: int) -> None:
        """Index k of one axis is index k of the other; a size of 1 is repeated along the other."""
        left, right = self.axis(a, i), self.axis(b, j)
        sizes = self.dims(a)[i], self.dims(b)[j]
        if sizes[0] == sizes[1]:
            self.unite(left, right)
        elif ONE not in sizes:
            for found in (left, right):
                self.keep(found, "the size of an axis beside it is not known")

    def unite(self, left: Axis, right: Axis) -> None:
        """Index k is index k."""
        count = min(left.count, right.count)
        if count:
            self._ranges.append((left.start, right.start, count))

    def pair(self, left: np.ndarray, right: np.ndarray) -> None:
        """Atoms (n,) are atoms (n,)."""
        self._pairs.append((left, right))

    def contract(self, use: Use) -> None:
        """A sum over an axis: unite both sides, and note where its units leave."""
        left = self.axis(use.activation, use.activation_axis)
        right = self.axis(use.weight, use.weight_axis)
        if left.count != right.count * use.groups:
            raise RefusedError("the weight does not fit its input")
        for group in range(use.groups):
            self.unite(Axis(left.start + group * right.count, right.count), right)
        self.uses.append(use)

    def freeze(self, value: ir.Value | None, index: int | None, reason: str, *, understood: bool = True) -> None:
        """An axis (None: all) of a value stays as it is."""
        if value is None or (index is not None and self.sizes.of(value) is None):
            return
        for axis in self.known_axes(value) if index is None else [self.axis(value, index)]:
            self.keep(axis, reason, understood=understood)

    def keep(self, axis: Axis, reason: str, *, understood: bool = True) -> None:
        """These atoms stay."""
        if axis.count:
            self._stays.append((axis.start, axis.count, len(self.causes)))
            self.causes.append(Cause(_name(self.node), reason, understood))

    def freeze_node(self, node: ir.Node, reason: str, *, understood: bool) -> None:
        """Everything that a node reads and writes stays."""
        self.node = node
        for value in (*node.inputs, *node.outputs):
            self.freeze(value, None, reason, understood=understood)

    def mark(self) -> tuple[int, int, int]:
        """A place to go back to with `rewind`."""
        return len(self._ranges), len(self._pairs), len(self._stays)

    def rewind(self, mark: tuple[int, int, int]) -> None:
        """Forget what was said since."""
        del self._ranges[mark[0] :], self._pairs[mark[1] :], self._stays[mark[2] :]

    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """(label of each atom: (count,), index of the cause for which a label stays or -1: (labels,))."""
        left, right = _spread(self._ranges, 0), _spread(self._ranges, 1)
        rows = np.concatenate([left, *(a for a, _ in self._pairs)])
        columns = np.concatenate([right, *(b for _, b in self._pairs)])
        edges = sparse.coo_matrix((np.ones(len(rows), np.int32), (rows, columns)), (self.count, self.count))
        number, labels = csgraph.connected_components(edges, directed=False)
        stays = np.full(number, len(self.causes), np.int64)
        frozen = _spread([(start, cause, count) for start, count, cause in self._stays], 0)
        causes = np.repeat([s[2] for s in self._stays], [s[1] for s in self._stays]).astype(np.int64)
        np.minimum.at(stays, labels[frozen], causes)
        stays[stays == len(self.causes)] = -1
        return labels, stays


def _spread(ranges: list[tuple[int, int, int]], which: int) -> np.ndarray:
    """All members of ranges (first, second, count)."""
    if not ranges:
        return np.zeros(0, np.int64)
    table = np.array(ranges, np.int64)
    counts = table[:, 2]
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    spread: np.ndarray = np.repeat(table[:, which], counts) + inside
    return spread


def _name(node: ir.Node | None) -> str:
    return "" if node is None else node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
