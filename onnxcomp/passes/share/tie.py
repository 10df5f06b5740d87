"""`tie-initializers`: what is stored twice is stored once."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir

from onnxcomp.passes.base import Context, Effect, Pass
from onnxcomp.passes.share import contents, turn, values

_MEMORY = (
    "the file and its download are smaller; a session takes as much memory as before, for ORT makes a copy of its own "
    "of what each node multiplies with"
)

#: IR version from which a caller may override an initializer that is an input too
_OVERRIDABLE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TieInitializers(Pass):
    """Store equal tensors once, and a matrix and its transpose once. Smaller files; sessions take the same memory.

    Rules:
        1. Tensors of one type, shape and content become one initializer of the main graph, those of subgraphs and
           Constant nodes too. It keeps its name, unless another value inside a subgraph has the same.
        2. A matrix that is the transpose of another goes if all its readers can read the other: Gemm turns transA
           or transB, a Transpose of it goes, and MatMul reads a Transpose of the other, which ORT computes at load:
           it then holds what it held before, and every other pass sees a MatMul with a stored weight. (FusedMatMul
           would need no Transpose, but neither quantize nor prune can do anything with it, or with the table.)
        3. Left alone: outputs of a graph, initializers that a caller may override, and what local functions store.

    Tensors are compared byte by byte, a piece at a time, and only those with the same type and shape.
    """

    name: ClassVar[str] = "tie-initializers"
    exact: ClassVar[bool] = True

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """See the class."""
        groups = _tie_equal(model)
        pairs, refused = _tie_turned(model)
        if any(node.op_type == "Constant" for function in model.functions.values() for node in function.all_nodes()):
            context.note("what local functions store stays as it is: they see no initializer; simplify inlines them")
        if groups or pairs:
            context.note(_MEMORY)
        details: dict[str, Any] = {
            "tied": sum(len(group["removed"]) for group in groups) + len(pairs),
            "bytes_saved": sum(group["bytes"] for group in (*groups, *pairs)),
            "groups": groups,
            "transposed": pairs,
            "refused": refused,
        }
        return Effect(bool(groups or pairs), details)


def _tie_equal(model: ir.Model) -> list[dict[str, Any]]:
    """`{kept, removed, bytes}` of each group of equal tensors; `bytes` are those of the removed."""
    found = _stored(model)
    made = []
    for group in contents.equal([_tensor(value) for value in found]):
        kept, *others = (found[i] for i in group)
        home = _at_home(model, kept)
        names = [value.name or "" for value in others]
        for value in others:
            value.replace_all_uses_with(home)
            values.remove(value)
        size = _tensor(home).nbytes * len(others)
        made.append({"kept": home.name, "removed": names, "bytes": size})
    return made


def _tie_turned(model: ir.Model) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """As `_tie_equal`, for transposes; and `{node, reason}` of the readers that cannot do without one."""
    found = _stored(model)
    pairs = contents.turned([_tensor(value) for value in found])
    if not pairs:
        return [], []
    made, refused = [], []
    for first, second in pairs:
        ways = {(first, second): _unable(found[second]), (second, first): _unable(found[first])}
        able = [way for way, why in ways.items() if why is None]
        if not able:
            refused += [why for why in ways.values() if why][:1]
            continue
        # the one that goes without a Transpose in its place, if there is one
        kept, goes = next((pair for pair in able if _freely(found[pair[1]])), able[0])
        home, stored = _at_home(model, found[kept]), found[goes]
        name = stored.name or ""
        turn.read_turned(model, stored, home)
        values.remove(stored)
        made.append({"kept": home.name, "removed": [name], "bytes": _tensor(home).nbytes})
    return made, refused


def _stored(model: ir.Model) -> list[ir.Value]:
    """What may be tied: initializers of the main graph, then those of subgraphs and outputs of Constant nodes."""
    found = [
        value for graph in model.graphs() for value in graph.initializers.values() if not _overridable(model, value)
    ]
    nodes = (node for node in model.graph.all_nodes() if node.op_type == "Constant" and not node.domain)
    found += [node.outputs[0] for node in nodes if "value" in node.attributes]
    return [value for value in found if value.uses() and not value.is_graph_output() and _may_tie(value)]


def _overridable(model: ir.Model, value: ir.Value) -> bool:
    """Whether a caller may feed it; IR 3 lists all initializers among the inputs, where none can be."""
    return value.is_graph_input() and (value.graph is not model.graph or model.ir_version >= _OVERRIDABLE)


def _may_tie(value: ir.Value) -> bool:
    """Whether there is something to save; a string in a Constant cannot become an initializer that is read late."""
    if value.producer() is None and value.const_value is None:
        return False
    tensor = _tensor(value)
    return tensor.nbytes > 0 and (tensor.dtype != ir.DataType.STRING or value.producer() is None)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    node = value.producer()
    tensor = value.const_value if node is None else node.attributes["value"].as_tensor()
    assert tensor is not None
    return tensor


def _at_home(model: ir.Model, value: ir.Value) -> ir.Value:
    """The value, or one in its place, as an initializer of the main graph whose name nothing in a subgraph hides."""
    names = collections.Counter(values.names(model))
    name = value.name or "tied"
    while names[name] > (name == value.name):
        name += "_"
    if value in model.graph.initializers.values():
        if name != value.name:
            value.name = name
        return value
    tensor = _tensor(value)
    # the tensor of a Constant is the source's too, and an initializer gives its name to what it holds
    shape = ir.Shape(tensor.shape.numpy())
    own = ir.LazyTensor(lambda: tensor, tensor.dtype, shape, name=name) if value.producer() else tensor
    home = ir.Value(name=name, const_value=own, type=ir.TensorType(tensor.dtype), shape=shape)
    value.replace_all_uses_with(home)
    values.remove(value)
    model.graph.register_initializer(home)
    return home


def _unable(stored: ir.Value) -> dict[str, str] | None:
    """`{node, reason}` of a reader that cannot read the transpose instead; None where all can."""
    for node, index in stored.uses():
        why = turn.why_not(node, index, stored)
        if why:
            return {"node": node.name or node.op_type, "reason": f"'{stored.name}' is a transpose of another: {why}"}
    return None


def _freely(stored: ir.Value) -> bool:
    return all(turn.turns_freely(node, index) for node, index in stored.uses())
