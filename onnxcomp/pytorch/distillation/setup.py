"""Everything that is checked and made before the first step, so that hours of training are not lost to it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from onnxcomp import model as models
from onnxcomp.data import Batches, sources
from onnxcomp.errors import DataError, UnsafeModelError, UsageError, nearest
from onnxcomp.model import InputSpec
from onnxcomp.passes.distill import Settings
from onnxcomp.pytorch.distillation.goal import as_tensors, make_goal
from onnxcomp.pytorch.distillation.lesson import Augment, Lesson
from onnxcomp.pytorch.distillation.modules import ModuleStudent
from onnxcomp.pytorch.distillation.quantized import QuantizedGraph, is_quantized
from onnxcomp.pytorch.distillation.samples import Order, Samples
from onnxcomp.pytorch.distillation.students import GraphStudent, Student
from onnxcomp.pytorch.distillation.teacher import Teacher
from onnxcomp.pytorch.graph_module.weights import unescape

#: an ONNX file, a model in memory, or what `onnxcomp.pytorch.export` takes
Source = str | os.PathLike[str] | ir.Model | nn.Module | tuple[Any, ...]

#: training samples that give an unquantized student its ranges
_CALIBRATION = 512

#: what files with pickles are called
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")

_READ = 256  # samples that are taken at a time

_RUN = 64  # samples per run where nothing trains


def make_settings(options: Mapping[str, Any]) -> Settings:
    """Raises UsageError for an option that does not exist, and as `Settings` does."""
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in options:
        if name not in known:
            raise UsageError("distillation has no such option", where=name, hint=nearest(name, known))
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    return Settings(**values)


def onnx_file(source: object) -> Path | None:
    """The path of an ONNX file; None for any other student."""
    if isinstance(source, os.PathLike) or (isinstance(source, str) and source.endswith(".onnx")):
        return Path(source)
    return None


def refuse_pickle(source: object) -> None:
    """Raise UnsafeModelError for the name of a file that holds a pickled module."""
    if isinstance(source, str | os.PathLike) and Path(source).suffix in _PICKLES:
        raise UnsafeModelError(
            "a pickled module is never read, it can run code",
            where=source,
            hint="name the code that makes it: FILE.py:fn returns the module, with weights from .safetensors",
        )


def batches(samples: Samples, rows: np.ndarray, inputs: Sequence[InputSpec]) -> Batches:
    """Some of the samples for a run in ONNX Runtime, taken from where they are as they are needed."""
    step = _READ * (samples.size or 1)
    parts = [rows[low : low + step] for low in range(0, len(rows), step)]
    name = samples.source["source"]
    source = sources.Source(name, lambda: ({n: array[part] for n, array in samples.arrays.items()} for part in parts))
    return Batches(source, inputs, batch_size=_RUN)


@dataclasses.dataclass(frozen=True)
class Class:
    """The teacher and the samples: what a student is made to fit.

    Attributes:
        teacher: a live one, or its kept answers.
        inputs: of the teacher, and so of the student.
        outputs: names of the teacher's float outputs.
        samples: all of them.
        order: of the samples.
        settings: of the training.
    """

    teacher: Teacher
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    samples: Samples
    order: Order
    settings: Settings


def make_student(source: Source, place: Class, *, quantization_aware: bool) -> Student:
    """The student of a source. The first training samples give sizes, and ranges to a float graph that trains in int8.

    Raises UsageError: other inputs than the teacher's, or integers that would not train; UnsupportedError.
    """
    samples, order, settings = place.samples, place.order, place.settings
    hints = [hint.student for hint in settings.hints]
    file = onnx_file(source)
    if file is None and not isinstance(source, ir.Model):
        if quantization_aware:
            raise UsageError("--quantization-aware is for ONNX students", hint="export the module first")
        feeds = samples.feeds(order.training[: samples.size or max(order.part, 2)])
        sizes = {name: array.shape for name, array in feeds.items()}
        assert not isinstance(source, os.PathLike)
        return ModuleStudent(source, place.inputs, sizes, place.outputs, hints=hints, seed=settings.seed)
    model = models.load(file) if file is not None else source
    assert isinstance(model, ir.Model)
    ours, theirs = ({spec.name for spec in inputs} for inputs in (models.signature(model).inputs, place.inputs))
    if ours != theirs:
        raise UsageError(
            f"the student's inputs are {', '.join(sorted(ours))}, the teacher's {', '.join(sorted(theirs))}",
            where=file,
            hint="both must take the same samples",
        )
    if quantization_aware:
        some = batches(samples, order.training[:_CALIBRATION], place.inputs)
        return QuantizedGraph(file or model, hints, data=some)
    if is_quantized(model):
        raise UsageError(
            "the student's weights are integers, which do not train as they are",
            where=file,
            hint="give the student in float32; what 'quantize --mode static' wrote trains with --quantization-aware",
        )
    return GraphStudent(file or model, hints)


def make_lesson(student: Student, place: Class, augment: Augment | None, device: torch.device) -> Lesson:
    """Teacher and student together, proven on the first training samples.

    Raises UsageError for outputs and hints that do not belong together, and for weights to freeze that are not
    there; DataError for labels and masks.
    """
    samples, order, settings = place.samples, place.order, place.settings
    _freeze(student.module, settings.freeze)
    rows = order.training[: order.part]
    feeds = samples.feeds(rows)
    if settings.mask is not None and settings.mask not in feeds:
        raise UsageError("there is no such input", where=f"--mask {settings.mask}", hint=nearest(settings.mask, feeds))
    if settings.labels_weight and samples.labels is None:
        raise DataError("the data has no labels", where="--labels-weight", hint="0 needs none: the teacher is enough")
    answers, tensors = place.teacher.outputs(feeds), as_tensors(feeds, torch.device("cpu"))
    with torch.no_grad():
        values = student.values(tensors)
    goal, ours, theirs = make_goal(
        settings, [name for name in student.outputs if values[name].is_floating_point()], place.outputs
    )
    # how samples lie to each other can be compared in other dimensions
    if values[ours].shape != answers[theirs].shape and (settings.loss != "rkd" or settings.labels_weight == 1):
        raise UsageError(
            f"shape {tuple(values[ours].shape)} of the student, {tuple(answers[theirs].shape)} of the teacher",
            where=f"output {ours}",
            hint="a student answers as its teacher does: as many classes, as wide an embedding",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # of projectors
        goal.prepare(values, answers)
    lesson = Lesson(student, place.teacher, goal, (ours, theirs), samples, order, settings, device, augment)
    labels = samples.labels_of(rows) if settings.labels_weight else None
    mask = None if settings.mask is None else tensors[settings.mask]
    with torch.no_grad():
        goal(values, answers, labels=None if labels is None else torch.from_numpy(labels), mask=mask)
    return lesson


def _freeze(module: nn.Module, names: Sequence[str]) -> None:
    """Let the weights of these names stay as they are: initializers of a graph, parameters of a module."""
    known = {unescape(name): weight for name, weight in module.named_parameters() if weight.requires_grad}
    for name in names:
        if name not in known:
            raise UsageError("no weight that trains has this name", where=f"--freeze {name}", hint=nearest(name, known))
        known[name].requires_grad_(False)
    if known and not any(weight.requires_grad for weight in known.values()):
        raise UsageError("nothing is left to train", where="--freeze")
