"""Attention as exporters write it: softmax(scale * q k^T + masks) v.

onnxscript's fusions (0.7.2) are not used here: they need the shapes of inner values, which `simplify`
forgets; they drop the NaN guard of a fully masked row unproven; they merge the weights of q, k and v,
so that node names and the count of weights change; and they do not say why a layer stays.
"""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from onnxcomp.inspect import stored_origin
from onnxcomp.passes.fusions.reading import Refusal, given, made_by, must_be_float32, only_use, scalar
from onnxcomp.passes.fusions.size import integer
from onnxcomp.passes.fusions.sizes import Sizes

#: what is put into a masked score's place, or added to it, must be so small that the sum is the same
MASKED = -1e30

#: operators that may stand between the softmax and the product with the values
_BETWEEN = {"Cast", "Dropout", "Identity", "IsNaN", "Mul", "Reshape", "Transpose", "Where"}

#: how far a search goes from one mark of the pattern to the next
_FAR = 6


@dataclasses.dataclass(frozen=True)
class Attention:
    """What was found; that it fits the operator is not proven yet.

    Attributes:
        softmax: its mark.
        rank: of the scores; 3 where batch and heads are one axis.
        product: the last node that goes.
        query: (..., S, D).
        key: transposed, (..., D, L).
        value: (..., L, Dv).
        scale: of the scores, those of query and key included.
        masks: added to the scaled scores, in this order.
        replaced: (condition, whether true keeps the score, constant) that take a score's place.
        guarded: whether NaN weights become 0.
    """

    softmax: ir.Node
    rank: int
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
        if user.op_type in _BETWEEN and user not in reached and len(reached) < _FAR:
            reached.add(user)
            users += [further for output in user.outputs for further, _ in output.uses()]
    return False


def match(softmax: ir.Node, sizes: Sizes, opset: int) -> Attention:
    """Read the pattern around a softmax. Raises Refusal."""
    scores, weights = _around(softmax, sizes)
    dims, over = sizes.of(scores), sizes.of(softmax.inputs[0])
    if dims is None or over is None or len(dims) not in (3, 4):
        raise Refusal("the rank of the scores is not known to be 3 or 4")
    if integer(softmax, "axis", -1 if opset >= 13 else 1) not in (-1, len(over) - 1):
        raise Refusal("the softmax is not over the last axis")
    must_be_float32(scores)
    product, guarded = _product(weights)
    scores, masks, replaced = _masks(scores)
    scores, scale = _unscaled(scores, inner=True)
    node = made_by(scores, "MatMul")
    if node is None:
        maker = scores.producer()
        found = "an input of the graph" if maker is None else maker.op_type
        raise Refusal(f"the scores are made by {found}, not by a product of query and key")
    _must_be_inner(scores, "scores")
    query, query_scale = _unscaled(given(node.inputs[0]))
    key, key_scale = _unscaled(given(node.inputs[1]))
    return Attention(
        softmax=softmax,
        rank=len(dims),
        product=product,
        query=query,
        key=key,
        value=given(product.inputs[1]),
        scale=scale * query_scale * key_scale,
        masks=tuple(masks),
        replaced=tuple(replaced),
        guarded=guarded,
    )


def _around(softmax: ir.Node, sizes: Sizes) -> tuple[ir.Value, ir.Value]:
    """The scores and the weights: in models raised from opset 12 the softmax is over a flattened copy."""
    scores, weights = given(softmax.inputs[0]), softmax.outputs[0]
    flatten, use = made_by(scores, "Flatten"), only_use(weights)
    if flatten is None or use is None or only_use(scores) is None:
        return scores, weights
    before, (shaped, index) = given(flatten.inputs[0]), use
    dims = sizes.of(before)
    last = dims is not None and integer(flatten, "axis", 1) in (-1, len(dims) - 1)
    if last and shaped.op_type == "Reshape" and not index and sizes.of(shaped.outputs[0]) == dims:
        return before, shaped.outputs[0]
    return scores, weights


def _must_be_inner(value: ir.Value, what: str) -> tuple[ir.Node, int]:
    use = only_use(value)
    if use is None:
        raise Refusal(f"the {what} ('{value.name}') are used elsewhere too")
    return use


def _product(weights: ir.Value) -> tuple[ir.Node, bool]:
    """(the MatMul of the weights with the values, whether a guard against NaN stands between)."""
    users = {user.op_type: user for user, _ in weights.uses()}
    guarded = set(users) == {"IsNaN", "Where"} and not weights.is_graph_output()
    if guarded:
        guard, test = users["Where"], users["IsNaN"]
        if guard.inputs[0] is not test.outputs[0] or scalar(guard.inputs[1]) != 0 or guard.inputs[2] is not weights:
            raise Refusal("Where and IsNaN after the softmax do something else than replace NaN by 0")
        _must_be_inner(test.outputs[0], "tests for NaN")
        weights = guard.outputs[0]
    user, index = _must_be_inner(weights, "attention weights")
    if user.op_type != "MatMul" or user.domain or index != 0:
        raise Refusal(f"the attention weights go into {user.op_type}, not into a product with the values")
    return user, guarded


def _masks(scores: ir.Value) -> tuple[ir.Value, list[ir.Value], list[tuple[ir.Value, bool, float]]]:
    """Take masks off the scores: what is added, and what takes a score's place."""
    masks: list[ir.Value] = []
    replaced: list[tuple[ir.Value, bool, float]] = []
    while (node := made_by(scores, "Add", "Where")) is not None:
        _must_be_inner(scores, "scores")
        if node.op_type == "Add":
            sides = [side for side in node.inputs if _comes_from_product(side)]
            if len(sides) != 1:
                raise Refusal("it is not clear which operand of the Add is the mask")
            masks.insert(0, given(next(side for side in node.inputs if side is not sides[0])))
            scores = given(sides[0])
            continue
        constants = [scalar(branch) for branch in node.inputs[1:]]
        keeps = constants[0] is None
        constant = constants[1] if keeps else constants[0]
        if constant is None or constants.count(None) != 1:
            raise Refusal("a Where among the scores does not put a constant into a score's place")
        if not constant <= MASKED:
            raise Refusal(f"masked scores become {constant:g}, which does not rule them out in every row")
        replaced.insert(0, (given(node.inputs[0]), keeps, constant))
        scores = given(node.inputs[1 if keeps else 2])
    return scores, masks, replaced


def _comes_from_product(value: ir.Value | None, depth: int = _FAR) -> bool:
    """Whether a value is a MatMul of computed tensors, up to masks and scales."""
    node = made_by(value, "Add", "Div", "MatMul", "Mul", "Where")
    if node is None or not depth:
        return False
    if node.op_type == "MatMul":
        return not any(map(stored_origin, node.inputs))
    return any(_comes_from_product(v, depth - 1) for v in node.inputs)


def _unscaled(value: ir.Value, *, inner: bool = False) -> tuple[ir.Value, float]:
    """Take constant factors off; values `inner` to the pattern must have no other use."""
    scale = 1.0
    while (node := made_by(value, "Mul", "Div")) is not None:
        left, right = (scalar(v) for v in node.inputs)
        if right:
            factor, scaled = right if node.op_type == "Mul" else 1 / right, node.inputs[0]
        elif left and node.op_type == "Mul":
            factor, scaled = left, node.inputs[1]
        else:
            break
        if inner:
            _must_be_inner(value, "scores")
        scale *= factor
        value = given(scaled)
    if not math.isfinite(scale):
        raise Refusal(f"the scores are multiplied by {scale}")
    return value, scale
