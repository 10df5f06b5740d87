"""`correct-bias`: take the mean error that int8 weights will cause out of the biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.activations import Channels, observe
from onnxcomp.errors import CalibrationError, UsageError, nearest
from onnxcomp.inspect import all_nodes
from onnxcomp.passes.base import Context, Effect, Pass, named, option
from onnxcomp.passes.batchnorm import fold, make_constants
from onnxcomp.passes.quantize.common import resolve_reduce_range
from onnxcomp.passes.quantize.layers import Layer, add_to_bias, layers

#: `quantize-dynamic` leaves Conv in float
OP_TYPES = ("Conv", "Gemm", "MatMul")

_TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Rounded weights shift the mean of each output; a bias can shift it back for nothing.

    The bias of a channel changes by -(W_int8 - W) E[x], with the mean of the inputs on real data; W_int8 is what
    `quantize-dynamic` or `quantize-static` will make, run it before these with the same `op_types`,
    `per_channel` and `reduce_range`: where a weight then stays in float, the mean is off by as much.
    Nagel et al. 2019 (arXiv:1906.04721), section 4.2, with measured means.

    Rules:
        1. Conv, Gemm, and MatMul with an Add of a stored bias. A Conv without a bias gets one.
        2. BatchNormalization is folded first, unless one is in `exclude` by its name.
        3. Left alone: weights that several nodes use, with a note; nodes in `exclude`; subgraphs.
    """

    name: ClassVar[str] = "correct-bias"
    needs_data: ClassVar[bool] = True

    op_types: tuple[str, ...] = option(OP_TYPES, "operator types that will be quantized")
    per_channel: bool = option(True, "one scale per output channel instead of one per tensor")
    reduce_range: bool | None = option(None, "7-bit weights for CPUs without VNNI; unset: decided by this host")
    exclude: tuple[str, ...] = option((), "nodes, or torch modules ('encoder.layer.3'), to leave as they are")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises CalibrationError without data or for NaN and infinity in it, UsageError for what is unknown."""
        effect = correct(model, self.measure(model, context))
        return Effect(effect["corrected"] > 0, effect)

    def measure(self, model: ir.Model, context: Context) -> dict[str, np.ndarray]:
        """{name of a weight: what to add to the bias, float64, (out,)}; the model is made ready for it, in place.

        Raises as `apply`.
        """
        for op in self.op_types:
            if op not in OP_TYPES:
                hint = nearest(op, OP_TYPES) or f"it has them for {', '.join(OP_TYPES)}"
                raise UsageError(f"correct-bias has no rule for the operator type '{op}'", where="op_types", hint=hint)
        if context.data is None:
            raise CalibrationError("correcting biases needs data", where="data", hint="give --data")
        context.data.require_real("correcting biases")
        make_constants(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        meant = named(model, self.exclude)
        excluded = {node for nodes in meant.values() for node in nodes}
        # the quantizer, too, lets stand what is excluded by name, and needs to find it
        if not any(n.op_type == "BatchNormalization" and meant.get(n.name or "") == [n.name] for n in all_nodes(model)):
            fold(model)
        found = [n for n in layers(model) if n.node.op_type in self.op_types and n.node.name not in excluded]
        for layer in found:
            if layer.shared:
                context.note("not corrected: other nodes use its weight too", layer.node.name or "")
        found = [layer for layer in found if not layer.shared]
        # ORT's 7-bit weights reach from -64 to 64
        top = 64 if resolve_reduce_range(self.reduce_range, context) else 127
        means = {(layer.input.name or "", layer.axis): Channels(layer.axis) for layer in found}
        wanted: dict[str, list[Channels]] = {}
        for (name, _), channels in means.items():
            wanted.setdefault(name, []).append(channels)
        observe(model, context.data, wanted, workdir=context.workdir, store=context.store)
        changes = {}
        for layer in found:
            seen = means[layer.input.name or "", layer.axis]
            change = _shift(layer, seen, top, per_channel=self.per_channel) if seen.count else np.zeros(1)
            changes[layer.stored.name or ""] = change
        return changes


def correct(model: ir.Model, changes: Mapping[str, np.ndarray], left: Collection[str] = ()) -> dict[str, Any]:
    """Add what `CorrectBias.measure` found to the biases, without those of the nodes `left`; the effect's details."""
    done: list[dict[str, Any]] = []
    for layer in list(layers(model)):
        change = changes.get(layer.stored.name or "")
        if change is None or layer.node.name in left or not np.any(change):
            continue
        if add_to_bias(model, layer, change):
            done.append({"node": layer.node.name, "largest": float(np.abs(change).max())})
    return {"corrected": len(done), "of": len(changes), "layers": done}


def _shift(layer: Layer, seen: Channels, top: int, *, per_channel: bool) -> np.ndarray:
    """What the outputs lose on average when the weight is rounded: float64, (out,)."""
    matrix = layer.matrix()
    peak = np.maximum(matrix.max(axis=0), -matrix.min(axis=0))
    scale = np.maximum((peak if per_channel else peak.max()) / np.float32(top), _TINY)
    stored = matrix / scale
    np.rint(stored, out=stored)
    stored *= scale
    return layer.mean_output(seen.mean, np.subtract(matrix, stored, out=stored))
