"""What dynamic and static quantization share: refusals, preparation, and the account of every weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp import runtime
from onnxcomp.errors import GateError, InvalidModelError, NoEffectError, UnsupportedError
from onnxcomp.inspect import Weight, all_nodes, constants, infer_shapes, weights
from onnxcomp.passes import simplify as simplify_pass
from onnxcomp.passes.base import Context, named, transplant
from onnxcomp.passes.opset import upgrade
from onnxcomp.passes.quantize import _ort, embedding

#: per-channel QuantizeLinear exists from here on; ORT writes unloadable files below
_MIN_OPSET = 13

#: weights beyond these magnitudes have scales that float32 cannot hold; they stay in float
_LARGEST, _SMALLEST = 1e30, 1e-30

_FOLD = 1 << 18

_QUANTIZED_OPS = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulInteger", "MatMulIntegerToFloat",
    "MatMulNBits", "QAttention", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
}  # fmt: skip


def prepare(
    model: ir.Model, context: Context, exclude: tuple[str, ...], *, float16: bool = False
) -> tuple[list[str], list[str]]:
    """Make the model fit for the quantizer, in place, and refuse what cannot be quantized.

    `float16`: whether the kernels take such weights.

    Returns the names of nodes to leave in float: those that `exclude` means, and those whose weights
    would break.
    Raises UnsupportedError (already quantized, float16), NoEffectError (no weights),
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
    if not float16 and all(w.tensor.dtype == ir.DataType.FLOAT16 for w in found):
        raise UnsupportedError(
            "the weights are float16, ORT's int8 kernels need float32",
            hint="convert the model to float32 first, or export it so",
        )
    _simplified(model, context, [name for name, nodes in meant.items() if nodes == [name]])
    if upgrade(model, _MIN_OPSET):
        context.note(f"opset raised to {_MIN_OPSET}, per-channel scales need it")
    _name_nodes(model)
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
    """Every weight of a float model, why it may stay in float, and the nodes that must stay so."""

    weights: tuple[Weight, ...]
    reasons: dict[str, str]
    kept: frozenset[str]

    def settle(self, result: ir.Model) -> dict[str, Any]:
        """Compare with the quantized model: the effect's `quantized_weights`, `total_weights`, `skipped`."""
        stored = {v.name for v, t in constants(result) if t.dtype.bitwidth <= 8}
        skipped, quantized, done_bytes, total_bytes = [], 0, 0, 0
        for weight in self.weights:
            name = weight.value.name
            total_bytes += weight.tensor.nbytes
            if stored & {f"{name}_quantized", f"{name}_Transposed_quantized"}:
                self._must_be_wanted(weight)
                quantized += 1
                done_bytes += weight.tensor.nbytes
            else:
                node = weight.node.name or weight.node.op_type
                reason = self.reasons.get(node, "ORT's quantizer left it in float")
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


def account(model: ir.Model, request: _ort.Request, fragile: list[str]) -> Account:
    """The weights of the prepared model with the reasons known beforehand."""
    found = tuple(weights(model))
    reasons = {}
    for weight in found:
        node = weight.node
        name = node.name or node.op_type
        if name in request.exclude and name not in fragile:
            reasons[name] = "excluded by the user"
        elif name in fragile:
            reasons[name] = "weights too large or too small for an int8 scale"
        elif weight.nested:
            reasons[name] = "inside a subgraph (If, Loop, Scan), which ORT's quantizer does not enter"
        elif node.op_type not in request.op_types:
            reasons[name] = f"{node.op_type} is not among the operator types to quantize"
        elif weight.tensor.dtype != ir.DataType.FLOAT:
            reasons[name] = f"weight of type {weight.tensor.dtype.name}"
        elif weight.value is not _direct(weight):
            reasons[name] = "the weight is computed from a stored tensor, not stored itself"
    return Account(found, reasons, frozenset(request.exclude))


def quantize_tables(model: ir.Model, request: _ort.Request) -> None:
    """Tables of embeddings, which ORT's quantizer does worse; see `embedding`."""
    if "Gather" in request.op_types:
        for table in embedding.tables(model, set(request.exclude)):
            embedding.quantize(model, table)


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


def _name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own: the quantizer and the notes speak of nodes by name."""
    taken = {n.name for n in all_nodes(model)}
    seen: set[str] = set()
    for i, node in enumerate(all_nodes(model)):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _fragile(model: ir.Model, context: Context) -> list[str]:
    """Nodes whose weights have no usable int8 scale; NaN and infinity are errors."""
    names = []
    for weight in weights(model):
        if not weight.tensor.dtype.is_floating_point() or weight.tensor.size == 0:
            names.append(weight.node.name or "")
            continue
        array = finite(weight.value, weight.tensor)
        largest = float(np.max(np.abs(array)))
        if largest > _LARGEST or 0 < largest < _SMALLEST:
            context.note(f"left in float: its largest weight is {largest:.3g}", weight.node.name or "")
            names.append(weight.node.name or "")
    return [n for n in names if n]


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


def _direct(weight: Weight) -> ir.Value | None:
    """The weight's own value where the node uses it directly."""
    return weight.value if weight.value in weight.node.inputs else None
