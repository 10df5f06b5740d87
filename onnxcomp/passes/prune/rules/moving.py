"""Rules of operators that compute index by index, along an axis, or move values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxcomp.passes.fusions.size import ONE, integer, permutation
from onnxcomp.passes.prune.atoms import Atoms, Axis, RefusedError
from onnxcomp.passes.prune.rules.linear import input_at, required, used

_ELEMENTWISE = {
    *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot"),
    *("BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor"),
    *("Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu"),
    *("Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
}
#: elementwise in the first input, the others are single numbers
_FIRST_INPUT = {"CastLike", "Clip", "Dropout"}

_ALONG = {"CumSum": 0, "Hardmax": -1, "LogSoftmax": -1, "LpNormalization": -1, "Softmax": -1}

_REDUCTIONS = {
    *("ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
}

#: what they give depends on sizes alone, or on nothing
_MADE = {"ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "Range", "Shape", "Size"}

_REDUCED = "it is summed or compared along: removing a part changes the result"


def elementwise(at: Atoms, node: ir.Node) -> None:
    """Axes align from the right."""
    inputs = node.inputs[:1] if node.op_type in _FIRST_INPUT else node.inputs
    if at.opset < 7 and len(inputs) > 1:
        raise RefusedError("before opset 7 axes are aligned by other rules")
    for output in node.outputs:
        if output is not node.outputs[0] and not used([output]):
            continue  # the mask of a Dropout
        for value in inputs:
            if value is not None:
                for i in range(at.rank(value)):
                    at.same(value, i, output, i + at.rank(output) - at.rank(value))


def along(at: Atoms, node: ir.Node) -> None:
    """The axis (before opset 13: all from it on) is computed over, the others pass."""
    x = required(node, 0)
    rank = at.rank(x)
    axis = integer(node, "axis", _ALONG[node.op_type])
    if node.op_type == "CumSum":
        found = at.sizes.constants(required(node, 1))
        if found is None:
            raise RefusedError("its axis is computed")
        axis = found[0]
    old = node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and at.opset < 13
    if old and "axis" not in node.attributes:
        axis = 1
    for i in range(rank):
        if i == axis % rank or (old and i >= axis % rank):
            at.freeze(x, i, _REDUCED)
            at.freeze(node.outputs[0], i, _REDUCED)
        else:
            at.same(x, i, node.outputs[0], i)


def reduction(at: Atoms, node: ir.Node) -> None:
    """Axes that are reduced stay, the others pass."""
    x = required(node, 0)
    rank = at.rank(x)
    if node.op_type.startswith("Arg"):
        axes: tuple[int, ...] | None = (integer(node, "axis", 0),)
    elif input_at(node, 1) is None and "axes" not in node.attributes:
        axes = () if integer(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    else:
        axes = at.sizes.axes(node)
    if axes is None:
        raise RefusedError("its axes are computed")
    gone = {a % rank for a in axes}
    keep = integer(node, "keepdims", 1)
    for i in range(rank):
        if i in gone:
            at.freeze(x, i, _REDUCED)
        else:
            at.same(x, i, node.outputs[0], i if keep else i - sum(g < i for g in gone))


def transpose(at: Atoms, node: ir.Node) -> None:
    """Axes change places."""
    x = required(node, 0)
    for i, source in enumerate(permutation(node, at.rank(x))):
        at.same(x, source, node.outputs[0], i)


def squeeze(at: Atoms, node: ir.Node) -> None:
    """Axes of size 1 come or go; the others keep their order."""
    x, y = required(node, 0), node.outputs[0]
    axes = at.sizes.axes(node)
    larger, smaller = (y, x) if node.op_type == "Unsqueeze" else (x, y)
    if axes is None and node.op_type == "Squeeze" and input_at(node, 1) is None and "axes" not in node.attributes:
        axes = tuple(i for i, size in enumerate(at.dims(x)) if size == ONE)
    if axes is None or at.rank(larger) != at.rank(smaller) + len(axes):
        raise RefusedError("its axes are not known")
    moved = {a % at.rank(larger) for a in axes}
    for i, j in enumerate(j for j in range(at.rank(larger)) if j not in moved):
        at.same(smaller, i, larger, j)


def concat(at: Atoms, node: ir.Node) -> None:
    """Parts one behind the other along an axis."""
    y = node.outputs[0]
    axis, start = integer(node, "axis", 0) % at.rank(y), 0
    for value in node.inputs:
        if value is None:
            continue
        for i in range(at.rank(y)):
            if i != axis:
                at.same(value, i, y, i)
        start = _part(at, value, y, axis, start)


def split(at: Atoms, node: ir.Node) -> None:
    """Parts of an axis; their sizes are written anew when it is cut."""
    x = required(node, 0)
    axis, start = integer(node, "axis", 0) % at.rank(x), 0
    for output in node.outputs:
        for i in range(at.rank(x)):
            if i != axis:
                at.same(x, i, output, i)
        start = _part(at, output, x, axis, start)


def _part(at: Atoms, part: ir.Value, whole: ir.Value, axis: int, start: int) -> int:
    """Unite a part with where it lies in the whole; where the next one starts."""
    size, inside = at.dims(part)[axis].number, at.axis(whole, axis)
    if size is None or at.dims(whole)[axis].number is None or start + size > max(inside.count, 1):
        at.freeze(part, axis, "its place in a Concat or Split is not known")
        at.freeze(whole, axis, "the size of a part is not known")
        return start
    at.unite(at.axis(part, axis), Axis(inside.start + start, size if inside.count else 0))
    if size == 1 and inside.count:  # a part of one index owns no atom, and cannot go
        at.keep(Axis(inside.start + start, 1), "it is all of a part")
    return start + size


def slice_of(at: Atoms, node: ir.Node) -> None:
    """A run of an axis, with step 1; its ends are written anew when the axis is cut."""
    x, y = required(node, 0), node.outputs[0]
    cuts = bounds(at, node)
    for i in range(at.rank(x)):
        if i not in cuts:
            at.same(x, i, y, i)
            continue
        low, high, step = cuts[i]
        source, made = at.axis(x, i), at.axis(y, i)
        if step != 1 or at.dims(x)[i].number is None or made.count not in (high - low, 0) or high <= low:
            at.freeze(x, i, "a Slice takes a part that is not known, or every other index")
            at.freeze(y, i, "a Slice takes a part that is not known, or every other index")
        elif made.count:
            at.unite(Axis(source.start + low, high - low), made)
        elif source.count:
            at.keep(Axis(source.start + low, 1), "a Slice takes this index alone")


def bounds(at: Atoms, node: ir.Node) -> dict[int, tuple[int, int, int]]:
    """{axis: (start, end, step)} of a Slice, clipped to the axis. Raises RefusedError for axes that are computed."""
    dims = at.dims(required(node, 0))
    if "starts" in node.attributes:
        starts = tuple(node.attributes["starts"].as_ints())
        ends = tuple(node.attributes["ends"].as_ints())
        axes = tuple(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
        steps: tuple[int, ...] | None = None
    else:
        first, last = at.sizes.constants(required(node, 1)), at.sizes.constants(required(node, 2))
        axes, steps = (at.sizes.constants(v) if v is not None else None for v in (input_at(node, 3), input_at(node, 4)))
        if (axes is None and input_at(node, 3) is not None) or (axes is None and first is None):
            raise RefusedError("its axes are computed")
        if first is None or last is None or (steps is None and input_at(node, 4) is not None):
            return {a % len(dims): (0, 0, 0) for a in axes or range(len(dims))}
        starts, ends = first, last
    found = {}
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        size = dims[axis % len(dims)].number
        step = 1 if steps is None else steps[i]
        span = range(size or 0)[starts[i] : ends[i] : step] if step else range(0)
        found[axis % len(dims)] = (span.start, span.stop, step)
    return found


def gather(at: Atoms, node: ir.Node) -> None:
    """The axis that is looked up along stays; the others pass, as do those of the indices."""
    data, indices, y = required(node, 0), required(node, 1), node.outputs[0]
    axis = integer(node, "axis", 0) % at.rank(data)
    at.freeze(data, axis, "entries are looked up along it")
    extra = at.rank(indices)
    for i in range(at.rank(data)):
        if i != axis:
            at.same(data, i, y, i if i < axis else i + extra - 1)
    for i in range(extra):
        at.same(indices, i, y, axis + i)


def expand(at: Atoms, node: ir.Node) -> None:
    """What is repeated along an axis is the same at each index: any of them can go."""
    x, y = required(node, 0), node.outputs[0]
    if at.sizes.numbers(input_at(node, 1)) is None:
        raise RefusedError("its shape is not known")
    for i in range(at.rank(x)):
        at.same(x, i, y, i + at.rank(y) - at.rank(x))
    for i, size in enumerate(at.dims(y)):
        if size.names and size.factor > 1:
            at.freeze(y, i, "its size is computed")


def pad(at: Atoms, node: ir.Node) -> None:
    """Axes without padding pass."""
    x, y = required(node, 0), node.outputs[0]
    rank = at.rank(x)
    if "pads" in node.attributes:
        found: tuple[int, ...] | None = tuple(node.attributes["pads"].as_ints())
    else:
        found = at.sizes.constants(required(node, 1))
    axes = at.sizes.constants(input_at(node, 3)) if input_at(node, 3) is not None else tuple(range(rank))
    if found is None or axes is None:
        raise RefusedError("its padding is computed")
    padded = {a % rank for k, a in enumerate(axes) if found[k] or found[k + len(axes)]}
    for i in range(rank):
        if i in padded:
            at.freeze(x, i, "it is padded")
            at.freeze(y, i, "it is padded")
        else:
            at.same(x, i, y, i)


def resize(at: Atoms, node: ir.Node) -> None:
    """Axes that keep their size pass."""
    x, y = required(node, 0), node.outputs[0]
    for i, (before, after) in enumerate(zip(at.dims(x), at.dims(y), strict=True)):
        if i < 2 and before == after:  # by chance equal spatial sizes are still interpolated along
            at.same(x, i, y, i)
        else:
            at.freeze(x, i, "it is resized")
            at.freeze(y, i, "it is resized")


def made(at: Atoms, node: ir.Node) -> None:
    """What is made from sizes stays; what reads sizes of axes that can be cut is looked at apart (`shapes`)."""
    for output in node.outputs:
        at.freeze(output, None, "it is made from sizes")


RULES: Mapping[str, Callable[[Atoms, ir.Node], None]] = {
    **dict.fromkeys(_ELEMENTWISE | _FIRST_INPUT, elementwise),
    **dict.fromkeys(_ALONG, along),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(_MADE, made),
    "Concat": concat,
    "Expand": expand,
    "Gather": gather,
    "Pad": pad,
    "Resize": resize,
    "Slice": slice_of,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": squeeze,
    "Upsample": resize,
}
