"""A recipe in several processes: the first runs it and publishes, the others help wherever it trains."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime as dt
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp.data import Batches
from onnxcomp.model import InputSpec
from onnxcomp.passes import Distill, Pass
from onnxcomp.passes.distill import Settings
from onnxcomp.pytorch.distillation.ranks import Ranks, choose_device, from_environment, joined
from onnxcomp.pytorch.distillation.teach import Taught, teach

T = TypeVar("T")

Data = str | os.PathLike[str] | Mapping[str, np.ndarray] | None

#: how long the others wait for passes that do not train
_PATIENCE = dt.timedelta(days=7)

_STEM = "student"

_ranks: contextvars.ContextVar[Ranks] = contextvars.ContextVar("ranks", default=Ranks())  # noqa: B039 - frozen


@dataclasses.dataclass(frozen=True)
class Task:
    """A training of a recipe, for all processes.

    Attributes:
        teacher: path of the ONNX file, which each process can read.
        inputs: of the samples.
        selection: which of the recipe's samples; None: all.
        settings: of the training.
        quantization_aware: as the pass has it.
    """

    teacher: str
    inputs: tuple[InputSpec, ...]
    selection: np.ndarray | None
    settings: Settings
    quantization_aware: bool

    def run(self, student: ir.Model, data: Batches, ranks: Ranks, **kept: Any) -> Taught:
        """Train, in each process at the same time; `kept`: the first process's checkpoint."""
        return teach(
            self.teacher,
            student,
            data,
            self.settings,
            quantization_aware=self.quantization_aware,
            ranks=ranks,
            **kept,
        )


def train(task: Task, model: ir.Model, data: Batches, **kept: Any) -> Taught:
    """A training of a recipe: alone, or with the other processes, which wait for it in `together`.

    The model stays as it is.
    """
    ranks = _ranks.get()
    if ranks.count > 1:
        ranks.from_first(lambda: (task, _files(model)))
    return task.run(model.clone(), data, ranks, **kept)


def _files(model: ir.Model) -> dict[str, bytes]:
    """What the model is on a disk, by file name."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp-sent-") as folder:
        models.write_to(model, Path(folder), _STEM)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@contextlib.contextmanager
def _received(files: Mapping[str, bytes]) -> Iterator[ir.Model]:
    with tempfile.TemporaryDirectory(prefix="onnxcomp-received-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        yield models.load(Path(folder) / f"{_STEM}.onnx")


def together(run: Callable[[], T], passes: Sequence[Pass], data: Data) -> T | None:
    """What `run`, a recipe of these passes, gives; in the first of the processes that `torchrun` started.

    The others train with it, on the same data and teacher files, and get None. What fails in one ends all.
    """
    ranks = from_environment()
    if ranks.count == 1:
        return run()
    training = [step for step in passes if isinstance(step, Distill)]
    if not training:
        return run() if ranks.first else None
    with joined(ranks, choose_device(training[0], ranks), patience=_PATIENCE):
        if not ranks.first:
            _follow(ranks, data)
            return None
        token = _ranks.set(ranks)
        try:
            done = run()
        finally:
            _ranks.reset(token)
        ranks.from_first(_nothing)
        return done


def _nothing() -> tuple[Task, dict[str, bytes]] | None:
    """What ends the waiting of the others."""
    return None


def _follow(ranks: Ranks, data: Data) -> None:
    while (found := ranks.from_first(_nothing)) is not None:
        task, files = found
        assert data is not None  # the first process found some
        with _received(files) as student:
            task.run(student, Batches(data, task.inputs, selection=task.selection), ranks)
