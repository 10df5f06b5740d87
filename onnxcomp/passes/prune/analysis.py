"""What can be cut from a model: units, the groups of alike units, and the reasons for what stays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import WEIGHT_INPUTS, stored_origin
from onnxcomp.passes.fusions.sizes import Sizes
from onnxcomp.passes.prune.atoms import Atoms, Axis, RefusedError
from onnxcomp.passes.prune.rules import linear, moving, reshape
from onnxcomp.passes.prune.shapes import keep_read_sizes
from onnxcomp.passes.prune.units import CONVOLUTIONS, Group, find_groups

_RULES = {**linear.RULES, **moving.RULES}
_RESHAPES = {"Flatten", "Reshape"}

#: they read the type or the sizes of an input, not what it holds
_NOT_ELEMENTS = {"CastLike", "Shape", "Size"}

_RECURRENT = {"GRU", "LSTM", "RNN"}


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The units of a model.

    Attributes:
        model: what was analysed; values and nodes here are its own.
        atoms: of its axes.
        labels: of each atom, equal where atoms go together: int64, (atoms,).
        groups: in the order of the model.
        refused: (node, reason) of what stays, each node once.
    """

    model: ir.Model
    atoms: Atoms
    labels: np.ndarray
    groups: tuple[Group, ...]
    refused: tuple[tuple[str, str], ...]

    @functools.cached_property
    def group_of(self) -> np.ndarray:
        """For each label the index of its group, or -1: int64, (labels,)."""
        found = np.full(int(self.labels.max(initial=-1)) + 1, -1)
        for index, group in enumerate(self.groups):
            found[group.units] = index
        return found

    def axis_labels(self, value: ir.Value, axis: int) -> np.ndarray:
        """The label of each index of an axis: int64, (size,); empty where the axis has no atoms."""
        found: np.ndarray = self.labels[self.atoms.axis(value, axis).atoms]
        return found

    def units_of(self, group: Group, value: ir.Value, axis: int) -> np.ndarray:
        """For each index of an axis the unit of the group that it belongs to, or -1: int64, (size,)."""
        labels = self.axis_labels(value, axis)
        order = np.argsort(group.units)
        places = np.searchsorted(group.units[order], labels)
        places = order[np.minimum(places, len(order) - 1)]
        found: np.ndarray = np.where(group.units[places] == labels, places, -1)
        return found


def analyse(model: ir.Model, excluded: Collection[str] = ()) -> Analysis:
    """Find the units of a model whose constants are initializers; shapes are inferred in place.

    What nodes with a name of `excluded` read and write stays.
    """
    sizes = Sizes(model)
    atoms = Atoms(sizes, opset=model.opset_imports.get("", 1))
    runs: list[reshape.Run] = []
    for node in model.graph:
        runs += _apply(atoms, node)
        if node.name in excluded:
            atoms.freeze_node(node, "it is excluded", understood=True)
    keep_read_sizes(atoms, model.graph)
    _freeze_ends(atoms, model)
    labels, stays = reshape.choose(atoms, runs)
    groups = find_groups(model, atoms, labels, stays)
    return Analysis(model, atoms, labels, groups, _refused(model, atoms, labels, stays))


def _apply(atoms: Atoms, node: ir.Node) -> list[reshape.Run]:
    """Run the rule of a node; the Reshapes that need a choice."""
    atoms.node = node
    atoms.touched.clear()
    mark, uses = atoms.mark(), len(atoms.uses)
    runs: list[reshape.Run] = []
    try:
        if node.domain or not (node.op_type in _RULES or node.op_type in _RESHAPES):
            raise RefusedError(_no_rule(node))
        if node.op_type in _RESHAPES:
            runs = reshape.reshape(atoms, node)
        else:
            _RULES[node.op_type](atoms, node)
    except RefusedError as refused:
        atoms.rewind(mark)
        del atoms.uses[uses:]
        atoms.freeze_node(node, str(refused), understood=False)
        return []
    for value in node.inputs if node.op_type not in _NOT_ELEMENTS else ():
        if value is not None and value not in atoms.touched:
            atoms.freeze(value, None, f"{node.op_type} reads it as a setting")
    return runs


def _no_rule(node: ir.Node) -> str:
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return f"{kind} runs a subgraph, which is not looked into"
    if node.op_type in _RECURRENT:
        return f"{kind} is recurrent: its state would have to be cut with it"
    if node.op_type in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
        return f"{kind} hides heads: prune before fusing"
    if node.domain.startswith("com.microsoft"):
        return f"{kind} is fused: prune the model before ONNX Runtime's optimizer has rewritten it"
    return f"no rule for {kind}"


def _freeze_ends(atoms: Atoms, model: ir.Model) -> None:
    """Inputs, outputs, whatever holds no floats, and what bodies of subgraphs read."""
    graph = model.graph
    atoms.node = None
    for value in graph.inputs:
        atoms.freeze(value, None, f"it is the input '{value.name}'")
    for value in graph.outputs:
        atoms.freeze(value, None, f"it reaches the output '{value.name}'")
    for value in graph.initializers.values():
        atoms.known_axes(value)  # also of those that no node reads
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
            atoms.freeze(value, None, "it holds no floating-point numbers")
    own = set(graph)
    for node in graph.all_nodes():
        if node not in own:
            for read in node.inputs:
                if read is not None and read.graph is graph:
                    atoms.freeze(read, None, "the body of an If, Loop or Scan reads it")


def _refused(model: ir.Model, atoms: Atoms, labels: np.ndarray, stays: np.ndarray) -> tuple[tuple[str, str], ...]:
    """Nodes that onnxcomp has no rule for, and nodes that make channels none of which can go."""
    found: dict[str, str] = {}
    for cause in atoms.causes:
        if not cause.understood:
            found.setdefault(cause.node, cause.reason)
    for node in model.graph:
        indices = WEIGHT_INPUTS.get((node.domain, node.op_type), ())
        if node.op_type == "Gather" or not any(stored_origin(v) for v in map(node.inputs.__getitem__, indices)):
            continue
        name = node.name or node.outputs[0].name or node.op_type
        axis = _made_axis(atoms, node)
        if axis is None or not axis.count or name in found:
            continue
        reasons = stays[labels[axis.atoms]]
        if np.all(reasons >= 0):
            cause = atoms.causes[int(reasons.min())]
            beside = f" at {cause.node}" if cause.node and cause.node != name else ""
            found[name] = f"its channels stay{beside}: {cause.reason}"
    return tuple(found.items())


def _made_axis(atoms: Atoms, node: ir.Node) -> Axis | None:
    dims = atoms.sizes.of(node.outputs[0]) if node.outputs else None
    index = 1 if node.op_type in CONVOLUTIONS else len(dims or ()) - 1
    return None if not dims or len(dims) <= index else atoms.axis(node.outputs[0], index)
