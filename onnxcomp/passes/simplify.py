"""`simplify`: fold constants and BatchNormalization, drop dead code and duplicates; composed, not written."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.errors import UnsupportedError
from onnxcomp.inspect import all_nodes, constants, op_counts
from onnxcomp.passes.base import Context, Effect, Pass, drop_inner_shapes, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simplify(Pass):
    """Rewrite the graph into an equal, smaller one.

    Rules, all from onnxscript's optimizer and onnx-ir's passes:
        1. Initializers listed as graph inputs (IR 3) become constants.
        2. Local functions are inlined; constant expressions are computed, up to `constant_bytes`.
        3. BatchNormalization is folded into Conv, ConvTranspose and Gemm; no-op nodes go;
           Relu, Clip, Slice, Reshape and Transpose chains are merged.
        4. Constants become initializers; equal initializers and equal subexpressions are merged.
        5. Nodes, functions and initializers that nothing uses are removed.
        6. Shapes of inner values are forgotten (see `base.drop_inner_shapes`).
    """

    name: ClassVar[str] = "simplify"
    exact: ClassVar[bool] = True

    constant_bytes: int = option(1 << 18, "largest constant that folding may create, in bytes")

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


def simplify(model: ir.Model, *, constant_bytes: int) -> None:
    """Run the rewrites in place."""
    from onnxscript import optimizer

    names = [node.name for node in all_nodes(model)]
    try:
        common.RemoveInitializersFromInputsPass()(model)
        optimizer.optimize_ir(model, output_size_limit=constant_bytes)
        common.RemoveUnusedNodesPass()(model)
        drop_inner_shapes(model)
        _drop_traces(model, {name for name in names if name}, len(names))
    except (
        ir.passes.PassError,
        ir.serde.SerdeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        cause = error.__cause__ or error
        raise UnsupportedError(
            f"the optimizer cannot digest this graph: {type(cause).__name__}: {cause}".splitlines()[0],
            where="simplify",
            hint="the model is unchanged; other passes may still work",
        ) from error


def _drop_traces(model: ir.Model, names: set[str], nodes: int) -> None:
    """The rewriter's bookkeeping, and names it gave to the nodes of a model without names, go again."""
    unnamed = len(names) < nodes / 2
    for node in all_nodes(model):
        if unnamed and node.name not in names:
            node.name = ""
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
