"""Sizes of axes as products of numbers and names, and the values of shape computations.

Exported graphs reshape by computed shapes (`Concat(Shape(x)[0], Shape(x)[1], -1, 64)`). Whether such
a Reshape only splits the last axis shows in products of names, which onnx's shape inference does not
carry: it knows 'batch', but not 'batch * 4', and no -1 beside a name.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from onnxcomp.inspect import infer_shapes

#: larger integer tensors are data, not shapes
_LONGEST_SHAPE = 16

#: an end at or beyond this means 'to the end of the axis'
_END = 2**31 - 1

_SAME = {
    *("Abs", "Cast", "Clip", "CumSum", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Softmax", "Softplus", "Sqrt", "Tanh", "Trilu"),
}
_BROADCAST = {
    *("Add", "And", "BitwiseAnd", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"),
    *("Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
}
_REDUCE = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}


@dataclasses.dataclass(frozen=True)
class Size:
    """`factor` times the product of `names`, which are sorted; a number has no names."""

    factor: int
    names: tuple[str, ...] = ()

    @property
    def number(self) -> int | None:
        """The size where it is a number."""
        return None if self.names else self.factor

    def __mul__(self, other: Size) -> Size:
        """The product."""
        return Size(self.factor * other.factor, tuple(sorted((*self.names, *other.names))))

    def over(self, other: Size) -> Size | None:
        """The quotient where it is a whole number for all values of the names, else None."""
        left = collections.Counter(self.names)
        left.subtract(other.names)
        if not other.factor or self.factor % other.factor or any(n < 0 for n in left.values()):
            return None
        return Size(self.factor // other.factor, tuple(sorted(left.elements())))


ONE = Size(1)

Dims = tuple[Size, ...]


class Sizes:
    """The sizes of all values of a model, as far as they are known; unknown ones have names of their own.

    Equal sizes are equal in every run that the model survives: names come from the model's inputs,
    and operators fail where broadcasting does not fit.
    """

    def __init__(self, model: ir.Model) -> None:
        self._dims: dict[ir.Value, Dims | None] = {}
        self._numbers: dict[ir.Value, Dims] = {}
        self._capped: dict[str, Size] = {}
        self._fresh = 0
        infer_shapes(model)
        for node in model.graph.all_nodes():
            self._learn(node)

    def of(self, value: ir.Value | None) -> Dims | None:
        """The sizes of the axes; None where not even their number is known."""
        if value is None:
            return None
        if value not in self._dims:
            tensor = value.const_value
            shape = value.shape if tensor is None else tensor.shape
            self._dims[value] = None if shape is None else tuple(self._declared(d) for d in shape)
        return self._dims[value]

    def numbers(self, value: ir.Value | None) -> Dims | None:
        """The elements of an integer tensor of one axis or none, where they are known."""
        if value is None:
            return None
        if value not in self._numbers and value.const_value is not None:
            tensor = value.const_value
            if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or len(tensor.shape) > 1:
                return None
            if tensor.size <= _LONGEST_SHAPE:
                self._numbers[value] = tuple(Size(int(n)) for n in tensor.numpy().reshape(-1))
        return self._numbers.get(value)

    def constants(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """`numbers` where all of them are plain."""
        found = self.numbers(value)
        plain = [] if found is None else [s.factor for s in found if s.number is not None]
        return tuple(plain) if found is not None and len(plain) == len(found) else None

    def _unknown(self) -> Size:
        self._fresh += 1
        return Size(1, (f"?{self._fresh}",))

    def _declared(self, dim: int | ir.SymbolicDim) -> Size:
        if isinstance(dim, int):
            return Size(dim)
        return self._unknown() if dim.value is None else Size(1, (dim.value,))

    def _learn(self, node: ir.Node) -> None:
        numbers = _SHAPE_RULES[node.op_type](self, node) if not node.domain and node.op_type in _SHAPE_RULES else None
        if numbers is not None and len(numbers) <= _LONGEST_SHAPE:
            self._numbers[node.outputs[0]] = numbers
        dims = None if node.domain else self._rule(node)
        for output, found in zip(node.outputs, dims or (), strict=False):
            known = self.of(output)
            if known is None or len(known) != len(found):
                self._dims[output] = found
            else:  # a number says more than a name, any name more than one that only we made up
                better = ((k if _made_up(f) or k.number is not None else f) for f, k in zip(found, known, strict=True))
                self._dims[output] = tuple(better)

    def _rule(self, node: ir.Node) -> Sequence[Dims] | None:
        inputs = [self.of(value) for value in node.inputs]
        if node.op_type in _SAME:
            return [inputs[0]] if inputs[0] is not None else None
        if node.op_type in _BROADCAST:
            known = [dims for dims in inputs if dims is not None]
            return [self.broadcast(known)] if len(known) == len(inputs) else None
        if node.op_type in _REDUCE:
            return self._reduce(node)
        rule = _DIM_RULES.get(node.op_type)
        return rule(self, node) if rule is not None and inputs and inputs[0] is not None else None

    def broadcast(self, shapes: Iterable[Dims]) -> Dims:
        """The sizes of an elementwise operator's output."""
        shapes = list(shapes)
        rank = max(len(s) for s in shapes)
        padded = [(ONE,) * (rank - len(s)) + s for s in shapes]
        return tuple(self._joined(column) for column in zip(*padded, strict=True))

    def _joined(self, column: Iterable[Size]) -> Size:
        """Sizes other than 1 are equal, or the model fails; so a number among them is the size."""
        different = {self._uncapped(s) for s in column} - {ONE}
        plain = [s for s in different if s.number is not None]
        if len(different) <= 1:
            return next(iter(different), ONE)
        return plain[0] if plain else self._unknown()

    def _uncapped(self, size: Size) -> Size:
        """min(64, n) beside n in an elementwise operator is n, or the model fails."""
        return self._capped.get(size.names[0], size) if size.names and size.factor == 1 else size

    def _reduce(self, node: ir.Node) -> Sequence[Dims] | None:
        dims, axes = self.of(node.inputs[0]), axes_of(self, node)
        if dims is None or axes is None:
            return None
        chosen = {a % len(dims) for a in axes}
        keep = integer(node, "keepdims", 1)
        return [tuple(ONE if i in chosen else d for i, d in enumerate(dims) if keep or i not in chosen)]


