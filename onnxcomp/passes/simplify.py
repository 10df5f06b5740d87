"""`simplify`: fold constants and BatchNormalization, drop dead code and duplicates; composed, not written."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.errors import UnsupportedError
from onnxcomp.inspect import all_nodes, constants, content_key, op_counts
from onnxcomp.passes import batchnorm, rewrites
from onnxcomp.passes.base import Context, Effect, Pass, drop_inner_shapes, drop_unused_initializers, option, transplant

_ROUNDS = 8  # a rewrite can make a constant, a constant a rewrite; two or three rounds do

_CONSTANT_BYTES = 1 << 18

#: what onnxscript's optimizer raises for graphs that it cannot read
_INDIGESTIBLE = (ir.passes.PassError, ir.serde.SerdeError, ValueError, KeyError, TypeError, AttributeError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simplify(Pass):
    """Rewrite the graph into an equal, smaller one.

    Rules, from onnxscript's optimizer and onnx-ir's passes (see `passes.rules`, `passes.batchnorm`):
        1. Initializers listed as graph inputs (IR 3) become constants.
        2. Local functions are inlined; constant expressions are computed, up to `constant_bytes`.
        3. BatchNormalization is folded as `fold-batchnorm` does; no-op nodes go, if exactly
           without effect; Relu, Clip, Slice, Reshape, Transpose and Concat chains are merged;
           stored factors and biases go into Mul, Conv and Gemm (see `passes.rewrites`).
        4. Constants become initializers; equal initializers and equal subexpressions are merged.
        5. Nodes, functions and initializers that nothing uses are removed.
        6. Shapes of inner values are forgotten (see `base.drop_inner_shapes`).
    """

    name: ClassVar[str] = "simplify"
    exact: ClassVar[bool] = True

    constant_bytes: int = option(_CONSTANT_BYTES, "largest constant that folding may create, in bytes")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """See the class. Raises UnsupportedError when the optimizer cannot digest the graph."""
        before = _state(model)
        simplify(model, constant_bytes=self.constant_bytes)
        after = _state(model)
        removed = dict(sorted((before.ops - after.ops).items()))
        added = dict(sorted((after.ops - before.ops).items()))
        details: dict[str, Any] = {
            "nodes": {"before": before.ops.total(), "after": after.ops.total()},
            "removed": removed,
            "added": added,
            "initializer_bytes": {"before": before.stored, "after": after.stored},
        }
        return Effect(before != after, details)


def simplify(model: ir.Model, *, constant_bytes: int, trust_shapes: bool = False) -> None:
    """Run the rewrites in place; `trust_shapes` where the shapes of inner values come from the exporter itself."""
    names = [node.name for node in all_nodes(model)]
    makers = _makers(model)
    try:
        batchnorm.make_constants(model)
        if not trust_shapes:
            drop_inner_shapes(model)  # what a file says about them may be wrong
        _rewrite(model, constant_bytes, makers)
        drop_inner_shapes(model)
        _restore_names(model, {name for name in names if name}, makers, nodes=len(names))
    except _INDIGESTIBLE as error:
        cause = error.__cause__ or error
        raise UnsupportedError(
            f"the optimizer cannot digest this graph: {type(cause).__name__}: {cause}".splitlines()[0],
            where="simplify",
            hint="the model is unchanged; other passes may still work",
        ) from error


def fold_constants(model: ir.Model, *, constant_bytes: int = _CONSTANT_BYTES) -> bool:
    """Compute in place what depends on no input, and nothing else; whether anything did.

    A graph that onnxscript's optimizer cannot digest stays as it is.
    """
    from onnxscript import optimizer

    trial = model.clone()
    try:
        folded = optimizer.fold_constants_ir(trial, onnx_shape_inference=True, output_size_limit=constant_bytes)
    except _INDIGESTIBLE:
        return False
    if folded.modified:
        transplant(model, trial)
    return bool(folded.modified)


def _rewrite(model: ir.Model, constant_bytes: int, makers: dict[str, str]) -> None:
    """All rules, until nothing changes; for `makers` see `_fold_normalizations`."""
    from onnxscript import optimizer
    from onnxscript.rewriter import RewritePass

    from onnxcomp.passes.rules import rules

    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        folded = optimizer.fold_constants_ir(model, onnx_shape_inference=True, output_size_limit=constant_bytes)
        normalizations = _fold_normalizations(model, makers)
        rewritten = RewritePass(rules())(model)
        ours = rewrites.rewrite(model)
        _drop_unused(model)
        if not (folded.modified or rewritten.modified or normalizations or ours):
            break
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    _merge_initializers(model)
    for graph in list(model.graphs()):  # onnx-ir looks at the main graph of a model only
        common.CommonSubexpressionEliminationPass()(ir.Model(graph, ir_version=model.ir_version))
    common.OutputFixPass()(model)
    common.NameFixPass()(model)
    _drop_unused(model)


def _fold_normalizations(model: ir.Model, makers: dict[str, str]) -> int:
    """Fold, and let `makers` name the node that a BatchNormalization went into as maker of its output."""
    known = set(makers.values())
    called = {
        node: node.name if node.name in known else makers.get(node.outputs[0].name or "")
        for node in all_nodes(model)
        if node.outputs
    }
    folded, _ = batchnorm.fold(model)
    if folded:
        makers |= {n.outputs[0].name or "": called.get(n) or "" for n in all_nodes(model) if n.outputs}
    return folded


def _merge_initializers(model: ir.Model) -> None:
    """One for equal ones; single numbers take the shortest name, which all their users repeat."""
    held = model.graph.initializers
    shortest: dict[tuple[object, ...], str] = {}
    for name, value in held.items():
        if value.const_value is not None and value.const_value.size == 1:
            key = content_key(value.const_value)
            shortest[key] = min(shortest.get(key, name), name, key=lambda known: (len(known), known))
    common.DeduplicateInitializersPass()(model)
    for value in list(held.values()):
        if (
            value.const_value is None
            or value.const_value.size != 1
            or value.is_graph_output()
            or value.is_graph_input()
        ):
            continue
        shorter = shortest.get(content_key(value.const_value))
        if shorter is not None and shorter not in held:
            value.name = shorter


def _drop_unused(model: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    drop_unused_initializers(model)


def _makers(model: ir.Model) -> dict[str, str]:
    """Name of the node that makes each value."""
    return {v.name: node.name for node in all_nodes(model) if node.name for v in node.outputs if v.name}


def _restore_names(model: ir.Model, names: set[str], makers: dict[str, str], *, nodes: int) -> None:
    """Call a rewritten node what the node was called that made its output: users exclude nodes by name.

    A model without names keeps none, and the rewriter's bookkeeping goes.
    """
    unnamed = len(names) < nodes / 2
    taken = {node.name for node in all_nodes(model)}
    for node in all_nodes(model):
        if node.name not in names:
            name = makers.get(node.outputs[0].name or "", "") if node.outputs else ""
            if unnamed:
                node.name = ""
            elif name and name not in taken:
                node.name = name
                taken.add(name)
        for key in [k for k in node.metadata_props if k.startswith("pkg.onnxscript.")]:
            del node.metadata_props[key]


@dataclasses.dataclass(frozen=True)
class _State:
    ops: collections.Counter[str]
    stored: int
    overridable: int


def _state(model: ir.Model) -> _State:
    names = {value.name for value in model.graph.inputs}
    return _State(
        op_counts(model),
        sum(tensor.nbytes for _, tensor in constants(model)),
        sum(name in names for name in model.graph.initializers),
    )
