"""`smooth`: move outliers of activations into the weights, where eight bits have room for them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.activations import Channels, Rows, observe
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError
from onnxcomp.inspect import MODULE, all_nodes
from onnxcomp.passes.base import Context, Effect, Pass, named, option
from onnxcomp.passes.batchnorm import make_constants
from onnxcomp.passes.quantize import absorb, smoothing
from onnxcomp.passes.quantize.linear import Linear, linear, linears
from onnxcomp.passes.quantize.names import free, initializer

#: rows of each activation on which candidates are judged
_ROWS = 256

#: share of the error that must go: with a multiplication of its own, and where other nodes take in the factors
_WORTH = 0.3
_WORTH_ABSORBED = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smooth(Pass):
    """Divide each channel of an activation and multiply the rows of the matrices behind it by the same factor.

    The outputs stay equal in float; an int8 model made afterwards is more accurate, since a few large
    channels no longer take up the range of all. SmoothQuant (Xiao et al. 2023, arXiv:2211.10438), with
    these differences: the factors are chosen for each activation among 44 candidates (powers of activation
    and weight for several alphas, and factors for the outliers alone) by the error that int8 would cause
    on real rows, of other samples than those that the factors come from; any MatMul and Gemm takes part, not
    only those behind a LayerNormalization. A second run finds nothing to do.

    Rules:
        1. Factors go into stored numbers before, where nothing else sees them, if they take away 5 % of the
           error: into a normalization or a matrix with its bias, through attention into those of the values,
           through Relu and products.
        2. Elsewhere (a residual connection uses the value too; behind Gelu) a Mul is put in front, if it
           takes away 30 % of the error.
        3. Left alone: nodes in `exclude`; with a note, matrices that several nodes use, and nodes of subgraphs
           and local functions.
    """

    name: ClassVar[str] = "smooth"
    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    exclude: tuple[str, ...] = option((), "nodes, or torch modules ('encoder.layer.3'), to leave as they are")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises CalibrationError without data or for NaN and infinity in it, UsageError for an unknown name."""
        if context.data is None:
            raise CalibrationError("smoothing needs data", where="data", hint="give --data")
        context.data.require_real("smoothing")
        make_constants(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        excluded = {node for nodes in named(model, self.exclude).values() for node in nodes}
        groups = _groups(model, excluded, context)
        seen = {name: (Channels(-1), Rows(_ROWS)) for name in groups}
        for half, data in enumerate(_halves(context.data)):
            wanted = {name: [statistics[half]] for name, statistics in seen.items()}
            observe(model, data, wanted, workdir=context.workdir, store=context.store)
        done: list[dict[str, Any]] = []
        for name, group in groups.items():
            channels, rows = seen[name]
            if not channels.count or not len(rows.rows):
                continue
            choice = smoothing.best(channels, rows.rows, [member.matrix() for member in group])
            into = _into(model, group, choice)
            if into is not None:
                done.append(
                    {
                        "nodes": [member.node.name for member in group],
                        "factors": choice.family,
                        "error": round(choice.error, 4),
                        "into": into,
                    }
                )
        details = {
            "smoothed": len(done),
            "of": len(groups),
            "multiplications": sum(entry["into"] == "Mul" for entry in done),
            "groups": done,
        }
        return Effect(bool(done), details)


def _halves(data: Batches) -> tuple[Batches, Batches]:
    """One makes the factors, the other judges them: channels that were made equal saturate sooner on new samples."""
    if data.samples > 1:
        halves = data.split(0.5)
        if all(any(True for _ in half) for half in halves):  # a fixed batch may be larger
            return halves
    return data, data


def _groups(model: ir.Model, excluded: set[str], context: Context) -> dict[str, list[Linear]]:
    """{name of an activation: the linear nodes that read it}."""
    groups: dict[str, list[Linear]] = {}
    for member in linears(model):
        if member.node.name in excluded:
            continue
        if member.shared:
            context.note("not smoothed: its matrix is used elsewhere too", member.node.name or "")
            continue
        groups.setdefault(member.input.name or "", []).append(member)
    for node in all_nodes(model):
        if node.graph is not model.graph and linear(node) is not None:
            context.note("not smoothed: inside a subgraph or a local function", node.name or "")
    return groups


def _into(model: ir.Model, group: list[Linear], choice: smoothing.Choice) -> str | None:
    """Apply the factors; the operator type that takes them in, None when they do not pay."""
    if choice.error > 1 - _WORTH_ABSORBED:
        return None
    value = group[0].input
    uses = {(use.node, use.idx) for use in value.uses()}
    alone = uses == {(member.node, 0) for member in group} and not value.is_graph_output()
    into = absorb.divide(value, choice.factors) if alone else None
    if into is None:
        if choice.error > 1 - _WORTH:
            return None
        into = "Mul"
        _multiply(model, group, choice.factors)
    for member in group:
        member.multiply(choice.factors, axis=0)
    return into


def _multiply(model: ir.Model, group: list[Linear], factors: np.ndarray) -> None:
    """Put one Mul by 1 / factors between the value and the nodes of the group."""
    first = group[0].node
    name = free(model, f"{group[0].input.name}_smooth")
    inverse = initializer(model, f"{name}_factors", ir.Tensor((1 / factors).astype(np.float32)))
    multiply = ir.node("Mul", [group[0].input, inverse], name=name)
    multiply.outputs[0].name = name
    if MODULE in first.metadata_props:
        multiply.metadata_props[MODULE] = first.metadata_props[MODULE]
    model.graph.insert_before(first, multiply)
    for member in group:
        member.node.replace_input_with(0, multiply.outputs[0])
