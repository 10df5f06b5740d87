"""What dynamic and static quantization share: refusals, preparation, and the account of every weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp import runtime
from onnxcomp.errors import GateError, InvalidModelError, NoEffectError, UnsupportedError
from onnxcomp.inspect import Weight, all_nodes, constants, infer_shapes, weights
from onnxcomp.passes import simplify as simplify_pass
from onnxcomp.passes.base import Context, Note, drop_inner_shapes, named, transplant
from onnxcomp.passes.opset import upgrade
from onnxcomp.passes.quantize import _ort, embedding, shared
from onnxcomp.passes.quantize._uses import users
from onnxcomp.passes.quantize.names import name_nodes, set_apart
from onnxcomp.passes.quantize.unfuse import unfuse
from onnxcomp.passes.quantize.widen import NARROW, widen

#: per-channel QuantizeLinear exists from here on; ORT writes unloadable files below
_MIN_OPSET = 13

#: weights beyond these magnitudes have scales that float32 cannot hold; they stay in float
_LARGEST, _SMALLEST = 1e30, 1e-30

_FOLD = 1 << 18

#: operators whose third input is a bias, which is quantized too
_BIASED = {"Conv", "ConvTranspose", "Gemm"}

_QUANTIZED_OPS = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulInteger", "MatMulIntegerToFloat",
    "MatMulNBits", "QAttention", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
}  # fmt: skip


def prepare(
    model: ir.Model, context: Context, exclude: tuple[str, ...], *, float16: bool = False
) -> tuple[list[str], list[str]]:
    """Make the model fit for the quantizer, in place, and refuse what cannot be quantized.

    `float16`: whether the kernels take such weights; otherwise such a model becomes float32 inside.

    Returns the names of nodes to leave in float: those that `exclude` means, and those whose weights
    would break.
    Raises UnsupportedError (already quantized, names that clash), NoEffectError (no weights),
    InvalidModelError (NaN or infinite weights), UsageError (an unknown node in `exclude`).
    """
    done = sorted({n.op_type for n in all_nodes(model)} & _QUANTIZED_OPS)
    if done:
        raise UnsupportedError(
            f"the model is quantized already (it has {', '.join(done)})", hint="start from the float model"
        )
    meant = named(model, exclude)
    found = weights(model)
    if not found:
        raise NoEffectError(
            "0 of 0 weights: nothing to quantize in this model",
            hint="its numbers are not weights of Conv, MatMul, Gemm, Gather or recurrent operators",
        )
    if not float16 and (narrow := sorted({w.tensor.dtype.name.lower() for w in found if w.tensor.dtype in NARROW})):
        widen(model)
        context.note(f"made float32 inside first: ORT's int8 kernels take no {' or '.join(narrow)}")
    unfuse(model)
    _simplified(model, context, [name for name, nodes in meant.items() if nodes == [name]])
    if upgrade(model, _MIN_OPSET):
        context.note(f"opset raised to {_MIN_OPSET}, per-channel scales need it")
    name_nodes(model)
    set_apart(model)
    if any(node.domain for node in all_nodes(model)):
        infer_shapes(model)  # ORT's quantizer asks onnx alone, which knows no output of fused attention
    kept = [node for nodes in named(model, exclude).values() for node in nodes]
    return kept, _fragile(model, context)


def resolve_reduce_range(asked: bool | None, context: Context) -> bool:
    """7-bit weights where this host's int8 kernels saturate, unless the user said."""
    if asked is not None:
        return asked
    if not runtime.saturates_int8():
        return False
    context.note(
        "this CPU has no VNNI: weights are kept in 7 bits (reduce_range), since its int8 kernels saturate; "
        "on a CPU with VNNI reduce_range = false is as fast and a little more accurate"
    )
    return True


@dataclasses.dataclass(frozen=True)
class Account:
    """Every weight of a float model, why it may stay in float, and the nodes that must stay so.

    Attributes:
        reasons: {node: reason}.
        kept: nodes that were to stay in float before any weight was looked at.
        held_back: nodes that stay in float because others keep their weight in float.
    """

    weights: tuple[Weight, ...]
    reasons: dict[str, str]
    kept: frozenset[str]
    held_back: tuple[str, ...] = ()

    def settle(self, result: ir.Model, notes: Sequence[Note] = ()) -> dict[str, Any]:
        """Compare with the quantized model: the effect's `quantized_weights`, `total_weights`, `skipped`.

        `notes`: of the pass so far; what they say about a node is its reason where none was known.
        """
        stored = {v.name for v, t in constants(result) if t.dtype.bitwidth <= 8}
        noted = {note.node: note.reason for note in notes}
        skipped, quantized, done_bytes, total_bytes = [], 0, 0, 0
        for weight in self.weights:
            name = weight.value.name
            total_bytes += weight.tensor.nbytes
            if f"{name}_quantized" in stored:
                self._must_be_wanted(weight)
                quantized += 1
                done_bytes += weight.tensor.nbytes
            else:
                node = weight.node.name or weight.node.op_type
                reason = self.reasons.get(node) or noted.get(node, "ORT's quantizer left it in float")
                skipped.append({"node": node, "reason": reason})
        return {
            "quantized_weights": quantized,
            "total_weights": len(self.weights),
            "quantized_weight_bytes": done_bytes,
            "total_weight_bytes": total_bytes,
            "skipped": skipped,
        }

    def _must_be_wanted(self, weight: Weight) -> None:
        """ORT quantizes excluded nodes without a word when it does not recognize their names."""
        node = weight.node.name or weight.node.op_type
        users = {user.name for user, _ in weight.value.uses()}
        if node in self.kept and users <= self.kept:
            raise GateError("the quantizer did not leave an excluded node in float", where=f"node {node}")


