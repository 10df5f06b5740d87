"""Students: what trains, and how it becomes a model again.

Student (protocol)
├── GraphStudent    an ONNX graph as it is: pruned, with layers left out, or a small net's export
├── QuantizedGraph  a graph with QuantizeLinear and DequantizeLinear (`quantized.py`)
└── ModuleStudent   a torch module of the user's, exported in the end (`modules.py`)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
from torch import Tensor, nn

from onnxcomp import model as models
from onnxcomp.errors import UnsupportedError
from onnxcomp.model import InputSpec
from onnxcomp.pytorch.graph_module import GraphModule


class Student(Protocol):
    """What the training loop sees of a student.

    Attributes:
        module: holds what trains: Parameters that require a gradient.
        inputs: what a run takes.
        outputs: names, in order.
    """

    @property
    def module(self) -> nn.Module:
        """See above."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]

    def values(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs and the hints, by name, of one run."""

    def train(self, *, frozen: bool) -> None:
        """Switch to training; `frozen` BatchNormalization keeps its statistics."""

    def finished(self, folder: Path) -> ir.Model:
        """The student as a model, with what it has learnt; files on the way go into `folder`."""

    def to_json(self) -> dict[str, Any]:
        """Where the student comes from, for records and to know it again."""


class GraphStudent:
    """An ONNX graph; the trained values go back into its initializers, all else stays.

    Args:
        source: the file, or a model in memory.
        hints: values of the graph to give beside its outputs.

    Raises UnsupportedError (an operator that has no counterpart, or no weight that trains), UsageError
    (a hint that the graph does not have).
    """

    def __init__(self, source: ir.Model | str | os.PathLike[str], hints: Sequence[str] = ()) -> None:
        model = source if isinstance(source, ir.Model) else models.load(source)
        self._about = about(source)
        signature = models.signature(model)
        self.inputs, self.outputs = signature.inputs, tuple(spec.name for spec in signature.outputs)
        self._graph = GraphModule(model, outputs=[*dict.fromkeys([*self.outputs, *hints])])
        refuse_untrainable(self._graph, self._about)

    @property
    def module(self) -> nn.Module:
        """The graph as a torch module."""
        return self._graph

    def values(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Student`."""
        found: dict[str, Tensor] = self._graph(feeds)
        return found

    def train(self, *, frozen: bool) -> None:
        """See `Student`; in a graph nothing else than statistics and dropout depends on it."""
        self._graph.train(not frozen)

    def finished(self, folder: Path) -> ir.Model:
        """See `Student`."""
        return self._graph.write_back()

    def to_json(self) -> dict[str, Any]:
        """The file, or that it was in memory."""
        return self._about


def about(source: ir.Model | str | os.PathLike[str]) -> dict[str, Any]:
    """Path, SHA-256 and bytes of a file; of a model in memory the SHA-256 of what would be written."""
    if not isinstance(source, ir.Model):
        return models.fingerprint(source).to_json()
    data = ir.to_proto(source).SerializeToString(deterministic=True)
    return {"path": None, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def refuse_untrainable(module: nn.Module, source: Mapping[str, Any]) -> None:
    """Raise UnsupportedError where no Parameter trains."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UnsupportedError(
            "the student has no weight that can be trained",
            where=source.get("path"),
            hint="integer weights train with --quantization-aware, or give the student in float32",
        )


def trained_elements(module: nn.Module) -> tuple[int, int]:
    """(elements that train, all float elements)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
