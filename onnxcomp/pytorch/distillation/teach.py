"""A run of training from files and options to a trained student: what the command and the pass have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path

import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp.data.sources import load_attribute
from onnxcomp.errors import UsageError
from onnxcomp.model import InputSpec
from onnxcomp.passes.distill import Settings
from onnxcomp.pytorch.distillation import guide as guides
from onnxcomp.pytorch.distillation import setup
from onnxcomp.pytorch.distillation.cache import Cached
from onnxcomp.pytorch.distillation.checkpoint import Checkpoints
from onnxcomp.pytorch.distillation.guide import Data, Guide, Named
from onnxcomp.pytorch.distillation.lesson import Augment, Lesson
from onnxcomp.pytorch.distillation.loop import CHECKPOINT_SECONDS, Trained, Training
from onnxcomp.pytorch.distillation.ranks import Ranks, choose_device
from onnxcomp.pytorch.distillation.samples import order, read
from onnxcomp.pytorch.distillation.tensorboard import TensorBoard


@dataclasses.dataclass(frozen=True)
class Taught:
    """A run that has ended.

    Attributes:
        lesson: its student holds the weights of the best epoch.
        guide: the teacher.
        trained: the history, the best epoch.
        seconds: wall time of the training.
    """

    lesson: Lesson
    guide: Guide
    trained: Trained
    seconds: float

    @property
    def nothing_better(self) -> str:
        """What to say where the best epoch is 0."""
        return f"no epoch is better than the student as it came on {len(self.lesson.order.judging)} samples"


def teach(
    teacher: Named,
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
        guide = find(teacher, student, data, settings)
        answers = guide.teacher if cache is None else open_files.enter_context(Cached(guide.teacher, Path(cache)))
        place = _class(dataclasses.replace(guide, teacher=answers), data, settings, ranks)
        learner = setup.make_student(student, place, quantization_aware=quantization_aware)
        change = load_attribute(augment) if isinstance(augment, str) else augment
        lesson = setup.make_lesson(learner, place, change, choose_device(settings, ranks))
        run = {
            "settings": settings.to_json(),
            "data": place.samples.source["sha256"],
            "teacher": answers.sha256,
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
    return Taught(lesson, guide, trained, time.perf_counter() - start)


def find(teacher: Named, student: setup.Source, data: Data, settings: Settings) -> Guide:
    """The teacher that was named; of a module, a student that is an ONNX file says what the samples are.

    Raises UnsafeModelError for pickles, UsageError for a student that is its own teacher, and as `guide` does.
    """
    for source in (teacher, student):
        setup.refuse_pickle(source)
    hints = [hint.teacher for hint in settings.hints]
    file = setup.onnx_file(teacher)
    if file is not None or (isinstance(teacher, str) and ":" not in teacher and not Path(teacher).is_dir()):
        return guides.of_file(file or str(teacher), hints)
    if teacher is student and not isinstance(teacher, str):
        raise UsageError("the student is its own teacher", hint="give a copy: copy.deepcopy(module)")
    return guides.of_module(teacher, hints, data, _inputs_of(student))


def _inputs_of(student: setup.Source) -> tuple[InputSpec, ...] | None:
    """Of an ONNX student; None of a module."""
    file = setup.onnx_file(student)
    if file is None and not isinstance(student, ir.Model):
        return None
    model = models.load(file) if file is not None else student
    assert isinstance(model, ir.Model)
    return models.signature(model).inputs


def _class(guide: Guide, data: Data, settings: Settings, ranks: Ranks) -> setup.Class:
    samples = read(data, guide.inputs)
    if settings.compares_samples:  # those of a part belong into one run, of whatever length
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
    return setup.Class(guide.teacher, guide.inputs, guide.outputs, samples, plan, settings)
