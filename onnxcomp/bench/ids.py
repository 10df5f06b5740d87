"""Which whole numbers a model's inputs take, read from its graphs, so that noise does not leave its tables.

An id that is looked up must be below the size of its table. Where an input goes is followed through
what only moves numbers (Cast, Unsqueeze, Where, ...), into subgraphs and local functions, and out of them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp.data import Whole
from onnxcomp.inspect import infer_shapes, stored_origin
from onnxcomp.model import InputSpec

#: operators that hand on the numbers of these inputs as they are; None: of all
_MOVES: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Cast", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Transpose", "Flatten"), (0,)),
    **dict.fromkeys(("Expand", "Slice", "Tile", "Split", "Gather", "GatherND", "GatherElements", "Pad"), (0,)),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "TopK", "Compress", "Unique", "ReverseSequence"), (0,)),
    "Where": (1, 2),
    "Concat": None,
    "Max": None,
    "Min": None,
}

#: operators after which a stored tensor has the shape that it had
_KEEP_SHAPE = ("Constant", "Cast", "Identity", "DequantizeLinear")

#: operators that look up: (index of the ids, index of the table, attribute with the axis, axis without it)
_LOOKUPS: Mapping[tuple[str, str], Sequence[tuple[int, int, str, int]]] = {
    ("", "Gather"): [(1, 0, "axis", 0)],
    ("", "GatherElements"): [(1, 0, "axis", 0)],
    ("", "ScatterElements"): [(1, 0, "axis", 0)],
    ("com.microsoft", "GatherBlockQuantized"): [(1, 0, "gather_axis", 0)],
    ("com.microsoft", "EmbedLayerNormalization"): [(0, 2, "", 0), (1, 4, "", 0), (8, 3, "", 0)],
}

_MOST_CLASSES = 1 << 20

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


def whole_numbers(paths: Sequence[str | os.PathLike[str]], inputs: Sequence[InputSpec]) -> dict[str, Whole]:
    """What the inputs of whole numbers take in all of these models; inputs of which nothing is known are left out.

    Args:
        paths: models with the same inputs.
        inputs: of the first of them.

    Raises what `onnxcomp.model.load` raises.
    """
    names = [spec.name for spec in inputs if spec.dtype in _INTEGERS]
    found: dict[str, Whole] = {name: Whole(mask=True) for name in names if "mask" in name.lower()}
    for path in paths if len(found) < len(names) else ():
        with warnings.catch_warnings():
            # of a pack, whose weights lie packed beside the plain ones
            warnings.filterwarnings("ignore", message="Ignoring unknown external data key")
            reached = _Reach(models.load(path))
        for name in names:
            if name not in found or not found[name].mask:
                one = reached.whole(name)
                if one is not None:
                    found[name] = _both(found[name], one) if name in found else one
    return found


def _both(first: Whole, second: Whole) -> Whole:
    choices = tuple(c for c in first.choices if not second.choices or c in second.choices) or second.choices
    return Whole(min(first.below, second.below), choices)


class _Reach:
    """Where the inputs of a model go."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._inferred = model, False
        self._owners = {graph: node for node in self._nodes() for graph in _bodies(node)}

    def whole(self, name: str) -> Whole | None:
        """What an input takes: below the smallest table that it looks into, or one of what it is compared with."""
        value = next((v for v in self._model.graph.inputs if v.name == name), None)
        if value is None:
            return None
        below: list[int] = []
        choices: dict[int, None] = {}
        seen: set[tuple[ir.Value, int]] = set()
        waiting = [(value, 0)]
        while waiting:
            at, added = waiting.pop()
            if (at, added) in seen:
                continue
            seen.add((at, added))
            for node, index in at.uses():
                below += [size - added for size in self._tables(node, index)]
                choices.update(dict.fromkeys(c - added for c in _compared(node, index)))
                waiting += [(other, added + more) for other, more in self._next(node, index)]
            waiting += [(other, added) for other in self._out_of(at)]
        if below:
            return Whole(max(min(below), 1))
        scalar = value.shape is not None and all(d == 1 for d in value.shape)
        return Whole(choices=tuple(choices)) if scalar and choices else None

    def _nodes(self) -> Iterator[ir.Node]:
        yield from self._model.graph.all_nodes()
        for function in self._model.functions.values():
            yield from function.all_nodes()

    def _tables(self, node: ir.Node, index: int) -> Iterator[int]:
        """Sizes of the tables that the value at this input of the node looks into."""
        for ids, table, attribute, axis in _LOOKUPS.get((node.domain, node.op_type), ()):
            if ids == index and table < len(node.inputs) and node.inputs[table] is not None:
                size = self._size(node.inputs[table], _integer(node, attribute, axis))
                if size is not None:
                    yield size
        if (node.domain, node.op_type, index) == ("", "OneHot", 0):
            yield from (depth for depth in _numbers(node.inputs[1]) if depth > 0)
        if (node.domain, node.op_type) == ("", "Equal") and (classes := _counted(node.inputs[1 - index])):
            yield classes  # a one-hot code, spelt out

    def _size(self, table: ir.Value | None, axis: int) -> int | None:
        """The size of an axis of a table; None where it is not known before the model runs."""
        if table is None:
            return None
        stored, producer = stored_origin(table), table.producer()
        if stored is not None and (producer is None or producer.op_type in _KEEP_SHAPE):
            shape = stored[1].shape.numpy()
            return shape[axis] if -len(shape) <= axis < len(shape) else None
        handed = [self._size(other, axis) for other in self._handed(table)]
        if handed:
            return min((size for size in handed if size is not None), default=None)
        if table.shape is None and not self._inferred:
            self._inferred = True
            infer_shapes(self._model)
        if table.shape is None or not -len(table.shape) <= axis < len(table.shape):
            return None
        size = table.shape[axis]
        return size if isinstance(size, int) else None

    def _handed(self, value: ir.Value) -> list[ir.Value | None]:
        """What the callers of a local function hand it as this input; nothing for other values."""
        for function in self._model.functions.values():
            places = [place for place, one in enumerate(function.inputs) if one is value]
            if places:
                callers = [n for n in self._nodes() if n.op_identifier() == function.identifier()]
                return [n.inputs[places[0]] for n in callers if places[0] < len(n.inputs)]
        return []

    def _next(self, node: ir.Node, index: int) -> Iterator[tuple[ir.Value, int]]:
        """Values that hold the same numbers, and what was added to them."""
        if node.domain == "" and node.op_type in _MOVES:
            hands_on = _MOVES[node.op_type]
            if hands_on is None or index in hands_on:
                yield from ((out, 0) for out in node.outputs)
        elif node.domain == "" and node.op_type in ("Add", "Sub") and (index == 0 or node.op_type == "Add"):
            constants = _numbers(node.inputs[1 - index])
            if len(constants) == 1:
                yield node.outputs[0], constants[0] if node.op_type == "Add" else -constants[0]
        function = self._model.functions.get(node.op_identifier())
        if function is not None and index < len(function.inputs):
            yield function.inputs[index], 0
        for graph in _bodies(node):
            if node.op_type in ("Loop", "Scan") and index < len(graph.inputs):
                yield graph.inputs[index], 0

    def _out_of(self, value: ir.Value) -> Iterator[ir.Value]:
        """What a value becomes outside of the subgraph or function whose output it is."""
        for graph, node in self._owners.items():
            shift = 1 if node.op_type == "Loop" else 0  # the condition does not come out
            for place, out in enumerate(graph.outputs):
                if out is value and 0 <= place - shift < len(node.outputs):
                    yield node.outputs[place - shift]
        for function in self._model.functions.values():
            places = [place for place, out in enumerate(function.outputs) if out is value]
            if places:
                callers = [n for n in self._nodes() if n.op_identifier() == function.identifier()]
                yield from (n.outputs[place] for n in callers for place in places if place < len(n.outputs))


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [
        graph
        for attribute in node.attributes.values()
        if isinstance(attribute, ir.Attr) and attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for graph in (attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else [attribute.as_graph()])
    ]


def _integer(node: ir.Node, attribute: str, default: int) -> int:
    found = node.attributes.get(attribute)
    return default if found is None else found.as_int()


def _numbers(value: ir.Value | None) -> list[int]:
    """The whole numbers of a small constant; none for anything else."""
    stored = stored_origin(value)
    if stored is None or stored[1].size > 16:
        return []
    return [int(number) for number in stored[1].numpy().reshape(-1) if float(number).is_integer()]


def _counted(value: ir.Value | None) -> int:
    """How many numbers a constant 0, 1, 2, ... along one axis holds; 0 for anything else."""
    stored = stored_origin(value)
    if stored is None or not 2 < stored[1].size <= _MOST_CLASSES:
        return 0
    numbers = stored[1].numpy()
    return numbers.size if np.array_equal(numbers.reshape(-1), np.arange(numbers.size)) else 0


def _compared(node: ir.Node, index: int) -> list[int]:
    if (node.domain, node.op_type) != ("", "Equal"):
        return []
    return _numbers(node.inputs[1 - index])