def axes_of(sizes: Sizes, node: ir.Node) -> tuple[int, ...] | None:
    """The constant `axes` of a Squeeze, Unsqueeze or reduction, attribute or input."""
    if "axes" in node.attributes:
        return tuple(node.attributes["axes"].as_ints())
    return sizes.constants(node.inputs[1]) if len(node.inputs) > 1 else None


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The `perm` of a Transpose."""
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else tuple(range(rank))[::-1]


def product(sizes: Iterable[Size]) -> Size:
    """The product of all."""
    return math.prod(sizes, start=ONE)


def _made_up(size: Size) -> bool:
    return any(name.startswith("?") for name in size.names)


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
    return [tuple((rest or sizes._unknown()) if s == Size(-1) else s for s in filled)]


def _unsqueeze(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims, axes = list(_known(sizes, node)), axes_of(sizes, node)
    if axes is None:
        return None
    for axis in sorted(a % (len(dims) + len(axes)) for a in axes):
        dims.insert(axis, ONE)
    return [tuple(dims)]


def _squeeze(sizes: Sizes, node: ir.Node) -> Sequence[Dims] | None:
    dims, axes = _known(sizes, node), axes_of(sizes, node)
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
    total = Size(sum(n for n in along if n is not None)) if None not in along else sizes._unknown()
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
    if starts is None or ends is None:
        return None
    for i, axis in enumerate(axes or range(len(starts))):
        step = steps[i] if steps is not None else 1
        dims[axis % len(dims)] = _sliced(sizes, dims[axis % len(dims)], starts[i], ends[i], step)
    return [tuple(dims)]


def _sliced(sizes: Sizes, size: Size, start: Size, end: Size, step: int) -> Size:
    if step != 1 or start.number is None:
        return sizes._unknown()
    if start == Size(0) and (end == size or (end.number or 0) >= _END):
        return size
    if size.number is not None and end.number is not None:
        return Size(len(range(size.number)[start.number : end.number]))
    if start == Size(0) and (size.number or 0) > 1 and end.names:
        name = f"min({size.factor},{end.factor}*{'*'.join(end.names)})"
        sizes._capped[name] = end
        return Size(1, (name,))
    return sizes._unknown()


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


_DIM_RULES: dict[str, Callable[[Sizes, ir.Node], Sequence[Dims] | None]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
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
    return tuple(m or sizes._unknown() for m in made)


_SHAPE_RULES: dict[str, Callable[[Sizes, ir.Node], Dims | None]] = {
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
