"""The inputs and outputs a model promises: what a caller feeds and gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from onnxcomp.errors import InvalidModelError
from onnxcomp.model.load import TYPE_PROTO

#: a fixed size, the name of a symbolic one, or None where the model says nothing
Dim = int | str | None


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input or output of a model.

    Attributes:
        name: the value's name.
        dtype: numpy's name of the element type ('float32', 'int64', 'string', 'bfloat16'), or
            'sequence', 'map' or 'optional' for what is not a tensor.
        shape: one entry per axis: an int, a symbol's name, or None; None for an unknown rank.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Plain types, `shape` as a list or null."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
        }


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a caller must feed and will get, in order. Overridable initializers are not inputs."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[InputSpec, ...]


def signature(model: ir.Model) -> Signature:
    """The inputs (without those that have an initializer: IR 3 listed weights there) and outputs."""
    graph = model.graph
    feeds = [value for value in graph.inputs if value.name not in graph.initializers]
    return Signature(tuple(_spec(value) for value in feeds), tuple(_spec(value) for value in graph.outputs))


def _spec(value: ir.Value) -> InputSpec:
    if value.name is None:
        raise InvalidModelError("an input or output of the graph has no name")
    if TYPE_PROTO in value.meta:
        dtype = "map"
    elif value.type is None:
        dtype = "undefined"
    elif isinstance(value.type, ir.TensorType):
        dtype = dtype_name(value.type.dtype)
    else:
        dtype = type(value.type).__name__.removesuffix("Type").lower()
    shape: tuple[Dim, ...] | None = None
    if value.shape is not None:
        # some converters write -1 for 'any size'
        shape = tuple((d if d >= 0 else None) if isinstance(d, int) else d.value for d in value.shape)
    return InputSpec(value.name, dtype, shape)


def dtype_name(dtype: ir.DataType) -> str:
    """Numpy's name where numpy has the type, else ONNX's name in lower case."""
    if dtype == ir.DataType.STRING:
        return "string"
    try:
        return str(dtype.numpy())
    except TypeError:
        return dtype.name.lower()
