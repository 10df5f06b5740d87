"""Export a torch module to ONNX, in a child process, behind a gate."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.errors import UnsupportedError, UsageError
from onnxcomp.model import ModelFile, Signature
from onnxcomp.passes.base import drop_inner_shapes
from onnxcomp.pytorch import specs as specs_of

if TYPE_CHECKING:
    from torch import nn

    from onnxcomp.pytorch.parity import Parity

OPSET = 20
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model that was exported and agrees with torch.

    Attributes:
        output: the file.
        opset: of the default domain.
        signature: its inputs and outputs.
        parity: one entry per size that was compared.
        seconds: wall time.
    """

    output: ModelFile
    opset: int
    signature: Signature
    parity: tuple[Parity, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp export --json`."""
        return {
            "output": self.output.to_json(),
            "opset": self.opset,
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
            "parity": [check.to_json() for check in self.parity],
            "seconds": round(self.seconds, 3),
        }


def export(
    target: str | nn.Module | tuple[Any, ...],
    output: str | os.PathLike[str],
    *,
    inputs: Sequence[str] = (),
    dynamic: Sequence[str] = (),
    opset: int = OPSET,
    weights: str | os.PathLike[str] | None = None,
    check_sizes: Sequence[str] = (),
    output_names: Sequence[str] = (),
    tolerance: float = TOLERANCE,
    force: bool = False,
    limits: worker.WorkerLimits | None = None,
    on_progress: Callable[[str, float | None], None] | None = None,
) -> Exported:
    """Export and prove a torch module; nothing is written unless it agrees with torch.

    It always runs in a child process: a second export of a recurrent net in one process fails, and
    the caller's module stays as it is.

    Args:
        target: 'module:attr', 'file.py:attr', an nn.Module, or (module, example inputs).
        output: path of the `.onnx` file.
        inputs: 'x:float32[1,3,224,224]' per input; not needed where the target brings examples.
        dynamic: 'x:0=batch' per axis whose size is open.
        opset: of the default domain, 18 to 23.
        weights: a .safetensors file, or a checkpoint of tensors only.
        check_sizes: further sizes to compare at, 'batch=7,seq=33'.
        output_names: names of the outputs in order; default 'output', or 'output_0', 'output_1' ...
        tolerance: largest difference from torch over its largest absolute output.
        force: replace an existing output.
        limits: of the child process.
        on_progress: called with (text, fraction or None).

    Raises UsageError (specs), UnsupportedError (torch cannot export it; torch is not installed),
    GateError (a dynamic axis was frozen), AccuracyGateError (it differs from torch), OutputError.
    """
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("export needs torch", hint="pip install 'onnxcomp[torch]'")
    if not 18 <= opset <= 23:
        raise UsageError(f"opset {opset} is not in 18 to 23", where="--opset", hint=f"{OPSET} is the default")
    models.refuse_target(Path(output), force=force)
    _refuse_main(target)
    job = _Job(
        target,
        Path(output),
        tuple(inputs),
        tuple(dynamic),
        opset,
        None if weights is None else Path(weights),
        tuple(check_sizes),
        tuple(output_names),
        tolerance,
        force,
    )
    return worker.isolated(_export, job, limits=limits, on_progress=on_progress)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The arguments of `export`, on their way to the child."""

    target: Any
    output: Path
    inputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    opset: int
    weights: Path | None
    check_sizes: tuple[str, ...]
    output_names: tuple[str, ...]
    tolerance: float
    force: bool


def _refuse_main(target: object) -> None:
    """A class of the main script, or of a function, cannot be found again by the child process."""
    module = target[0] if isinstance(target, tuple) else target
    parts = module.modules() if hasattr(module, "modules") else [module]
    for part in parts:
        if isinstance(part, str):
            continue
        kind = type(part)
        place = "the main script" if kind.__module__ == "__main__" else "a function"
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            raise UsageError(
                f"the class {kind.__name__} stands in {place}, the export's process cannot import it",
                hint="move it to a module of its own, or name it as file.py:attr",
            )


def _export(job: _Job) -> Exported:
    """The child's part."""
    import torch

    from onnxcomp.pytorch import parity
    from onnxcomp.pytorch import target as targets

    start = time.perf_counter()
    worker.report("loading the module")
    torch.manual_seed(0)  # an untrained module gets the same weights each time
    module, examples = targets.resolve(job.target)
    if job.weights is not None:
        targets.load_weights(module, job.weights)
    found = specs_of.with_dynamic(targets.inputs_of(module, examples, job.inputs), job.dynamic)
    sizes = specs_of.sizes_to_check(found, job.check_sizes)
    worker.report("exporting")
    model = _trace(module, found, job.opset)
    _rename(model, [one.name for one in found], job.output_names)
    _loosen(model, parity.output_shapes(module, found, sizes))
    drop_inner_shapes(model)
    common.ClearMetadataAndDocStringPass()(model)  # it holds absolute paths of the user's sources
    checks: list[parity.Parity] = []

    def verify(path: Path) -> None:
        runtime.check_loads(path)
        parity.check_axes(path, found)
        checks.extend(parity.check_parity(module, path, found, sizes, job.tolerance))

    done = models.publish(model, job.output, verify=verify, force=job.force)
    return Exported(done, model.opset_imports[""], models.signature(model), tuple(checks), time.perf_counter() - start)


def _trace(module: nn.Module, inputs: Sequence[specs_of.Input], opset: int) -> ir.Model:
    """Export with named dimensions; where torch fixes one of them, `check_axes` finds it frozen."""
    import torch

    sizes = specs_of.traced_sizes(inputs)
    dims = {name: torch.export.Dim(name, min=1) for name in sizes}
    shapes = tuple({axis: dims[name] for axis, name in one.dims.items()} or None for one in inputs)
    arrays = [one.make(sizes, 0) if one.example is None else _example(one, sizes) for one in inputs]
    args = tuple(torch.from_numpy(a) for a in arrays)
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    # torch prints graphs to stderr before it raises; the error says what matters
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            made = torch.onnx.export(
                module,
                args,
                dynamo=True,
                dynamic_shapes=shapes if dims else None,
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            raise _refusal(error) from error
    if made is None:
        raise UnsupportedError("torch exported nothing")
    model: ir.Model = made.model
    return model


def _loosen(model: ir.Model, shapes: Sequence[Sequence[tuple[int, ...]]]) -> None:
    """Open the sizes of outputs that torch's export states as constants and that are none.

    shapes: of every output, for every size that was tried.
    """
    for value, seen in zip(model.graph.outputs, zip(*shapes, strict=True), strict=True):
        if value.shape is None or any(len(s) != len(value.shape) for s in seen):
            value.shape = None
            continue
        moving = [len(set(sizes)) > 1 for sizes in zip(*seen, strict=True)]
        value.shape = ir.Shape(
            None if moves and isinstance(d, int) else d for d, moves in zip(value.shape, moving, strict=True)
        )


def _example(one: specs_of.Input, sizes: dict[str, int]) -> Any:
    """The user's own example where it has the traced sizes already."""
    assert one.example is not None
    return one.example if one.example.shape == one.shape else one.make(sizes, 0)


def _refusal(error: BaseException) -> UnsupportedError:
    """The first line that says something, from the innermost cause."""
    causes = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None and inner not in causes:
        causes.append(inner)
    text = " ".join(str(causes[-1]).split())[:400] or type(causes[-1]).__name__
    everything = " ".join(str(cause) for cause in causes)
    if "data-dependent" in everything or "GuardOnDataDependent" in everything:
        hint = "write data-dependent branches with torch.cond"
    elif "Constraints violated" in everything or "specialized" in everything:
        hint = "the module fixes this size, in a reshape or a loop; make it depend on x.shape, or do not ask for it"
    else:
        hint = "rewrite what the message names with operators that ONNX has"
    return UnsupportedError(f"torch cannot export the module: {text}", hint=hint)


def _rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their names; an inner value that has one of them already steps aside.

    torch writes an invalid file when an output is named like an operator used inside.
    """
    graph = model.graph
    if len(graph.inputs) != len(inputs):
        raise UnsupportedError(
            f"{len(inputs)} inputs were given, the exported graph has {len(graph.inputs)}",
            hint="an argument is not used by the module; leave it out",
        )
    count = len(graph.outputs)
    names = list(outputs) or (["output"] if count == 1 else [f"output_{i}" for i in range(count)])
    if len(names) != count or len({*names, *inputs}) != count + len(inputs):
        raise UsageError(
            f"the model has {count} outputs, {len(names)} names were given"
            if len(names) != count
            else "names of inputs and outputs must differ",
            where="--output-names",
        )
    faces = dict(zip([*graph.inputs, *graph.outputs], [*inputs, *names], strict=True))
    wanted = set(faces.values())
    taken = {v.name for node in graph.all_nodes() for v in node.outputs} | set(graph.initializers)
    for value in [*(v for node in graph.all_nodes() for v in node.outputs), *graph.initializers.values()]:
        if value.name in wanted and value not in faces:
            fresh = f"{value.name}_inner"
            while fresh in taken or fresh in wanted:
                fresh += "_"
            taken.add(fresh)
            value.name = fresh
    for i, value in enumerate(faces):
        value.name = f"onnxcomp.face.{i}"  # first out of each other's way
    for value, name in faces.items():
        value.name = name
