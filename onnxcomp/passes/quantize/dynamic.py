"""`quantize-dynamic`: int8 weights, activations quantized while running; needs no data."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxcomp.passes.base import Context, Effect, Pass, option
from onnxcomp.passes.quantize import _ort, common, integer, shared, tied

#: Conv is left out on purpose: ORT's ConvInteger is 5 to 7 times slower than float
OP_TYPES = ("Gather", "Gemm", "LSTM", "MatMul")

#: what `integer` and `embedding` do
_OURS = {"Gather", "Gemm", "MatMul"}

_SCALED = "a Gemm with alpha, beta or transA"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Store weights in int8 and quantize activations at run time.

    Matrices are rounded one after the other when the model is written: beside it, one of them is in memory.
    Recurrent nets, and Conv where asked for, are left to ORT's quantizer.

    For transformers, MLPs and recurrent nets. Convolutions stay in float unless asked for: ORT
    runs them as ConvInteger, which is far slower; use `quantize-static` for CNNs.
    """

    name: ClassVar[str] = "quantize-dynamic"

    op_types: tuple[str, ...] = option(OP_TYPES, "operator types to quantize")
    exclude: tuple[str, ...] = option((), "nodes, or torch modules ('encoder.layer.3'), to leave in float")
    per_channel: bool = option(True, "one scale per output channel; as fast and more accurate than one per tensor")
    reduce_range: bool | None = option(
        None, "7-bit weights for CPUs without VNNI; unset: decided by this host, and noted"
    )

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises what `common.prepare` raises; NoEffectError when no weight could be quantized."""
        _ort.check_op_types(self.op_types, static=False)
        kept, fragile = common.prepare(model, context, self.exclude)
        request = _ort.Request(
            op_types=self.op_types,
            exclude=(*kept, *fragile),
            per_channel=self.per_channel,
            reduce_range=common.resolve_reduce_range(self.reduce_range, context),
        )
        scaled = _scaled(model)
        request = request.without(scaled)
        ties = shared.untie(model, request)
        ledger = common.account(model, request, fragile, dict.fromkeys(scaled, _SCALED))
        request = request.without(ledger.held_back)
        integer.quantize_products(model, request)
        result = _ort.dynamic(model, request, context) if _others(model, request) else model
        common.quantize_tables(result, request)
        settled = ledger.settle(result, context.notes)
        tied.merge(result, ties)
        common.finish(model, result, settled)
        return Effect(True, {**settled, "reduce_range": request.reduce_range})


def _others(model: ir.Model, request: _ort.Request) -> bool:
    """Whether there are nodes, such as LSTM, that ORT's quantizer has to do."""
    types = set(request.op_types) - _OURS
    return any(n.op_type in types and not n.domain and n.name not in request.exclude for n in model.graph)


def _scaled(model: ir.Model) -> list[str]:
    """Names of the Gemm nodes that are more than a product and a sum: ORT knows no such int8 operator."""
    return [
        node.name or ""
        for node in model.graph
        if node.op_type == "Gemm"
        and not node.domain
        and (
            node.attributes.get_float("alpha", 1.0) != 1.0
            or node.attributes.get_float("beta", 1.0) != 1.0
            or node.attributes.get_int("transA", 0) != 0
        )
    ]
