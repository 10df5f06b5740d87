"""`fold-batchnorm`: multiply BatchNormalization into the weights before or behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.inspect import all_nodes
from onnxcomp.passes.base import Context, Effect, Pass

_IN_FUNCTION = "inside a local function: inline it first, simplify does"

_INTO = ("Conv", "ConvTranspose", "Gemm")

#: tensors of this many bytes and more are computed when they are written
_LAZY_FROM = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into weights; `simplify` does this too, beside much else.

    Rules:
        1. Behind Conv, ConvTranspose or Gemm: weights and bias are scaled by gamma / sqrt(var + epsilon).
        2. Before a Conv without padding, or a Gemm: likewise; padding would be zeros that the
           BatchNormalization did not shift.
        3. Left, with a note: training mode, statistics or weights that are computed, a weight that
           other nodes use too, a value between the two that is used elsewhere, local functions.

    Computed in float64 and rounded once. onnxscript's rules know the first case alone, fold training
    mode too, fail on an empty bias, and compute in the type of the weights.
    """

    name: ClassVar[str] = "fold-batchnorm"
    exact: ClassVar[bool] = True

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """See the class."""
        make_constants(model)
        folded, left = fold(model)
        for node, reason in left:
            context.note(reason, node)
        details = {
            "folded": folded,
            "batch_normalizations": folded + len(left),
            "skipped": [{"node": node, "reason": reason} for node, reason in left],
        }
        return Effect(folded > 0, details)


def make_constants(model: ir.Model) -> None:
    """Take initializers off the graph's inputs, which IR 3 does not allow: such a model becomes IR 4."""
    common.RemoveInitializersFromInputsPass()(model)
    if model.graph.initializers:
        model.ir_version = max(model.ir_version, 4)


def fold(model: ir.Model) -> tuple[int, list[tuple[str, str]]]:
    """Fold what can be folded, in place: (how many were, [(node, why not)])."""
    folded, left = 0, []
    opset = model.opset_imports.get("", 0)
    inside = {node for function in model.functions.values() for node in function.all_nodes()}
    for node in list(all_nodes(model)):
        if node.op_type == "BatchNormalization" and not node.domain:
            reason = _IN_FUNCTION if node in inside else _fold(node, opset)
            folded += reason is None
            if reason is not None:
                left.append((node.name or node.op_type, reason))
    return folded, left


def _fold(norm: ir.Node, opset: int) -> str | None:
    """Fold one; or why not."""
    affine = _affine(norm, opset)
    if isinstance(affine, str):
        return affine
    before, behind = norm.inputs[0].producer() if norm.inputs[0] is not None else None, _only_user(norm.outputs[0])
    if before is not None and before.op_type in _INTO and not before.domain:
        reason = _refusal(before, norm)
        if reason is None:
            return _scale(before, norm, _Scaling.behind(before, *affine))
    else:
        reason = f"nothing to fold it into: it stands behind {before.op_type if before else 'an input'}"
    if (
        behind is not None
        and behind.op_type in ("Conv", "Gemm")
        and not behind.domain
        and behind.inputs[0] is norm.outputs[0]
    ):
        behind_reason = _refusal_behind(behind, norm)
        if behind_reason is None:
            return _scale(behind, norm, _Scaling.before(behind, *affine))
        return f"{reason}; {behind_reason}"
    return reason


def _affine(norm: ir.Node, opset: int) -> tuple[np.ndarray, np.ndarray] | str:
    """(factor, shift), float64, one each per channel; or why the node is no such function."""
    attributes = norm.attributes
    if attributes.get_int("training_mode", 0) or (opset < 7 and not attributes.get_int("is_test", 0)):
        return "training mode: it normalizes with the statistics of the batch"
    if any(v.uses() or v.is_graph_output() for v in norm.outputs[1:]):
        return "its statistics are used"
    if not attributes.get_int("spatial", 1):
        return "one mean for every pixel (spatial=0)"
    stored = [_stored(v) for v in norm.inputs[1:5]]
    if len(stored) < 4 or any(t is None for t in stored):
        return "its scale, bias, mean or variance is computed"
    gamma, beta, mean, variance = (t.numpy().astype(np.float64) for t in stored if t is not None)
    factor = gamma / np.sqrt(variance + attributes.get_float("epsilon", 1e-5))
    return factor, beta - mean * factor


def _refusal(before: ir.Node, norm: ir.Node) -> str | None:
    value = before.outputs[0]
    if value.is_graph_output() or len(value.uses()) != 1:
        return f"the output of {before.name or before.op_type} is used elsewhere too"
    return _weights_refusal(before, norm)


def _refusal_behind(behind: ir.Node, norm: ir.Node) -> str | None:
    if behind.op_type == "Conv" and not _unpadded(behind):
        return f"{behind.name or 'the Conv'} behind it pads with zeros"
    if behind.op_type == "Gemm" and behind.attributes.get_int("transA", 0) != 0:
        return f"{behind.name or 'the Gemm'} behind it transposes"
    return _weights_refusal(behind, norm)


def _weights_refusal(node: ir.Node, norm: ir.Node) -> str | None:
    for value in node.inputs[1:]:
        if value is not None and (_stored(value) is None or value.is_graph_input() or value.is_graph_output()):
            return f"the weight {value.name} of {node.name or node.op_type} is computed"
    weight = node.inputs[1]
    if weight is None or len(weight.uses()) != 1:
        return f"the weight {weight.name if weight else ''} is used by other nodes too"
    return None if node.graph is norm.graph else "the weights are those of another graph"


