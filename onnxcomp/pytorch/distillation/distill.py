"""Train a student by a teacher and publish what it has become, with its record."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import documents, memory, runtime
from onnxcomp import model as models
from onnxcomp.errors import DataError, GateError, NoEffectError, UsageError
from onnxcomp.evaluate.fidelity import Fidelity, compare_sessions
from onnxcomp.model import ModelFile
from onnxcomp.pytorch.distillation import setup
from onnxcomp.pytorch.distillation.guide import Named
from onnxcomp.pytorch.distillation.lesson import Augment
from onnxcomp.pytorch.distillation.loop import CHECKPOINT_SECONDS
from onnxcomp.pytorch.distillation.ranks import choose_device, from_environment, joined
from onnxcomp.pytorch.distillation.result import Distilled
from onnxcomp.pytorch.distillation.students import trained_elements
from onnxcomp.pytorch.distillation.teach import Taught, teach


def distill(
    teacher: Named,
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
    student as it came counts as epoch 0: when nothing is better, that is an error. More than 1 GiB of samples stays
    in files, mapped where an `.npy` or an uncompressed `.npz` holds them, else in a temporary one (TMPDIR).

    Under `torchrun`, `batch` is shared by all processes: what comes out is what one process makes with `accumulate`
    as many times as large, up to the order of sums, where no random numbers are drawn. BatchNormalization sees the
    part of one process, as it does the parts of a step, and statistics are averaged (`freeze_statistics` keeps
    them). The first process writes; what fails in one ends all.

    Args:
        teacher: an ONNX file, which ONNX Runtime runs; or a torch module, in eval mode without gradients where it
            is, which takes the samples by the names of `forward`'s arguments; hints are paths of its submodules.
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
    files = tuple(file for file in map(setup.onnx_file, (teacher, student)) if file is not None)
    ranks = from_environment()
    memory.reset_peak()
    with joined(ranks, choose_device(settings, ranks)):
        if ranks.first:
            models.refuse_target(Path(output), force=force, inputs=files)
        taught = teach(
            teacher, student, data, settings, augment=augment, quantization_aware=quantization_aware, cache=cache,
            checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds, resume=resume, tensorboard=tensorboard,
            ranks=ranks,
        )  # fmt: skip
        if taught.trained.best == 0:
            raise NoEffectError(
                f"{taught.nothing_better}, by its {settings.metric}",
                where=Path(output),
                hint="another --lr, more --epochs or samples; a student as good as its teacher has nothing to learn",
            )
        publication = _Publication(taught, schema=schema)
        return ranks.from_first(lambda: publication.publish(Path(output), force=force, inputs=files))


class _Publication:
    """From a trained student to a file that is verified, and its record."""

    def __init__(self, taught: Taught, *, schema: str) -> None:
        self._guide, self._lesson, self._taught, self._schema = taught.guide, taught.lesson, taught, schema
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
        judging = setup.batches(self._lesson.samples, self._lesson.order.judging, self._guide.inputs)
        try:
            self._fidelity = compare_sessions(self._guide.answering(), runtime.open_session(path), judging)
        except DataError as error:
            self._warnings.append(f"output and teacher were not compared: {error}")

    def _describe(self, made: ModelFile) -> bytes:
        lesson = self._lesson
        counts = {"trained": len(lesson.order.training), "judged": len(lesson.order.judging)}
        self._result = Distilled(
            self._guide.file,
            self._guide.kind,
            lesson.student.to_json(),
            made,
            lesson.settings,
            self._taught.trained,
            trained_elements(lesson.student.module),
            self._fidelity,
            {**lesson.samples.source, **counts},
            self._taught.seconds,
            memory.measure().peak_bytes,
            tuple(self._warnings),
        )
        return documents.to_text({"schema": self._schema, **self._result.to_json()}).encode()
