"""Train a student by a teacher and publish what it has become, with its record."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import documents, runtime
from onnxcomp import model as models
from onnxcomp.data.sources import load_attribute
from onnxcomp.errors import DataError, GateError, NoEffectError, UsageError
from onnxcomp.evaluate.fidelity import Fidelity, compare_sessions
from onnxcomp.model import ModelFile
from onnxcomp.pytorch.distillation import setup
from onnxcomp.pytorch.distillation.cache import Cached
from onnxcomp.pytorch.distillation.checkpoint import Checkpoints
from onnxcomp.pytorch.distillation.goal import parse_hints
from onnxcomp.pytorch.distillation.lesson import Augment, Lesson
from onnxcomp.pytorch.distillation.loop import CHECKPOINT_SECONDS, Trained, Training
from onnxcomp.pytorch.distillation.result import Distilled
from onnxcomp.pytorch.distillation.samples import order, read
from onnxcomp.pytorch.distillation.settings import Settings
from onnxcomp.pytorch.distillation.students import trained_elements
from onnxcomp.pytorch.distillation.teacher import OrtTeacher, Teacher
from onnxcomp.pytorch.distillation.tensorboard import TensorBoard


def distill(
    teacher: str | os.PathLike[str],
    student: setup.Source,
    data: str | os.PathLike[str] | Mapping[str, np.ndarray],
    output: str | os.PathLike[str],
    *,
    augment: Augment | str | None = None,
    quantization_aware: bool = False,
    cache: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    resume: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    force: bool = False,
    schema: str = "onnxcomp/distill/1",
    **options: Any,
) -> Distilled:
    """Train `student` to answer as `teacher` does, and publish it with `OUTPUT.record.json` beside it.

    A part of the samples judges every epoch and never trains; the epoch that is best on it is the result. The
    student as it came counts as epoch 0: when nothing is better, that is an error. All samples are held in memory.

    Args:
        teacher: an ONNX file; ONNX Runtime runs it.
        student: an ONNX file or model, whose weights are trained in its own graph; or a torch module, as
            `onnxcomp.pytorch.export` takes it, which takes the teacher's inputs by name and is exported.
        data: samples as `onnxcomp.data.open_source` takes them; they need no labels.
        output: path of the `.onnx` file.
        augment: what changes the feeds of a training run, or 'FILE.py:fn': (feeds by name, numpy Generator) -> feeds.
        quantization_aware: the student is in int8 while it trains; a float graph is quantized first.
        cache: a folder that keeps the teacher's answers, for samples that come as they are in every epoch.
        checkpoint: a folder; what is interrupted loses at most `checkpoint_seconds`, or one step.
        checkpoint_seconds: between checkpoints within an epoch; each epoch ends with one.
        resume: go on from the checkpoint, where there is one.
        tensorboard: a folder for curves; the package must be installed.
        force: replace an existing output.
        schema: of the record.
        **options: see `Settings`.

    Raises UsageError (options; outputs without a counterpart), DataError (samples), UnsupportedError (a student
    that cannot train), GateError (a loss that is not finite), NoEffectError (no epoch is better than the
    student as it came), AccuracyGateError (the export differs from torch), OutputError. Nothing is written then.
    """
    settings = setup.make_settings(options)
    if resume and checkpoint is None:
        raise UsageError("--resume needs --checkpoint", hint="name the folder of the interrupted run")
    if cache is not None and augment is not None:
        raise UsageError("augmented samples never come again, a cache has no use for them", where="--cache")
    files = tuple(file for file in (Path(teacher), setup.onnx_file(student)) if file is not None)
    models.refuse_target(Path(output), force=force, inputs=files)
    before = models.fingerprint(teacher)
    with contextlib.ExitStack() as open_files:
        live: Teacher = OrtTeacher(teacher, [theirs for theirs, _ in parse_hints(settings.hint)])
        guide = live if cache is None else open_files.enter_context(Cached(live, Path(cache)))
        place = _class(guide, models.signature(models.load(teacher)), data, settings)
        learner = setup.make_student(student, place, quantization_aware=quantization_aware)
        change = load_attribute(augment) if isinstance(augment, str) else augment
        lesson = setup.make_lesson(learner, place, change)
        run = {
            "settings": settings.to_json(),
            "data": place.samples.source["sha256"],
            "teacher": guide.sha256,
            "student": learner.to_json()["sha256"],
            "augment": augment if isinstance(augment, str | None) else getattr(augment, "__qualname__", "a function"),
            "quantization_aware": quantization_aware,
        }
        kept = None if checkpoint is None else Checkpoints(Path(checkpoint), run, resume=resume)
        watch = None if tensorboard is None else open_files.enter_context(TensorBoard(tensorboard))
        start = time.perf_counter()
        trained = Training(lesson, checkpoints=kept, checkpoint_seconds=checkpoint_seconds, watch=watch).run()
    if trained.best == 0:
        raise NoEffectError(
            f"no epoch is better than the student as it came, by its {settings.metric} on "
            f"{len(place.order.judging)} samples",
            where=Path(output),
            hint="another --lr, more --epochs or samples; a student as good as its teacher has nothing to learn",
        )
    publication = _Publication(before, lesson, trained, seconds=time.perf_counter() - start, schema=schema)
    return publication.publish(Path(output), force=force, inputs=files)


def _class(
    teacher: Teacher,
    signature: models.Signature,
    data: str | os.PathLike[str] | Mapping[str, np.ndarray],
    settings: Settings,
) -> setup.Class:
    samples = read(data, signature.inputs)
    plan = order(
        samples,
        validation=settings.validation,
        batch=settings.batch,
        accumulate=settings.accumulate,
        seed=settings.seed,
    )
    outputs = tuple(spec.name for spec in signature.outputs if spec.name in teacher.names)
    return setup.Class(teacher, signature.inputs, outputs, samples, plan, settings)


class _Publication:
    """From a trained student to a file that is verified, and its record."""

    def __init__(self, teacher: ModelFile, lesson: Lesson, trained: Trained, *, seconds: float, schema: str) -> None:
        self._teacher, self._lesson, self._trained = teacher, lesson, trained
        self._seconds, self._schema = seconds, schema
        self._fidelity: Fidelity | None = None
        self._warnings: list[str] = []
        self._result: Distilled | None = None

    def publish(self, output: Path, *, force: bool, inputs: tuple[Path, ...]) -> Distilled:
        with tempfile.TemporaryDirectory(prefix="onnxcomp-distill-") as folder:
            model = self._lesson.student.finished(Path(folder))
            wanted = models.signature(model)

            def verify(path: Path) -> None:
                runtime.check_loads(path)
                if models.signature(models.load(path)) != wanted:
                    raise GateError("the file has other inputs or outputs than the student", where=path)
                self._compare(path)

            models.publish(model, output, verify=verify, force=force, inputs=inputs, record=self._describe)
        assert self._result is not None
        return self._result

    def _compare(self, path: Path) -> None:
        sessions = [runtime.open_session(file) for file in (Path(self._teacher.path), path)]
        judging = setup.batches(self._lesson.samples, self._lesson.order.judging, sessions[0].signature.inputs)
        try:
            self._fidelity = compare_sessions(sessions[0], sessions[1], judging)
        except DataError as error:
            self._warnings.append(f"output and teacher were not compared in ONNX Runtime: {error}")

    def _describe(self, made: ModelFile) -> bytes:
        lesson = self._lesson
        counts = {"trained": len(lesson.order.training), "judged": len(lesson.order.judging)}
        self._result = Distilled(
            self._teacher,
            lesson.student.to_json(),
            made,
            lesson.settings,
            self._trained,
            trained_elements(lesson.student.module),
            self._fidelity,
            {**lesson.samples.source, **counts},
            self._seconds,
            tuple(self._warnings),
        )
        return documents.to_text({"schema": self._schema, **self._result.to_json()}).encode()
