"""The pass contract: what a pass declares, gets and returns.

A pass is a frozen dataclass. Its fields are the recipe keys, the command line's options and the
docs table, declared once. Same fields, same model, same data: same bytes.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from onnxcomp.data import Batches
from onnxcomp.errors import UsageError, nearest
from onnxcomp.inspect import MODULE, all_nodes


@dataclasses.dataclass(frozen=True)
class Note:
    """Something the user should know about a node (or about the pass, where `node` is empty)."""

    node: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """`{node, reason}`."""
        return {"node": self.node, "reason": self.reason}


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a pass did.

    Attributes:
        changed: whether the model is another one now; a pass that changed nothing has failed.
        details: figures by name, plain JSON types.
    """

    changed: bool
    details: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a pass gets beside the model.

    Attributes:
        workdir: a private folder, gone after the pipeline.
        data: samples for passes that calibrate; never those that judge the result.
        store: a folder that keeps statistics of activations between runs; None keeps none.
        reference: the file of the model as it was before the first pass; None where no pass trains.
        checkpoint: a folder of this pass's own that keeps an unfinished training; None keeps none.
        resume: whether to go on from what `checkpoint` holds.
        notes: the pass appends to it.
    """

    workdir: Path
    data: Batches | None = None
    store: Path | None = None
    reference: Path | None = None
    checkpoint: Path | None = None
    resume: bool = False
    notes: list[Note] = dataclasses.field(default_factory=list)

    def note(self, reason: str, node: str = "") -> None:
        """Add a note."""
        self.notes.append(Note(node, reason))


@contextlib.contextmanager
def temporary_context(data: Batches | None = None, store: Path | None = None) -> Iterator[Context]:
    """A context with a private folder (0700) that is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        yield Context(Path(folder), data, store)


class Pass(ir.passes.InPlacePass):
    """A transformation of a model, in place.

    Class attributes:
        name: the recipe's and the command line's name.
        exact: whether outputs stay equal up to rounding; the pipeline then proves it.
        near: whether outputs stay near enough that the pipeline reports how near, on noise if need be.
        needs_data: whether `Context.data` must be there.
        wants_data: whether it uses `Context.data` where there is some.
        trains: whether it learns from the reference on many samples, and may go on where it was interrupted.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False
    near: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    wants_data: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    @abc.abstractmethod
    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Change `model` in place and say what was done; raise a typed error rather than half the work."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """onnx-ir's entry: `apply` without data, so that our passes fit into any ir pipeline."""
        with temporary_context() as context:
            effect = self.apply(model, context)
        return ir.passes.PassResult(model, effect.changed)

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """The dataclass fields: every pass is a dataclass, which the type of a base cannot say."""
        return dataclasses.fields(cls)  # type: ignore[arg-type]

    def options(self) -> dict[str, Any]:
        """The values of the fields, as plain JSON types."""
        values = {f.name: getattr(self, f.name) for f in self.fields()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def option(default: Any, doc: str) -> Any:
    """A dataclass field with its help text `doc`."""
    return dataclasses.field(default=default, metadata={"doc": doc})


def transplant(model: ir.Model, donor: ir.Model) -> None:
    """Make `model` hold what `donor` holds, for tools that return a new model."""
    model.graph = donor.graph
    model.functions.clear()
    model.functions.update(donor.functions)
    model.ir_version = donor.ir_version


def drop_unused_initializers(model: ir.Model) -> None:
    """Drop initializers that no node and no output names.

    onnx-ir counts uses, and a node of a branch that was dropped still counts as one.
    """
    used = {value for node in all_nodes(model) for value in node.inputs}
    used.update(value for graph in model.graphs() for value in graph.outputs)
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if value not in used and not value.is_graph_input():
                del graph.initializers[name]


def drop_inner_shapes(model: ir.Model) -> None:
    """Forget shapes of values inside the graph; inputs and outputs keep theirs.

    Every tool infers them anew, they make small files larger, and left over they let ORT fuse
    SkipLayerNormalization, which on CPUs costs more than it saves.
    """
    for node in all_nodes(model):
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None


def named(model: ir.Model, names: Sequence[str], *, where: str = "exclude") -> dict[str, list[str]]:
    """{name: names of the nodes it means}: a node's own, or a torch module's path for all that came from it.

    Raises UsageError for a name that means nothing.
    """
    nodes = {node.name: node.metadata_props.get(MODULE, "") for node in all_nodes(model) if node.name}
    found = {}
    for name in names:
        inside = [node for node, module in nodes.items() if f"{module}.".startswith(f"{name}.")]
        found[name] = [name] if name in nodes else inside
        if not found[name]:
            modules = sorted({module for module in nodes.values() if module})
            raise UsageError(
                f"no node or module '{name}' in the model",
                where=where,
                hint=nearest(name, [*nodes, *modules]) or "'onnxcomp inspect' and any viewer show the names",
            )
    return found


@contextlib.contextmanager
def muted(logger: str | None) -> Iterator[None]:
    """Keep a library's warnings (None: all) off the terminal; what matters is checked afterwards."""
    target = logging.getLogger(logger)
    level = target.level
    target.setLevel(logging.ERROR)
    try:
        yield
    finally:
        target.setLevel(level)
