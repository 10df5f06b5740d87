"""Nodes added to a graph before another one, their constants, and values that take others' places."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import MODULE, all_nodes
from onnxcomp.passes.fusions.size import Size
from onnxcomp.passes.fusions.sizes import Sizes

Attribute = int | float | str | Sequence[int]


class Writer:
    """Adds to one graph of a model; what is asked for twice under one key is made once."""

    def __init__(self, model: ir.Model, graph: ir.Graph, sizes: Sizes) -> None:
        self._model, self._graph, self.sizes = model, graph, sizes
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._made: dict[tuple[object, ...], Sequence[ir.Value]] = {}
        self._names: set[str | None] = set()

    @property
    def opset(self) -> int:
        """The version of the default domain."""
        return self._model.opset_imports.get("", 0)

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        key: tuple[object, ...] | None = None,
    ) -> Sequence[ir.Value]:
        """Add a node and return its outputs."""
        if key is not None and key in self._made:
            return self._made[key]
        node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=outputs)
        node.name = self._fresh(op_type)
        for output in node.outputs:
            output.name = self._fresh("value")
        self._graph.insert_before(before, node)
        if domain:
            self._model.opset_imports.setdefault(domain, 1)
        if key is not None:
            self._made[key] = node.outputs
        return node.outputs

    def constant(self, array: np.ndarray) -> ir.Value:
        """An initializer; equal ones are made once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._fresh("constant")
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            self._model.graph.register_initializer(value)  # seen from subgraphs too
            self._constants[key] = value
        return self._constants[key]

    def integers(self, *numbers: int) -> ir.Value:
        """An int64 vector."""
        return self.constant(np.asarray(numbers, np.int64))

    def transposed(self, value: ir.Value, order: tuple[int, ...], before: ir.Node) -> ir.Value:
        """The value with its axes in another order."""
        return self.add(before, "Transpose", [value], {"perm": order}, key=("transposed", value, order))[0]

    def piece(self, value: ir.Value, index: int, parts: int, width: int, before: ir.Node) -> ir.Value:
        """One of equal pieces of the last of three axes."""
        widths = [width] * parts
        if self.opset >= 13:
            inputs: list[ir.Value] = [value, self.integers(*widths)]
            attributes: dict[str, Attribute] = {"axis": 2}
        else:
            inputs, attributes = [value], {"axis": 2, "split": widths}
        return self.add(before, "Split", inputs, attributes, outputs=parts, key=("pieces", value, parts))[index]

    def shape(self, sizes: Sequence[Size], origins: Sequence[tuple[ir.Value, int] | None], before: ir.Node) -> ir.Value:
        """A shape; sizes that are names are read from an axis of the value in `origins`."""
        if all(size.number is not None for size in sizes):
            return self.integers(*(size.factor for size in sizes))
        parts = []
        for size, origin in zip(sizes, origins, strict=True):
            if size.number is not None:
                parts.append(self.integers(size.factor))
                continue
            assert origin is not None
            value, axis = origin
            (whole,) = self.add(before, "Shape", [value], key=("shape", value))
            parts.append(self.add(before, "Gather", [whole, self.integers(axis)], key=("size", value, axis))[0])
        return self.add(before, "Concat", parts, {"axis": 0}, key=("concat", *parts))[0]

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """`new` is used, named and typed like `old` from now on."""
        new.shape, new.type, old_name = old.shape, old.type, old.name
        self.sizes.liken(new, old)
        old.name, new.name = self._fresh("replaced"), old_name
        for i, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[i] = new
        old.replace_all_uses_with(new)

    def call(self, made: ir.Value, after: ir.Node) -> None:
        """Give the node that made a value the name and the module that users know it by."""
        node = made.producer()
        assert node is not None
        node.name, after.name = after.name, node.name
        if MODULE in after.metadata_props:
            node.metadata_props[MODULE] = after.metadata_props[MODULE]

    def _fresh(self, what: str) -> str:
        if not self._names:
            for node in all_nodes(self._model):
                self._names |= {node.name, *(value.name for value in node.outputs)}
            self._names |= {name for graph in self._model.graphs() for name in graph.initializers}
        name = next(n for i in itertools.count() if (n := f"fused.{what}.{i}") not in self._names)
        self._names.add(name)
        return name
