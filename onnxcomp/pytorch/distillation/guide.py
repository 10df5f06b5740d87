"""From what the user names as a teacher to one that answers, and to what there is to know of it."""

from __future__ import annotations

import dataclasses
import inspect as python_inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.data.sources import from_arrays, open_source
from onnxcomp.errors import DataError, UsageError
from onnxcomp.evaluate.fidelity import Answering
from onnxcomp.model import InputSpec, ModelFile, Signature
from onnxcomp.pytorch import target as targets
from onnxcomp.pytorch.capture import TORCH_ERRORS, first_line
from onnxcomp.pytorch.distillation.teacher import OrtTeacher, Teacher, TorchTeacher

#: an ONNX file, or what `onnxcomp.pytorch.export` takes
Named = str | os.PathLike[str] | nn.Module | tuple[Any, ...]

Data = Batches | str | os.PathLike[str] | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Guide:
    """A teacher and its facts.

    Attributes:
        teacher: it answers.
        kind: 'onnx' for a file, 'torch' for a module.
        file: its path or class, SHA-256 and bytes; of a module, of its state dict.
        inputs: what the samples must be.
        outputs: names of its float outputs.
        answering: opens what the published student is compared with.
    """

    teacher: Teacher
    kind: Literal["onnx", "torch"]
    file: ModelFile
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    answering: Callable[[], Answering]


def of_file(path: str | os.PathLike[str], hints: Sequence[str]) -> Guide:
    """An ONNX file as the teacher. Raises what `OrtTeacher` raises."""
    teacher, signature = OrtTeacher(path, hints), models.signature(models.load(path))
    outputs = tuple(spec.name for spec in signature.outputs if spec.name in teacher.names)
    return Guide(
        teacher, "onnx", models.fingerprint(path), signature.inputs, outputs, lambda: runtime.open_session(path)
    )


def of_module(named: Named, hints: Sequence[str], data: Data, inputs: Sequence[InputSpec] | None) -> Guide:
    """A torch module as the teacher; its outputs are called by the keys that it returns, or 'output', 'output_1'.

    Args:
        named: 'module:attr', 'file.py:attr', or a module.
        hints: paths of submodules.
        data: the first samples say what it returns, and what it takes where nothing else does.
        inputs: of the student, where that is an ONNX file.

    Raises UsageError: the module does not take the samples, or returns no float tensor; DataError.
    """
    assert not isinstance(named, os.PathLike)
    module, _ = targets.module_of(named)
    where = named if isinstance(named, str) else type(module).__qualname__
    if inputs is None:
        inputs = _inputs_of(module, data, where)
    batches = data if isinstance(data, Batches) else Batches(data, inputs, batch_size=2)
    batches.require_real("distillation")
    feeds = dict(next(iter(batches.in_batches_of(2))).feeds)
    names = _outputs_of(module, feeds, where)
    teacher = TorchTeacher(module, inputs=[spec.name for spec in inputs], outputs=names, hints=hints, by_name=True)
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    file = ModelFile(where, teacher.sha256, size)
    return Guide(teacher, "torch", file, tuple(inputs), names, lambda: _Module(teacher, tuple(inputs), names, where))


def _inputs_of(module: nn.Module, data: Data, where: str) -> tuple[InputSpec, ...]:
    """What `forward` takes of the samples; the first axis is open, others are as they are there."""
    taken = python_inspect.signature(module.forward).parameters
    first = next(iter(taken), "")
    if isinstance(data, Batches):
        return data.inputs
    source = from_arrays(data) if isinstance(data, Mapping) else open_source(data, (InputSpec(first, "float32", None),))
    shard = next(iter(source), {})
    names = [name for name in taken if name in shard]
    missing = [name for name, one in taken.items() if one.default is one.empty and name not in shard]
    if not names or missing:
        raise DataError(
            f"the teacher's forward() takes {', '.join(taken)}, the samples hold {', '.join(shard)}",
            where=where,
            hint="arrays are named as what forward() takes",
        )
    return tuple(InputSpec(name, str(shard[name].dtype), ("batch", *np.shape(shard[name])[1:])) for name in names)


def _outputs_of(module: nn.Module, feeds: Mapping[str, np.ndarray], where: str) -> tuple[str, ...]:
    like = next(module.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            found = module.eval()(**{name: torch.as_tensor(array).to(like.device) for name, array in feeds.items()})
    except TORCH_ERRORS as error:
        raise UsageError(
            f"the teacher does not run on the samples: {first_line(error)}",
            where=where,
            hint=f"its forward() must take {', '.join(feeds)}",
        ) from error
    if isinstance(found, Mapping):
        names = [str(name) for name, value in found.items() if isinstance(value, Tensor) and value.is_floating_point()]
    elif isinstance(found, Tensor):
        names = ["output"]
    else:
        names = [f"output_{index}" for index in range(len(found))]
    if not names:
        raise UsageError("the teacher returns no float tensor to learn from", where=where)
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class _Module:
    """A torch teacher as one side of a comparison."""

    teacher: TorchTeacher
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    where: str

    @property
    def path(self) -> Path:
        """What was named."""
        return Path(self.where)

    @property
    def signature(self) -> Signature:
        """Shapes of outputs are not known."""
        return Signature(self.inputs, tuple(InputSpec(name, "float32", None) for name in self.outputs))

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Mapping[str, runtime.Output]:
        """Outputs by name."""
        found = self.teacher.outputs(feeds)
        return {name: found[name].numpy() for name in self.outputs}
