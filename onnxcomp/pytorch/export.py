"""Export a torch module to ONNX, in a child process, behind a gate."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.errors import UnsupportedError, UsageError
from onnxcomp.model import InputSpec, ModelFile, Signature
from onnxcomp.pytorch import specs as specs_of

if TYPE_CHECKING:
    from torch import nn

    from onnxcomp.pytorch.capture import Subject
    from onnxcomp.pytorch.parity import Parity

OPSET = 20
TOLERANCE = 1e-4

#: how much of the user's data is compared: so many samples a run, so many runs
_REAL_BATCH, _REAL_BATCHES = 8, 8

Purpose = Literal["serving", "training"]


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
    purpose: Purpose = "serving",
    data: str | os.PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
    limits: worker.WorkerLimits | None = None,
    on_progress: Callable[[str, float | None], None] | None = None,
) -> Exported:
    """Export and prove a torch module; nothing is written unless it agrees with torch.

    It always runs in a child process: a second export of a recurrent net in one process fails, and
    the caller's module stays as it is.

    Args:
        target: 'module:attr', 'file.py:attr', an nn.Module, or (module, example inputs); a `.pt2`
            program (torch's loader evaluates expressions in it: name only those you trust); or a
            local Hugging Face folder with config.json and safetensors.
        output: path of the `.onnx` file.
        inputs: 'x:float32[1,3,224,224]' per input; not needed where the target brings examples.
        dynamic: 'x:0=batch' per axis whose size is open.
        opset: of the default domain, 18 to 23.
        weights: a .safetensors file, or a checkpoint of tensors only.
        check_sizes: further sizes to compare at, 'batch=7,seq=33'.
        output_names: names of the outputs in order; default: the keys of a dictionary that the
            module returns, else 'output', or 'output_0', 'output_1' ...
        purpose: 'serving' folds constants and BatchNormalization; 'training' keeps the graph as it
            was written, each parameter under its own name, for pruning, hints and fine-tuning.
        data: real samples to compare on too, as `onnxcomp.data.open_source` takes them.
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
        purpose,
        None if data is None else os.fspath(data),
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
    purpose: Purpose
    data: str | None
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
    from onnxcomp.pytorch import convert, parity
    from onnxcomp.pytorch import target as targets

    start = time.perf_counter()
    worker.report("loading the module")
    subject = targets.resolve(job.target, job.inputs, job.dynamic, job.weights)
    sizes = specs_of.sizes_to_check(subject.inputs, job.check_sizes)
    cases = parity.cases_of(subject, sizes, _real(subject, job.data))
    worker.report("converting")
    model = convert.convert(subject, job.opset, job.output_names, serving=job.purpose == "serving")
    convert.loosen(model, [[array.shape for array in case.expected] for case in cases])
    inputs = subject.inputs
    del subject
    signature, opset = models.signature(model), model.opset_imports[""]
    checks: list[parity.Parity] = []

    def verify(path: Path) -> None:
        if runtime.is_large(path):
            convert.release(model)  # torch's and ORT's copies together may be more than the machine has
        runtime.check_loads(path)
        parity.check_axes(path, inputs)
        checks.extend(parity.check_parity(path, cases, job.tolerance))

    done = models.publish(model, job.output, verify=verify, force=job.force)
    return Exported(done, opset, signature, tuple(checks), time.perf_counter() - start)


def _real(subject: Subject, data: str | None) -> Iterator[dict[str, np.ndarray]]:
    """The first batches of the user's data, by input name."""
    if data is None:
        return
    wanted = tuple(
        InputSpec(one.name, one.dtype, tuple(one.dims.get(i, size) for i, size in enumerate(one.shape)))
        for one in subject.inputs
    )
    batches = Batches(data, wanted, batch_size=_REAL_BATCH)
    batches.require_real("the comparison with torch")
    for batch in itertools.islice(batches, _REAL_BATCHES):
        yield dict(batch.feeds)
