"""A tensor as codes of a few bits, codebooks, and a scale for each output: computed, and written into a graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.share import codebook, values

#: BitShift is there from here on
OPSET = 11

#: widths of fields that fill bytes, from the largest: a code of 6 bits is one of 4 and one of 2
_FIELDS = (8, 4, 2, 1)

#: bytes that nodes, names and shapes take in a file for each field, measured: 0.7 to 1.1 kB
_NODES = 1 << 10

_Add = Callable[..., ir.Value]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor is cut.

    Attributes:
        bits: of a code, 2 to 8.
        axis: the axis of outputs; each has a scale.
        groups: along the axis, each with its own codebook.
    """

    bits: int
    axis: int
    groups: tuple[slice, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int, bits: int, group_size: int | None) -> Layout:
        """For a shape; no group size: one group."""
        outputs = shape[axis]
        step = outputs if group_size is None else min(group_size, outputs)
        return cls(bits, axis, tuple(slice(i, min(i + step, outputs)) for i in range(0, outputs, step)))

    def bytes_for(self, shape: tuple[int, ...]) -> int:
        """What a tensor of this shape takes in the file."""
        fields = list(_fields(self.bits))
        codes = sum(-(-math.prod(shape) * width // 8) for _, width in fields)
        offsets = shape[self.axis] if len(self.groups) > 1 else 0
        return codes + 4 * (len(self.groups) << self.bits) + 4 * (shape[self.axis] + offsets) + _NODES * len(fields)

    def part(self, array: np.ndarray, group: slice) -> np.ndarray:
        """A group of an array, a view; an array with one output has one for all."""
        if array.shape[self.axis] == 1:
            return array
        found: np.ndarray = array[(slice(None),) * self.axis + (group,)]
        return found


@dataclasses.dataclass(frozen=True)
class Palette:
    """What stands for a tensor: books[group of the output, code] * scales[output].

    Attributes:
        layout: how it is cut.
        books: float32, (groups, 2**bits), each in order.
        scales: float32, with as many axes as the tensor, all but that of outputs 1.
        codes: uint8, of the tensor's shape.
    """

    layout: Layout
    books: np.ndarray
    scales: np.ndarray
    codes: np.ndarray

    @property
    def nbytes(self) -> int:
        """What it takes in the file, nodes included."""
        return self.layout.bytes_for(self.codes.shape)

    def along(self, array: np.ndarray, axis: int) -> Palette:
        """Of a matrix (outputs, inputs), for a tensor like `array` whose outputs lie along `axis`: 0, or 1 of two."""
        codes, scales = self.codes, self.scales
        if axis:
            codes, scales = np.ascontiguousarray(codes.T), scales.T
        else:
            codes, scales = codes.reshape(array.shape), scales.reshape(-1, *[1] * (array.ndim - 1))
        return Palette(dataclasses.replace(self.layout, axis=axis), self.books, scales, codes)

    def restored(self, rows: slice) -> np.ndarray:
        """What stands for some rows along the first axis: float32."""
        codes = self.codes[rows].astype(np.int32)
        held = self.books.reshape(-1)[codes + _rows(self._offsets(), rows)] * _rows(self.scales, rows)
        wide: np.ndarray = held.astype(np.float32)
        return wide

    def _offsets(self) -> np.ndarray:
        """int32, as the scales: where the book of an output begins."""
        sizes = [group.stop - group.start for group in self.layout.groups]
        numbers = np.repeat(np.arange(len(sizes), dtype=np.int32) << self.layout.bits, sizes)
        return numbers.reshape(self.scales.shape)

    def write(self, model: ir.Model, name: str, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """Put codes and books into the main graph and nodes that compute the tensor before `before`; its value.

        All of it is constant, so that ORT computes it once, when it loads the model. Operators of opset 11 only.
        """
        made: list[ir.Node] = []
        taken = (*values.names(model), *(node.name or "" for node in model.graph.all_nodes()))
        prefix = f"{name}_palette"
        while any(other.startswith(prefix) for other in taken):
            prefix += "_"

        def add(op: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
            node = ir.node(op, inputs, attributes, name=f"{prefix}.{op}_{len(made)}")
            node.outputs[0].name = f"{prefix}.{len(made)}"
            made.append(node)
            return node.outputs[0]

        def hold(what: str, array: np.ndarray) -> ir.Value:
            tensor = ir.Tensor(array, name=f"{prefix}.{what}")
            value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
            if tensor.name not in model.graph.initializers:  # two fields read some alike
                model.graph.register_initializer(value)
            return model.graph.initializers[tensor.name or ""]

        index: ir.Value | None = None
        for offset, width in _fields(self.layout.bits):
            field = _read(add, hold, self.codes, offset, width)
            index = field if index is None else add("Add", index, field)
        assert index is not None
        if len(self.layout.groups) > 1:
            index = add("Add", index, hold("offsets", self._offsets()))
        value = add("Mul", add("Gather", hold("books", self.books.reshape(-1)), index), hold("scales", self.scales))
        if dtype != ir.DataType.FLOAT:
            value = add("Cast", value, to=int(dtype))
        assert before.graph is not None
        before.graph.insert_before(before, made)
        return value


def fit(array: np.ndarray, layout: Layout) -> Palette:
    """Codes for a finite array that leave the least square error, up to k-means; some of it in memory at a time."""
    scales = scales_of(array, layout.axis)
    books = np.empty((len(layout.groups), 1 << layout.bits), np.float32)
    codes = np.empty(array.shape, np.uint8)
    for number, group in enumerate(layout.groups):
        part, own = layout.part(array, group), layout.part(scales, group)

        def pieces(part: np.ndarray = part, own: np.ndarray = own) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows in codebook.slices(part):
                scale = _rows(own, rows)
                numbers = part[rows] / scale
                yield numbers, np.broadcast_to(np.square(scale, dtype=np.float64), numbers.shape)

        books[number] = codebook.fit(pieces, 1 << layout.bits)
        target = layout.part(codes, group)
        for rows in codebook.slices(part):
            target[rows] = codebook.nearest(books[number], part[rows] / _rows(own, rows))
    return Palette(layout, books, scales, codes)


def scales_of(array: np.ndarray, axis: int) -> np.ndarray:
    """The root mean square of each output, 1 where that is 0: float32, with as many axes as the array."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    shape = [1] * array.ndim
    shape[axis] = array.shape[axis]
    squares = np.zeros(shape)
    for rows in codebook.slices(array):
        sums = np.square(array[rows], dtype=np.float64).sum(others, keepdims=True)
        if axis == 0:
            squares[rows] = sums
        else:
            squares += sums
    scales = np.sqrt(squares * (array.shape[axis] / array.size)).astype(np.float32)
    return np.where(scales >= np.finfo(np.float32).tiny, scales, np.float32(1))


def relative_error(array: np.ndarray, palette: Palette) -> float:
    """Square error over the square of the array."""
    error = whole = 0.0
    for rows in codebook.slices(array):
        held = array[rows].astype(np.float64)
        error += float(np.square(held - palette.restored(rows)).sum())
        whole += float(np.square(held).sum())
    return error / (whole or 1.0)


def _rows(array: np.ndarray, rows: slice) -> np.ndarray:
    """Some rows of what is broadcast along the first axis, or not."""
    return array if len(array) == 1 else array[rows]


def _fields(bits: int) -> Iterator[tuple[int, int]]:
    """(offset, width) of the fields of a code."""
    offset = 0
    for width in _FIELDS:
        if bits - offset >= width:
            yield offset, width
            offset += width


def _read(
    add: _Add, hold: Callable[[str, np.ndarray], ir.Value], codes: np.ndarray, offset: int, width: int
) -> ir.Value:
    """Store one field of the codes, as many in a byte as there is room for, and read it: int32, of their shape."""
    shape = hold("shape", np.array(codes.shape, np.int64))
    if width == 8:
        return add("Cast", hold("codes", codes), to=int(ir.DataType.INT32))
    each = 8 // width
    flat = (codes.reshape(-1) >> offset) & ((1 << width) - 1)
    padded = np.pad(flat, (0, -flat.size % each)).reshape(-1, each)
    packed = np.zeros((len(padded), 1), np.uint8)
    for i in range(each):
        packed[:, 0] |= padded[:, i] << (width * i)
    left = hold(f"left_{width}", np.array([8 - width * (i + 1) for i in range(each)], np.uint8))
    found = add("BitShift", hold(f"codes_{offset}", packed), left, direction="LEFT")
    found = add("BitShift", found, hold(f"right_{width}", np.array([8 - width], np.uint8)), direction="RIGHT")
    if offset:
        found = add("BitShift", found, hold(f"up_{offset}", np.array([offset], np.uint8)), direction="LEFT")
    if padded.size > flat.size:
        ends = [hold(what, np.array([end], np.int64)) for what, end in (("start", 0), ("end", flat.size))]
        found = add("Slice", add("Reshape", found, hold("flat", np.array([-1], np.int64))), *ends)
    return add("Cast", add("Reshape", found, shape), to=int(ir.DataType.INT32))
