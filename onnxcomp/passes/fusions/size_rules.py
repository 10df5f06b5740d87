"""Sizes of an operator's outputs from those of its inputs, and the elements of computed shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxcomp.passes.fusions.size import ONE, Dims, Size, integer, permutation, product

if TYPE_CHECKING:
    from onnxcomp.passes.fusions.sizes import Sizes

#: an end at or beyond this means 'to the end of the axis'
_END = 2**31 - 1


def _known(sizes: Sizes, node: ir.Node) -> Dims:
    dims = sizes.of(node.inputs[0])
    assert dims is not None
    return dims


def _transpose(sizes: Sizes, node: ir.Node) -> Sequence[Dims]:
    dims = _known(sizes, node)
    return [tuple(dims[i] for i in permutation(node, len(dims)))]


def _reshape(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims, target = _known(sizes, node), sizes.numbers(node.inputs[1])
    if target is None:
        return None
    copy = not integer(node, "allowzero", 0)
    filled = [dims[i] if copy and s == Size(0) and i < len(dims) else s for i, s in enumerate(target)]
    rest = product(dims).over(product(s for s in filled if s != Size(-1)))
    return [tuple((rest or sizes.unknown()) if s == Size(-1) else s for s in filled)]


def _unsqueeze(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims, axes = list(_known(sizes, node)), sizes.axes(node)
    if axes is None:
        return None
    for axis in sorted(a % (len(dims) + len(axes)) for a in axes):
        dims.insert(axis, ONE)
    return [tuple(dims)]


def _squeeze(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims, axes = _known(sizes, node), sizes.axes(node)
    if axes is None:
        return None
    gone = {a % len(dims) for a in axes}
    return [tuple(d for i, d in enumerate(dims) if i not in gone)]


def _expand(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    target = sizes.numbers(node.inputs[1])
    if target is None or any((s.number or 0) < 0 for s in target):
        return None
    return [sizes.broadcast([_known(sizes, node), target])]


def _matmul(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    left, right = _known(sizes, node), sizes.of(node.inputs[1])
    if right is None or min(len(left), len(right)) < 2:
        return None
    return [(*sizes.broadcast([left[:-2], right[:-2]]), left[-2], right[-1])]


def _gemm(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    left, right = _known(sizes, node), sizes.of(node.inputs[1])
    if right is None or len(left) != 2 or len(right) != 2:
        return None
    return [(left[1 if integer(node, "transA", 0) else 0], right[0 if integer(node, "transB", 0) else 1])]


def _concat(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    parts = [dims for dims in map(sizes.of, node.inputs) if dims is not None]
    if len(parts) != len(node.inputs) or len({len(p) for p in parts}) != 1:
        return None
    axis = integer(node, "axis", 0) % len(parts[0])
    along = [p[axis].number for p in parts]
    total = Size(sum(n for n in along if n is not None)) if None not in along else sizes.unknown()
    joined = [next((s for s in column if s.number is not None), column[0]) for column in zip(*parts, strict=True)]
    joined[axis] = parts[0][axis] if len(parts) == 1 else total
    return [tuple(joined)]


def _split(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims = _known(sizes, node)
    axis, count = integer(node, "axis", 0) % len(dims), len(node.outputs)
    given = sizes.constants(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None and "split" in node.attributes:
        given = tuple(node.attributes["split"].as_ints())
    even = dims[axis].over(Size(count))
    parts = [even] * count if given is None else [Size(n) for n in given]
    if any(p is None for p in parts) or len(parts) != count or (len(node.inputs) > 1 and given is None):
        return None
    return [(*dims[:axis], part, *dims[axis + 1 :]) for part in parts if part is not None]


def _slice(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims = list(_known(sizes, node))
    starts, ends = (sizes.numbers(v) for v in node.inputs[1:3]) if len(node.inputs) > 2 else (None, None)
    axes = sizes.constants(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = sizes.constants(node.inputs[4]) if len(node.inputs) > 4 else None
    if starts is None or ends is None or (axes, steps).count(None) != (_absent(node, 3), _absent(node, 4)).count(True):
        return None
    for i, axis in enumerate(axes or range(len(starts))):
        step = steps[i] if steps is not None else 1
        dims[axis % len(dims)] = _sliced(sizes, dims[axis % len(dims)], starts[i], ends[i], step)
    return [tuple(dims)]


def _absent(node: ir.Node, index: int) -> bool:
    return len(node.inputs) <= index or node.inputs[index] is None


def _sliced(sizes: Sizes, size: Size, start: Size, end: Size, step: int) -> Size:
    if step != 1 or start.number is None:
        return sizes.unknown()
    if start == Size(0) and (end == size or (end.number or 0) >= _END):
        return size
    if size.number is not None and end.number is not None:
        return Size(len(range(size.number)[start.number : end.number]))
    if start == Size(0) and (size.number or 0) > 1 and end.names:
        return sizes.capped(size.factor, end)
    return sizes.unknown()


def _flatten(sizes: Sizes, node: ir.Node) -> Sequence[Dims]:
    dims = _known(sizes, node)
    axis = integer(node, "axis", 1)
    axis += len(dims) if axis < 0 else 0
    return [(product(dims[:axis]), product(dims[axis:]))]


def _gather(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims, index = _known(sizes, node), sizes.of(node.inputs[1])
    axis = integer(node, "axis", 0) % max(len(dims), 1)
    return None if index is None else [(*dims[:axis], *index, *dims[axis + 1 :])]


def _gather_elements(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    index = sizes.of(node.inputs[1])
    return None if index is None else [index]


def _gather_nd(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims, index = _known(sizes, node), sizes.of(node.inputs[1])
    if index is None or not index or index[-1].number is None or integer(node, "batch_dims", 0):
        return None
    return [(*index[:-1], *dims[index[-1].factor :])]


def _range(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    start, end, step = (sizes.numbers(v) for v in node.inputs)
    return [end] if start == (Size(0),) and step == (ONE,) and end is not None else None


def _constant_of_shape(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    target = sizes.numbers(node.inputs[0])
    return None if target is None else [target]


def _shape(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    return None if (found := _shape_numbers(sizes, node)) is None else [(Size(len(found)),)]


#: sizes of the outputs, where the first input's are known
DIM_RULES: Mapping[str, Callable[[Sizes, ir.Node], Sequence[Dims] | None]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _shape_numbers(sizes: Sizes, node: ir.Node) -> Dims | None:
    dims = sizes.of(node.inputs[0])
    return None if dims is None else dims[integer(node, "start", 0) : integer(node, "end", len(dims))]


def _same_numbers(sizes: Sizes, node: ir.Node) -> Dims | None:
    return sizes.numbers(node.inputs[0])


def _concat_numbers(sizes: Sizes, node: ir.Node) -> Dims | None:
    parts = [sizes.numbers(v) for v in node.inputs]
    known = [p for p in parts if p is not None]
    return tuple(s for p in known for s in p) if len(known) == len(parts) else None


def _gather_numbers(sizes: Sizes, node: ir.Node) -> Dims | None:
    data, index = sizes.numbers(node.inputs[0]), sizes.constants(node.inputs[1])
    return None if data is None or index is None else tuple(data[i] for i in index if -len(data) <= i < len(data))


def _slice_numbers(sizes: Sizes, node: ir.Node) -> Dims | None:
    data = sizes.numbers(node.inputs[0])
    bounds = [sizes.constants(v) for v in node.inputs[1:]]
    if data is None or len(bounds) < 2 or any(b is None or len(b) != 1 for b in (*bounds[:2], *bounds[3:])):
        return None
    (start,), (end,), step = bounds[0] or (0,), bounds[1] or (0,), (bounds[3] or (1,))[0] if len(bounds) > 3 else 1
    return data[start:end:step]


def _times(sizes: Sizes, node: ir.Node) -> Dims | None:
    return _pairs(sizes, node, lambda a, b: a * b)


def _over(sizes: Sizes, node: ir.Node) -> Dims | None:
    return _pairs(sizes, node, lambda a, b: a.over(b))


def _plus(sizes: Sizes, node: ir.Node) -> Dims | None:
    sign = -1 if node.op_type == "Sub" else 1

    def add(a: Size, b: Size) -> Size | None:
        if a.number is not None and b.number is not None:
            return Size(a.number + sign * b.number)
        return a if b == Size(0) else b if a == Size(0) and sign == 1 else None

    return _pairs(sizes, node, add)


def _pairs(sizes: Sizes, node: ir.Node, combine: Callable[[Size, Size], Size | None]) -> Dims | None:
    left, right = (sizes.numbers(v) for v in node.inputs)
    if (
        left is None
        or right is None
        or not left
        or not right
        or (len(left) != len(right) and 1 not in (len(left), len(right)))
    ):
        return None
    length = max(len(left), len(right))
    made = [combine(a, b) for a, b in zip(left * (length // len(left)), right * (length // len(right)), strict=True)]
    return tuple(m or sizes.unknown() for m in made)


#: elements of the output, for integers of one axis or none
NUMBER_RULES: Mapping[str, Callable[[Sizes, ir.Node], Dims | None]] = {
    "Add": _plus,
    "Cast": _same_numbers,
    "Concat": _concat_numbers,
    "Div": _over,
    "Gather": _gather_numbers,
    "Identity": _same_numbers,
    "Mul": _times,
    "Reshape": _same_numbers,
    "Shape": _shape_numbers,
    "Slice": _slice_numbers,
    "Squeeze": _same_numbers,
    "Sub": _plus,
    "Unsqueeze": _same_numbers,
}