def _unpadded(conv: ir.Node) -> bool:
    return conv.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        conv.attributes.get_ints("pads", ())
    )


@dataclasses.dataclass(frozen=True)
class _Scaling:
    """What becomes of a node's weight and bias.

    Attributes:
        weight: new weight from the old one, float64, same shape.
        bias: new bias from (old weight, old bias or 0), float64.
    """

    weight: Callable[[np.ndarray], np.ndarray]
    bias: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @staticmethod
    def behind(node: ir.Node, factor: np.ndarray, shift: np.ndarray) -> _Scaling:
        """The weights of `factor * node(x) + shift`, per output channel."""
        beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
        transposed, groups = node.attributes.get_int("transB", 0), node.attributes.get_int("group", 1)

        def weight(w: np.ndarray) -> np.ndarray:
            if node.op_type == "Gemm":
                return _times(w, factor[:, np.newaxis] if transposed else factor)
            if node.op_type == "Conv":
                return _times(w, factor.reshape(-1, *[1] * (w.ndim - 1)))
            split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
            return _times(split, factor.reshape(groups, 1, -1, *[1] * (w.ndim - 2))).reshape(w.shape)

        return _Scaling(weight, lambda _, b: beta * b * factor + shift)

    @staticmethod
    def before(node: ir.Node, factor: np.ndarray, shift: np.ndarray) -> _Scaling:
        """The weights of `node(factor * x + shift)`, per input channel."""
        if node.op_type == "Gemm":
            alpha, beta = (node.attributes.get_float(key, 1.0) for key in ("alpha", "beta"))
            transposed = node.attributes.get_int("transB", 0)
            return _Scaling(
                lambda w: w * (factor if transposed else factor[:, np.newaxis]),
                lambda w, b: beta * b + alpha * (w @ shift if transposed else shift @ w),
            )
        groups = node.attributes.get_int("group", 1)

        def spread(per_channel: np.ndarray, w: np.ndarray) -> np.ndarray:
            """(outputs, inputs per group, 1, ...): what belongs to each slice of the kernel."""
            rows = np.repeat(per_channel.reshape(groups, -1), w.shape[0] // groups, axis=0)
            return rows.reshape(*w.shape[:2], *[1] * (w.ndim - 2))

        return _Scaling(
            lambda w: w * spread(factor, w),
            lambda w, b: b + (w * spread(shift, w)).sum(axis=tuple(range(1, w.ndim))),
        )


def _scale(node: ir.Node, norm: ir.Node, scaling: _Scaling) -> str | None:
    """Store the new weights and take the BatchNormalization out; or why they cannot be stored."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    old, old_bias = _stored(weight), _stored(bias)
    assert weight is not None
    assert old is not None
    dtype = old.dtype.numpy()
    wide = old.numpy().astype(np.float64)
    new_bias = scaling.bias(wide, np.zeros(1) if old_bias is None else old_bias.numpy().astype(np.float64))
    limit = float(np.finfo(dtype).max) if dtype.kind == "f" else np.inf
    if not (np.abs(new_bias).max() <= limit and np.abs(scaling.weight(wide)).max() <= limit):
        return f"the folded weights of {node.name or node.op_type} do not fit {old.dtype.name.lower()}"

    def make() -> ir.TensorProtocol:
        scaled = scaling.weight(old.numpy().astype(np.float64))
        return ir.Tensor(scaled.astype(dtype), name=old.name, dtype=old.dtype)

    large = old.nbytes >= _LAZY_FROM
    _store(weight, ir.LazyTensor(make, old.dtype, ir.Shape(old.shape.numpy()), name=old.name) if large else make())
    _set_bias(node, bias, ir.Tensor(new_bias.astype(dtype), dtype=old.dtype))
    if "beta" in node.attributes:
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    _take_out(node, norm)
    return None


def _set_bias(node: ir.Node, bias: ir.Value | None, tensor: ir.TensorProtocol) -> None:
    if bias is not None and len(bias.uses()) == 1:
        _store(bias, tensor)
        bias.shape = ir.Shape(tensor.shape.numpy())
        return
    graph, weight = node.graph, node.inputs[1]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    name = f"{weight.name}_bias"
    while name in graph.initializers or any(v.name == name for n in graph for v in n.outputs):
        name += "_"
    made = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    graph.register_initializer(made)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, made)


def _take_out(node: ir.Node, norm: ir.Node) -> None:
    """The value in front of the BatchNormalization takes the place and name of the one behind it."""
    source, made = norm.inputs[0], norm.outputs[0]
    assert source is not None
    assert norm.graph is not None
    name = made.name
    ir.convenience.replace_all_uses_with(made, source, replace_graph_outputs=True)
    if source is node.outputs[0]:  # folded into the node before it
        made.name, source.name = f"{name}_normalized", name
        source.type, source.shape = made.type or source.type, made.shape or source.shape
    norm.graph.remove(norm, safe=True)


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value if value.is_initializer() else None
    if producer.op_type != "Constant" or "value" not in producer.attributes:
        return None
    return producer.attributes["value"].as_tensor()


def _store(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
    value.const_value = tensor


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product: np.ndarray = a * b
    return product


def _only_user(value: ir.Value) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None
