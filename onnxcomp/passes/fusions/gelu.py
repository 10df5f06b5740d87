"""Gelu: x * (1 + erf(x / sqrt 2)) / 2, or its approximation with tanh, to one operator.

Products are compared as sets of factors, so that neither grouping nor order matters. onnxscript's
rules (0.7.2) know one order each; commuted they are 1800 rules and take seconds a model.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator

import onnx_ir as ir

from onnxcomp.passes.fusions.reading import Refusal, given, made_by, must_be_float32, only_use, scalar
from onnxcomp.passes.fusions.writer import Writer

#: from here on Gelu is an operator of the default domain
_STANDARD_SINCE = 20

#: of the approximation: tanh(_OUTER * (x + _CUBIC * x^3))
_OUTER, _CUBIC = math.sqrt(2 / math.pi), 0.044715

#: how deep a product is taken apart
_FAR = 6

#: constants are written in float32, or with a few digits
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Gelu:
    """What was found: `output` is gelu(`x`)."""

    x: ir.Value
    output: ir.Value
    tanh: bool


@dataclasses.dataclass(frozen=True)
class _Product:
    """A constant times values, each as often as it occurs."""

    constant: float
    values: collections.Counter[ir.Value]

    def equals(self, constant: float, *values: ir.Value) -> bool:
        return math.isclose(self.constant, constant, rel_tol=_TOLERANCE) and self.values == collections.Counter(values)


def looks_like_gelu(node: ir.Node) -> bool:
    """An Erf, or a Tanh of something times the approximation's constant."""
    if node.domain or node.op_type not in ("Erf", "Tanh"):
        return False
    inner = given(node.inputs[0])
    return node.op_type == "Erf" or any(
        math.isclose(_factors(inner, v).constant, _OUTER, rel_tol=1e-3) for v in _operands(inner)
    )


def match(node: ir.Node) -> Gelu:
    """Read the pattern around an Erf or a Tanh. Raises Refusal."""
    x = _argument_of_erf(node) if node.op_type == "Erf" else _argument_of_tanh(node)
    must_be_float32(x)
    user, _ = only_use(node.outputs[0]) or (None, 0)
    if user is None or user.op_type != "Add" or all(scalar(v) != 1 for v in user.inputs):
        raise Refusal(f"the {node.op_type.lower()} is not only added to 1")
    gate = value = user.outputs[0]
    while not _factors(value, x, gate).equals(0.5, x, gate):
        user, _ = only_use(value) or (None, 0)
        if user is None or user.domain or user.op_type not in ("Mul", "Div"):
            raise Refusal(f"1 + {node.op_type.lower()} is not multiplied by x / 2, or used elsewhere too")
        value = user.outputs[0]
    return Gelu(x, value, node.op_type == "Tanh")


def replace(found: Gelu, writer: Writer) -> None:
    """Put the operator in the place of what was found."""
    before = found.output.producer()
    assert before is not None
    if writer.opset >= _STANDARD_SINCE:
        (made,) = writer.add(before, "Gelu", [found.x], {"approximate": "tanh" if found.tanh else "none"})
    else:
        (made,) = writer.add(before, "FastGelu" if found.tanh else "Gelu", [found.x], domain="com.microsoft")
    writer.call(made, before)
    writer.take_over(found.output, made)


def _argument_of_erf(node: ir.Node) -> ir.Value:
    inner = given(node.inputs[0])
    for x in _operands(inner):
        if _factors(inner, x).equals(math.sqrt(0.5), x):
            return x
    raise Refusal("erf is not of x / sqrt 2")


def _argument_of_tanh(node: ir.Node) -> ir.Value:
    inner = given(node.inputs[0])
    for total in _operands(inner):
        add = made_by(total, "Add")
        terms = () if add is None else tuple(map(given, add.inputs))
        for first, second in (terms, terms[::-1]) if terms else ():
            # x plus a cubic term
            if _factors(second, first).equals(_CUBIC, *[first] * 3) and _factors(inner, total).equals(_OUTER, total):
                return first
            # x times 1 plus a quadratic term
            for x in _operands(second) if scalar(first) == 1 else ():
                if _factors(second, x).equals(_CUBIC, x, x) and _factors(inner, total, x).equals(_OUTER, total, x):
                    return x
    raise Refusal("tanh is not of sqrt(2 / pi) * (x + 0.044715 * x^3)")


def _operands(value: ir.Value, depth: int = _FAR) -> Iterator[ir.Value]:
    """The value and what it is a product of, stored numbers left out."""
    yield value
    node = made_by(value, "Mul", "Div", "Pow")
    if node is not None and depth:
        for operand in node.inputs:
            if operand is not None and scalar(operand) is None:
                yield from _operands(operand, depth - 1)


def _factors(value: ir.Value, *whole: ir.Value, depth: int = _FAR) -> _Product:
    """A tree of Mul, Div by a constant, and small powers, as one product; `whole` values are not taken apart."""
    number = scalar(value)
    if number is not None:
        return _Product(number, collections.Counter())
    node = made_by(value, "Mul", "Div", "Pow") if value not in whole and depth else None
    if node is None:
        return _Product(1.0, collections.Counter([value]))
    left, right = map(given, node.inputs)
    number = scalar(right)
    if node.op_type == "Mul":
        a, b = _factors(left, *whole, depth=depth - 1), _factors(right, *whole, depth=depth - 1)
        return _Product(a.constant * b.constant, a.values + b.values)
    if node.op_type == "Div" and number:
        a = _factors(left, *whole, depth=depth - 1)
        return _Product(a.constant / number, a.values)
    if node.op_type == "Pow" and number in (2.0, 3.0):
        a, times = _factors(left, *whole, depth=depth - 1), int(number)
        return _Product(a.constant**times, collections.Counter({v: n * times for v, n in a.values.items()}))
    return _Product(1.0, collections.Counter([value]))
