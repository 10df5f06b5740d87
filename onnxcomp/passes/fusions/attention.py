"""Attention: softmax(scale * q k^T + mask) v to one MultiHeadAttention.

onnxscript's fusions (0.7.2) are not used here: they need the shapes of inner values, which `simplify`
forgets; they drop the NaN guard of a fully masked row unproven; they merge the weights of q, k and v,
so that node names and weight counts change; and they do not say why a layer stays.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import stored_origin
from onnxcomp.passes.fusions.sizes import Size, Sizes, integer

#: what is added to a masked score must be this small that its sum with any score is itself
_MASKED = -1e30

_SCALED = {"Mul", "Div"}

#: operators that may stand between the softmax and the product with the values
_BETWEEN = {"Cast", "Dropout", "Identity", "IsNaN", "Mul", "Reshape", "Transpose", "Where"}


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error
    """Why a pattern that looks right is not fused."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """What was found; nothing of it is proven to fit the operator yet.

    Attributes:
        softmax, product: the first and the last node that go.
        query: (..., S, D).
        key: transposed, (..., D, L).
        value: (..., L, Dv).
        scale: of the scores, those of query and key included.
        masks: added to the scaled scores, in this order.
        replaced: (condition, whether true keeps the score, constant) that take a score's place.
        guarded: whether NaN weights become 0.
    """

    softmax: ir.Node
    product: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float
    masks: tuple[ir.Value, ...]
    replaced: tuple[tuple[ir.Value, bool, float], ...]
    guarded: bool


def looks_like_attention(node: ir.Node) -> bool:
    """Whether a Softmax's output is multiplied with something computed."""
    if node.op_type != "Softmax" or node.domain:
        return False
    reached, users = {node}, [user for user, _ in node.outputs[0].uses()]
    while users:
        user = users.pop()
        if user.op_type == "Einsum" or (user.op_type == "MatMul" and not any(map(stored_origin, user.inputs))):
            return True
        if user.op_type in _BETWEEN and user not in reached and len(reached) < 8:
            reached.add(user)
            users += [next_ for output in user.outputs for next_, _ in output.uses()]
    return False


def match(softmax: ir.Node, sizes: Sizes, opset: int) -> Attention:
    """Read the pattern around a softmax. Raises Refusal."""
    scores = softmax.inputs[0]
    assert scores is not None
    dims = sizes.of(scores)
    if dims is None or len(dims) not in (3, 4):
        raise Refusal("the rank of the scores is not known to be 3 or 4")
    if integer(softmax, "axis", -1 if opset >= 13 else 1) not in (-1, len(dims) - 1):
        raise Refusal("the softmax is not over the last axis")
    if scores.dtype not in (None, ir.DataType.FLOAT):
        raise Refusal(f"{scores.dtype.name.lower()}: ORT's CPU provider has float32 attention only")
    product, guarded = _product(softmax.outputs[0])
    scores, masks, replaced = _masks(scores)
    scores, scale = _unscaled(scores, inner=True)
    node = scores.producer()
    if node is None or node.op_type != "MatMul" or node.domain:
        found = "an input of the graph" if node is None else node.op_type
        raise Refusal(f"the scores are made by {found}, not by a product of query and key")
    _only_use(scores, "scores")
    query, query_scale = _unscaled(_given(node.inputs[0]))
    key, key_scale = _unscaled(_given(node.inputs[1]))
    return Attention(
        softmax=softmax,
        product=product,
        query=query,
        key=key,
        value=_given(product.inputs[1]),
        scale=scale * query_scale * key_scale,
        masks=tuple(masks),
        replaced=tuple(replaced),
        guarded=guarded,
    )


def scalar(value: ir.Value | None) -> float | None:
    """The number in a stored tensor of one element."""
    origin = stored_origin(value)
    if origin is None or origin[1].size != 1 or not origin[1].dtype.is_floating_point():
        return None
    return float(np.asarray(origin[1].numpy(), dtype=np.float64).reshape(()))


def is_finite(value: ir.Value | None) -> bool:
    """Whether a mask holds no infinity and no NaN, as far as its operators and constants prove it."""
    origin = stored_origin(value)
    if origin is not None:
        numbers = np.asarray(origin[1].numpy())
        return bool(numbers.dtype.kind in "biu" or np.isfinite(numbers.astype(np.float64)).all())
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return value is not None and value.dtype is not None and not value.dtype.is_floating_point()
    match node.op_type:
        case "Where":
            return is_finite(node.inputs[1]) and is_finite(node.inputs[2])
        case "Cast":
            source = node.inputs[0]
            exact = source is not None and source.dtype is not None and not source.dtype.is_floating_point()
            return exact or is_finite(source)
        case "Concat":
            return all(map(is_finite, node.inputs))
        case "Expand" | "Gather" | "Identity" | "Reshape" | "Slice" | "Squeeze" | "Transpose" | "Trilu" | "Unsqueeze":
            return is_finite(node.inputs[0])
        case "Add" | "Mul" | "Sub":
            return all(map(_is_moderate, node.inputs))
    return False