def account(
    model: ir.Model, request: _ort.Request, fragile: list[str], others: Mapping[str, str] | None = None
) -> Account:
    """The weights of the prepared model with the reasons known beforehand.

    `others`: {node: why} of those that `request` excludes for other reasons than the user's wish.
    """
    found = tuple(weights(model))
    held_back = shared.held_back(model, request)
    others = {**(others or {}), **held_back}
    reasons: dict[str, str] = {}
    for weight in found:
        node = weight.node
        name = node.name or node.op_type
        reason = _reason(weight, request) or others.get(name)
        if name in fragile:
            reasons[name] = _unfit(weight) or reasons.get(name, "its node holds another weight that cannot be int8")
        elif name in request.exclude and name not in others:
            reasons[name] = "excluded by the user"
        elif reason:
            reasons[name] = reason
    return Account(found, reasons, frozenset(request.exclude), tuple(held_back))


def _reason(weight: Weight, request: _ort.Request) -> str | None:
    """What keeps a weight in float, as far as its own node tells."""
    node = weight.node
    if weight.nested:
        return "inside a subgraph (If, Loop, Scan), which ORT's quantizer does not enter"
    if node.domain or node.op_type not in request.op_types:
        return f"{node.op_type} is not among the operator types to quantize"
    if weight.tensor.dtype != ir.DataType.FLOAT:
        return f"weight of type {weight.tensor.dtype.name}"
    if weight.value not in node.inputs:
        return "the weight is computed from a stored tensor, not stored itself"
    if node.op_type in ("Gemm", "MatMul") and node.inputs[1] is not weight.value:
        return f"it is not the second factor of the {node.op_type}"
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0:
        return "Gather along another axis than the first of a stored table"
    return None


def quantize_tables(model: ir.Model, request: _ort.Request) -> None:
    """Tables of embeddings, which ORT's quantizer does worse; see `embedding`.

    After all else: ORT's quantizer takes nothing that a DequantizeLinear makes.
    """
    if "Gather" in request.op_types:
        for table in embedding.tables(model, set(request.exclude)):
            embedding.quantize(model, table)
        drop_inner_shapes(model)


def finish(model: ir.Model, result: ir.Model, settled: dict[str, Any]) -> None:
    """Put the result (which may be `model` itself) into `model`; raise NoEffectError when nothing was quantized."""
    if not settled["quantized_weights"]:
        reasons = sorted({s["reason"] for s in settled["skipped"]})
        raise NoEffectError(
            f"0 of {settled['total_weights']} weights quantized: {'; '.join(reasons)}",
            hint="choose other --op-types or another mode",
        )
    if result is not model:
        transplant(model, result)


def _simplified(model: ir.Model, context: Context, exclude: list[str]) -> None:
    """Fold constants and BatchNormalization, so that weights are where the quantizer looks."""
    trial = model.clone()
    try:
        simplify_pass.simplify(trial, constant_bytes=_FOLD)
    except UnsupportedError as error:
        context.note(f"not simplified first: {error.message}")
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        return
    left = {n.name for n in all_nodes(trial)}
    if not set(exclude) <= left:
        gone = sorted(set(exclude) - left)
        context.note(f"not simplified first: it would remove the excluded node {gone[0]}")
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        return
    transplant(model, trial)


def _fragile(model: ir.Model, context: Context) -> list[str]:
    """Nodes whose weights have no usable int8 scale; NaN and infinity are errors."""
    names: dict[str, None] = {}
    for weight in weights(model):
        reason = _unfit(weight)
        if reason:
            if weight.tensor.dtype.is_floating_point() and weight.tensor.size:
                context.note(f"left in float: {reason}", weight.node.name or "")
            names.update(dict.fromkeys(node.name or "" for node, _, _ in users(weight.value)))
    for node in model.graph:
        bias = node.inputs[2] if node.op_type in _BIASED and not node.domain and len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None and bias.producer() is None:
            finite(bias, bias.const_value)
    return [name for name in names if name]


def _unfit(weight: Weight) -> str | None:
    """Why a weight has no int8 form at all. Raises InvalidModelError for NaN and infinity."""
    if not weight.tensor.dtype.is_floating_point():
        return f"weight of type {weight.tensor.dtype.name}"
    if weight.tensor.size == 0:
        return "the weight has no elements"
    largest = float(np.max(np.abs(finite(weight.value, weight.tensor))))
    if largest > _LARGEST or 0 < largest < _SMALLEST:
        return f"weights too large or too small for an int8 scale: the largest is {largest:.3g}"
    return None


def finite(value: ir.Value, tensor: ir.TensorProtocol) -> np.ndarray:
    """The numbers of a weight. Raises InvalidModelError for NaN and infinity."""
    array = tensor.numpy()
    good = np.isfinite(array)
    if not np.all(good):
        where = np.unravel_index(int(np.argmin(good)), array.shape)
        raise InvalidModelError(
            "a weight holds NaN or infinity",
            where=f"tensor {value.name}, index {tuple(int(i) for i in where)}",
            hint="the training diverged, or the file is damaged",
        )
    return array
