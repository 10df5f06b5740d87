"""A run of training from files and options to a trained student: what the command and the pass have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxcomp import model as models
from onnxcomp.data import Batches
from onnxcomp.data.sources import load_attribute
from onnxcomp.errors import UsageError
from onnxcomp.passes.distill import Settings
from onnxcomp.pytorch.distillation import setup
from onnxcomp.pytorch.distillation.cache import Cached
from onnxcomp.pytorch.distillation.checkpoint import Checkpoints
from onnxcomp.pytorch.distillation.goal import parse_hints
from onnxcomp.pytorch.distillation.lesson import Augment, Lesson
from onnxcomp.pytorch.distillation.loop import CHECKPOINT_SECONDS, Trained, Training
from onnxcomp.pytorch.distillation.ranks import Ranks, choose_device
from onnxcomp.pytorch.distillation.samples import order, read
from onnxcomp.pytorch.distillation.teacher import OrtTeacher, Teacher
from onnxcomp.pytorch.distillation.tensorboard import TensorBoard

Data = Batches | str | os.PathLike[str] | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Taught:
    """A run that has ended.

    Attributes:
        lesson: its student holds the weights of the best epoch.
        trained: the history, the best epoch.
        seconds: wall time of the training.
    """

    lesson: Lesson
    trained: Trained
    seconds: float

    @property
    def nothing_better(self) -> str:
        """What to say where the best epoch is 0."""
        return f"no epoch is better than the student as it came on {len(self.lesson.order.judging)} samples"


def teach(
    teacher: str | os.PathLike[str],
    student: setup.Source,
    data: Data,
    settings: Settings,
    *,
    augment: Augment | str | None = None,
    quantization_aware: bool = False,
    cache: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    resume: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Taught:
    """Train; see `onnxcomp.pytorch.distill` for the arguments. Writes nothing but the cache, checkpoint and curves.

    Where several processes are `joined`, each calls this; the first writes checkpoint and curves.

    Raises UsageError, DataError, UnsupportedError, GateError, OutputError.
    """
    if cache is not None and augment is not None:
        raise UsageError("augmented samples never come again, a cache has no use for them", where="--cache")
    with contextlib.ExitStack() as open_files:
        live: Teacher = OrtTeacher(teacher, [theirs for theirs, _ in parse_hints(settings.hint)])
        guide = live if cache is None else open_files.enter_context(Cached(live, Path(cache)))
        place = _class(guide, models.signature(models.load(teacher)), data, settings, ranks)
        learner = setup.make_student(student, place, quantization_aware=quantization_aware)
        change = load_attribute(augment) if isinstance(augment, str) else augment
        lesson = setup.make_lesson(learner, place, change, choose_device(settings, ranks))
        run = {
            "settings": settings.to_json(),
            "data": place.samples.source["sha256"],
            "teacher": guide.sha256,
            "student": learner.to_json()["sha256"],
            "augment": augment if isinstance(augment, str | None) else getattr(augment, "__qualname__", "a function"),
            "quantization_aware": quantization_aware,
        }
        kept = watch = None
        if checkpoint is not None and ranks.first:
            kept = Checkpoints(Path(checkpoint), run, resume=resume)
        if tensorboard is not None and ranks.first:
            watch = open_files.enter_context(TensorBoard(tensorboard))
        start = time.perf_counter()
        trained = Training(
            lesson, checkpoints=kept, checkpoint_seconds=checkpoint_seconds, watch=watch, ranks=ranks
        ).run()
    return Taught(lesson, trained, time.perf_counter() - start)


def _class(teacher: Teacher, signature: models.Signature, data: Data, settings: Settings, ranks: Ranks) -> setup.Class:
    samples = read(data, signature.inputs)
    if settings.loss == "dist":  # it compares samples with each other: those of a part belong into one run
        samples = dataclasses.replace(samples, lengths=None)
    plan = order(
        samples,
        validation=settings.validation,
        batch=settings.batch,
        accumulate=settings.accumulate,
        seed=settings.seed,
        rank=ranks.rank,
        ranks=ranks.count,
    )
    outputs = tuple(spec.name for spec in signature.outputs if spec.name in teacher.names)
    return setup.Class(teacher, signature.inputs, outputs, samples, plan, settings)