def _is_moderate(value: ir.Value | None) -> bool:
    """Finite, and so that a sum or a product of two of them is: 0 or 1 cast, or a constant below 1e18."""
    origin = stored_origin(value)
    if origin is not None:
        return is_finite(value) and bool(np.abs(np.asarray(origin[1].numpy(), dtype=np.float64)).max(initial=0) < 1e18)
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in ("Cast", "Where"):
        return is_finite(value) if node.op_type == "Cast" else all(map(_is_moderate, node.inputs[1:]))
    return node.op_type in ("Add", "Expand", "Mul", "Reshape", "Slice", "Sub", "Unsqueeze") and all(
        _is_moderate(v) for v in node.inputs[: 2 if node.op_type in ("Add", "Mul", "Sub") else 1]
    )


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _only_use(value: ir.Value, what: str) -> None:
    if value.is_graph_output() or len(value.uses()) != 1:
        raise Refusal(f"the {what} ('{value.name}') are used elsewhere too")


def _product(weights: ir.Value) -> tuple[ir.Node, bool]:
    """(the MatMul of the weights with the values, whether a guard against NaN stands between)."""
    users = [user for user, _ in weights.uses()]
    kinds = sorted(user.op_type for user in users)
    guarded = kinds == ["IsNaN", "Where"]
    if guarded and not weights.is_graph_output():
        guard, test = (next(u for u in users if u.op_type == kind) for kind in ("Where", "IsNaN"))
        if guard.inputs[0] is not test.outputs[0] or scalar(guard.inputs[1]) != 0 or guard.inputs[2] is not weights:
            raise Refusal("Where and IsNaN after the softmax do something else than replace NaN by 0")
        _only_use(test.outputs[0], "tests for NaN")
        weights = guard.outputs[0]
    _only_use(weights, "attention weights")
    ((user, index),) = weights.uses()
    if user.op_type != "MatMul" or user.domain or index != 0:
        raise Refusal(f"the attention weights go into {user.op_type}, not into a product with the values")
    return user, guarded


def _masks(scores: ir.Value) -> tuple[ir.Value, list[ir.Value], list[tuple[ir.Value, bool, float]]]:
    """Take masks off the scores: what is added, and what takes a score's place."""
    masks: list[ir.Value] = []
    replaced: list[tuple[ir.Value, bool, float]] = []
    while (node := scores.producer()) is not None and not node.domain and node.op_type in ("Add", "Where"):
        _only_use(scores, "scores")
        if node.op_type == "Add":
            sides = [side for side in node.inputs if _comes_from_product(side)]
            if len(sides) != 1:
                raise Refusal("it is not clear which operand of the Add is the mask")
            masks.insert(0, _given(next(side for side in node.inputs if side is not sides[0])))
            scores = _given(sides[0])
            continue
        constants = [scalar(branch) for branch in node.inputs[1:]]
        if (constants[0] is None) == (constants[1] is None):
            raise Refusal("a Where among the scores does not put a constant into a score's place")
        keeps = constants[0] is None
        constant = constants[1] if keeps else constants[0]
        if constant is None or not constant <= _MASKED:
            raise Refusal(f"masked scores become {constant}, not a number that rules them out in every row")
        replaced.insert(0, (_given(node.inputs[0]), keeps, constant))
        scores = _given(node.inputs[1 if keeps else 2])
    return scores, masks, replaced


def _comes_from_product(value: ir.Value | None, depth: int = 6) -> bool:
    """Whether a value is a MatMul of computed tensors, up to masks and scales."""
    node = None if value is None else value.producer()
    if node is None or node.domain or not depth:
        return False
    if node.op_type == "MatMul":
        return not any(map(stored_origin, node.inputs))
    if node.op_type in ("Add", "Mul", "Div", "Where"):
        return any(_comes_from_product(v, depth - 1) for v in node.inputs)
    return False


def _unscaled(value: ir.Value, *, inner: bool = False) -> tuple[ir.Value, float]:
    """Take factors off; values `inner` to the pattern must have no other use."""
    scale = 1.0
    while (node := value.producer()) is not None and not node.domain and node.op_type in _SCALED:
        left, right = (scalar(v) for v in node.inputs)
        if node.op_type == "Div" and right:
            factor, value_in = 1 / right, node.inputs[0]
        elif node.op_type == "Mul" and (left is None) != (right is None):
            factor, value_in = (right, node.inputs[0]) if left is None else (left, node.inputs[1])
        else:
            break
        if inner:
            _only_use(value, "scores")
        scale *= factor or 0.0
        value = _given(value_in)
    if not scale or not math.isfinite(scale):
        raise Refusal(f"the scores are multiplied by {scale}")
    return value, scale


def default_scale(scale: float, head_size: Size) -> bool:
    """Whether the operator scales so by itself."""
    return head_size.number is not None and math.isclose(scale, head_size.number**-0.5, rel_tol=1e-6)
