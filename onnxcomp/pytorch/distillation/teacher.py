"""Teachers: what a student learns from, an ONNX file that ONNX Runtime runs or a torch module.

    Teacher (protocol)
    ├── OrtTeacher     a live session; nothing to switch off, no framework but ONNX Runtime's
    ├── TorchTeacher   a torch module, held in eval mode
    ├── Cached         any of these, its answers on disk (`cache.py`)
    └── Remembered     any of these, its answers to whole batches in memory (`remembered.py`)

Live is the default, as teacher and student should see the same view of a sample (Beyer et al. 2022,
arXiv 2106.05237).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.errors import DataError, OnnxcompError, UnsupportedError, UsageError, nearest
from onnxcomp.pytorch.distillation.hints import Taps, exposed
from onnxcomp.pytorch.graph_module import GraphModule

Feeds = Mapping[str, np.ndarray]

_FLOATS = ("float16", "float32", "float64")


class Teacher(Protocol):
    """Gives the tensors that a student is compared with."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in `outputs`: the teacher's outputs first, then hints."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it reads in a batch."""

    @property
    def sha256(self) -> str:
        """Of what the answers follow from, beside the batch."""

    def outputs(self, batch: Feeds) -> dict[str, Tensor]:
        """The named tensors: float32, on the CPU, without gradient.

        Args:
            batch: array per input; more than the teacher's inputs may be there, such as labels.

        Raises DataError for an input that is missing or does not fit.
        """


class OrtTeacher:
    """An ONNX file in a live session.

    A file with a fixed batch takes any multiple of it, in turns.

    Args:
        path: the model; float32 and not optimized, where there is a choice: fusions take away inner tensors.
        hints: names of inner tensors of the main graph to give beside the outputs.
        provider: a short name of `runtime.PROVIDERS`; where it is not there, that is an error.
        threads: of ONNX Runtime. The student's step wants the rest.

    Raises:
        UsageError: a hint that is no tensor of the graph.
        UnsupportedError: no output of the model, or one of the hints not, is a float tensor.
        InvalidModelError, ProviderError: as `runtime.open_session`.
    """

    def __init__(
        self, path: str | os.PathLike[str], hints: Sequence[str] = (), provider: str = "cpu", threads: int = 1
    ) -> None:
        self.path = Path(path)
        config = {**runtime.frugal(self.path).config, "session.intra_op.allow_spinning": "0"}
        settings = runtime.SessionSettings(threads=threads, config=config)
        with exposed(self.path, hints) as file:
            try:
                session = runtime.open_session(file, provider=provider, settings=settings)
            except OnnxcompError as error:
                raise type(error)(error.message, where=self.path, hint=error.hint) from error
        self._session = dataclasses.replace(session, path=self.path)
        dtypes = {spec.name: spec.dtype for spec in session.signature.outputs}
        for name in hints:
            if dtypes[name] not in _FLOATS:
                raise UnsupportedError(f"a hint of type {dtypes[name]}", where=name, hint="name a float tensor")
        self._names = tuple(name for name, dtype in dtypes.items() if dtype in _FLOATS)
        if not self._names:
            raise UnsupportedError("the teacher has no float output to learn from", where=self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """The float outputs, then the hints."""
        return self._names

    @property
    def inputs(self) -> tuple[str, ...]:
        """The model's inputs."""
        return tuple(spec.name for spec in self._session.signature.inputs)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file and its external data."""
        made = models.fingerprint(self.path)
        return hashlib.sha256("\n".join([made.sha256, *(part for _, part, _ in made.external)]).encode()).hexdigest()

    def outputs(self, batch: Feeds) -> dict[str, Tensor]:
        """See `Teacher`."""
        feeds = {name: given(batch, name) for name in self.inputs}
        turns = self._turns(feeds)
        runs = [self._run(turn) for turn in turns]
        arrays = runs[0] if len(runs) == 1 else [np.concatenate(parts) for parts in zip(*runs, strict=True)]
        # ORT's arrays own their memory: no copy
        return {name: torch.from_numpy(array).float() for name, array in zip(self._names, arrays, strict=True)}

    def _run(self, feeds: Feeds) -> list[np.ndarray]:
        try:
            arrays: list[np.ndarray] = self._session.ort.run(self._names, dict(feeds))
        except Exception as error:
            raise runtime.translate(error, self.path, running=True) from error
        return arrays

    def _turns(self, feeds: Feeds) -> list[Feeds]:
        """The feeds, cut along the first axis where the model fixes it at a part of what is there."""
        shapes = {spec.name: spec.shape for spec in self._session.signature.inputs}
        fixed = {shape[0] if shape else None for shape in shapes.values()}
        there = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
        step, count = next(iter(fixed), None), next(iter(there), 0)
        if len(fixed) > 1 or len(there) > 1 or not isinstance(step, int) or not 0 < step < count:
            return [feeds]
        if count % step:
            raise DataError(
                f"{count} samples for a teacher whose batch is fixed at {step}",
                where=self.path,
                hint=f"use a batch size that {step} divides",
            )
        return [{name: array[i : i + step] for name, array in feeds.items()} for i in range(0, count, step)]


class TorchTeacher:
    """A torch module, in eval mode without gradients in every call: no dropout, BatchNorm's statistics stand still.

    Args:
        module: stays where it is (device), and is switched to eval mode by each call.
        inputs: names, in a batch, of what its `forward` takes in order; a GraphModule takes them by name.
        outputs: names for the tensor, or the tensors in order, that it returns, or keys where it returns a
            mapping. A GraphModule knows its own.
        hints: paths of submodules (see `Taps`), or values of a GraphModule.
        by_name: `forward` has arguments of these names.

    Raises:
        UsageError: no names of inputs or outputs; a hint that the module does not have (values of a
            GraphModule: in the first call).
        UnsupportedError: in the first call, a module that answers differently to the same batch.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str] = (),
        hints: Sequence[str] = (),
        by_name: bool = False,
    ) -> None:
        self._module, self._by_name = module, by_name
        self._outputs = tuple(outputs or (module.outputs if isinstance(module, GraphModule) else ()))
        self._inputs = tuple(inputs)
        if not self._inputs or not self._outputs:
            raise UsageError("a torch teacher needs names of its inputs and outputs", where=type(module).__name__)
        self._taps = None if isinstance(module, GraphModule) else Taps(module, hints)
        self._names = tuple(dict.fromkeys([*self._outputs, *hints]))
        self._proven = False

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs, then the hints."""
        return self._names

    @property
    def inputs(self) -> tuple[str, ...]:
        """As given."""
        return self._inputs

    @functools.cached_property
    def sha256(self) -> str:
        """Of the state dict and the printed module; not of its code."""
        digest = hashlib.sha256(f"{type(self._module).__qualname__}\n{self._module}\n".encode())
        for name, tensor in self._module.state_dict().items():
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def outputs(self, batch: Feeds) -> dict[str, Tensor]:
        """See `Teacher`."""
        found = self._run(batch)
        if not self._proven:
            _same(found, self._run(batch))
            self._proven = True
        return found

    def _run(self, batch: Feeds) -> dict[str, Tensor]:
        like = next(self._module.parameters(), torch.empty(0))
        feeds = {name: torch.as_tensor(given(batch, name)).to(like.device) for name in self._inputs}
        self._module.eval()
        with torch.no_grad():
            if isinstance(self._module, GraphModule):
                found = self._module.values(feeds, self._names)
            else:
                found = named(self._module(**feeds) if self._by_name else self._module(*feeds.values()), self._outputs)
        if self._taps is not None:
            found |= self._taps.take()
        return {name: found[name].detach().float().cpu() for name in self._names}


def named(returned: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """What a module's `forward` returned, by names: one tensor, several in order, or a mapping with these keys.

    Raises UsageError where there are not as many, or not these.
    """
    if isinstance(returned, Mapping):
        for name in names:
            if name not in returned:
                raise UsageError("the module returns nothing of this name", where=name, hint=nearest(name, returned))
        return {name: returned[name] for name in names}
    tensors = [returned] if isinstance(returned, Tensor) else list(returned)
    if len(tensors) != len(names):
        raise UsageError(f"the module returns {len(tensors)} tensors, not {len(names)}", where=", ".join(names))
    return dict(zip(names, tensors, strict=True))


def given(batch: Feeds, name: str) -> np.ndarray:
    """The array of a teacher's input; DataError where the batch has none."""
    if name not in batch:
        raise DataError("the batch has no such input of the teacher", where=name, hint=nearest(name, batch))
    return batch[name]


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    for name, tensor in one.items():
        if not torch.allclose(tensor, other[name], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise UnsupportedError(
                "the teacher answers differently to the same batch, in eval mode",
                where=name,
                hint="it has dropout or noise that does not look at module.training",
            )
