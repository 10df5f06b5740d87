"""Layer normalization from its parts: means, squares and a root to one LayerNormalization.

onnxscript's rule (0.7.2) takes any tensor that is multiplied and added afterwards for scale and bias,
a residual among them, and knows neither opset 17's way to write a mean nor a doubled difference.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.reading import Refusal, given, made_by, must_be_float32, only_use, scalar, stored
from onnxcomp.passes.fusions.size import Size, integer
from onnxcomp.passes.fusions.sizes import Sizes
from onnxcomp.passes.fusions.writer import Writer

#: LayerNormalization is an operator from here on
_SINCE = 17


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """What was found: `output` is the layer normalization of `x`, whose last axis has the size `width`."""

    x: ir.Value
    width: int
    output: ir.Value
    scale: ir.Value | None
    bias: ir.Value | None
    epsilon: float


def looks_like_layer_norm(node: ir.Node) -> bool:
    """A root of what is added to a mean of squares of differences."""
    if node.op_type != "Sqrt" or node.domain:
        return False
    means = [made_by(term, "ReduceMean") for term in _inputs(node.inputs[0], "Add")]
    return any(mean is not None and _inputs(_squared(mean.inputs[0]), "Sub") for mean in means)


def match(root: ir.Node, sizes: Sizes, opset: int) -> LayerNorm:
    """Read the pattern around a square root. Raises Refusal."""
    if opset < _SINCE:
        raise Refusal(f"opset {opset} has no LayerNormalization; raise it to {_SINCE} first")
    variance, epsilon = _split(_inputs(root.inputs[0], "Add"))
    difference = _inputs(_squared(_averaged(variance, sizes)), "Sub")
    if len(difference) != 2 or _averaged(difference[1], sizes) is not difference[0]:
        raise Refusal("what is squared is not the difference from the mean")
    normalized, x = _normalized(root.outputs[0], difference), difference[0]
    must_be_float32(x)
    dims = sizes.of(x)
    if not dims or dims[-1].number is None:
        raise Refusal("the size of the last axis is not a constant")
    scaled, scale = _applied(normalized, "Mul", dims[-1])
    output, bias = _applied(scaled, "Add", dims[-1])
    return LayerNorm(x, dims[-1].number, output, scale, bias, epsilon)


def replace(found: LayerNorm, writer: Writer) -> None:
    """Put the operator in the place of what was found."""
    before = found.output.producer()
    assert before is not None
    scale = found.scale or writer.constant(np.ones(found.width, np.float32))
    inputs = [found.x, scale] if found.bias is None else [found.x, scale, found.bias]
    (made,) = writer.add(before, "LayerNormalization", inputs, {"axis": -1, "epsilon": found.epsilon})
    writer.call(made, before)
    writer.take_over(found.output, made)


def _inputs(value: ir.Value | None, op_type: str) -> tuple[ir.Value, ...]:
    node = made_by(value, op_type)
    return () if node is None else tuple(map(given, node.inputs))


def _averaged(value: ir.Value, sizes: Sizes) -> ir.Value:
    """What the value is the mean of, over the last axis."""
    node = made_by(value, "ReduceMean")
    dims = None if node is None else sizes.of(node.inputs[0])
    if node is None or dims is None:
        raise Refusal("its mean is not found, or of an unknown rank")
    if sizes.axes(node) not in ((-1,), (len(dims) - 1,)) or not integer(node, "keepdims", 1):
        raise Refusal("its mean is not over the last axis alone")
    return given(node.inputs[0])


def _squared(value: ir.Value | None) -> ir.Value | None:
    factors = _inputs(value, "Mul")
    if factors and (factors[0] is factors[1] or _inputs(factors[0], "Sub") == _inputs(factors[1], "Sub") != ()):
        return factors[0]
    power = _inputs(value, "Pow")
    return power[0] if power and scalar(power[1]) == 2 else None


def _split(terms: tuple[ir.Value, ...]) -> tuple[ir.Value, float]:
    """(the variance, epsilon)."""
    for variance, epsilon in (terms, terms[::-1]):
        number = scalar(epsilon)
        if number is not None and number >= 0:
            return variance, number
    raise Refusal("its epsilon is not a constant")


def _normalized(root: ir.Value, difference: tuple[ir.Value, ...]) -> ir.Value:
    """The difference over the root: a Div, or a Mul by the reciprocal."""
    user, _ = only_use(root) or (None, 0)
    if user is None:
        raise Refusal("the standard deviation is used elsewhere too")
    fits = user.op_type == "Div" and _inputs(user.inputs[0], "Sub") == difference
    if user.op_type == "Reciprocal" or (user.op_type == "Div" and scalar(user.inputs[0]) == 1):
        user, _ = only_use(user.outputs[0]) or (user, 0)
        fits = user.op_type == "Mul" and any(_inputs(v, "Sub") == difference for v in user.inputs)
    if not fits:
        raise Refusal("the difference is not divided by the standard deviation")
    return user.outputs[0]


def _applied(value: ir.Value, op_type: str, width: Size) -> tuple[ir.Value, ir.Value | None]:
    """(the result, the stored vector) where the value's only use is to be multiplied with or added to one."""
    user, index = only_use(value) or (None, 0)
    if user is not None and user.op_type == op_type and not user.domain:
        other = user.inputs[1 - index]
        tensor = stored(other)
        if tensor is not None and tuple(map(Size, tensor.shape.numpy())) == (width,):
            return user.outputs[0], other
    return value, None
