"""`distill`: what the passes before have left of a model learns from the whole model, or from another one.

Declared here, without torch; `onnxcomp.pytorch` does the work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from onnxcomp.errors import UnsupportedError, UsageError, nearest
from onnxcomp.passes.base import Context, Effect, Pass, option

#: the losses that compare class scores
OF_CLASSES = ("kl", "dkl", "dist")

#: the losses that compare the samples of a run with each other
OF_SAMPLES = ("dist", "rkd")

#: the losses between inner tensors; others than these are for outputs
OF_HINTS = ("hint", "mse", "cosine", "rkd", "attention", "relation")

#: options, what they may be, in words
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("epochs", "batch", "accumulate", "patience"), lambda value: value >= 1, "must be 1 or more"),
    (("temperature", "lr", "clip"), lambda value: 0 < value < math.inf, "must be above 0"),
    (("weight_decay", "hint_weight"), lambda value: 0 <= value < math.inf, "must be 0 or more"),
    (("labels_weight",), lambda value: 0 <= value <= 1, "is a share from 0 to 1"),
    (("warm_up", "average"), lambda value: 0 <= value < 1, "is 0 or more and below 1"),
    (("validation",), lambda value: 0 < value < 1, "is a share between 0 and 1: held-out samples choose the epoch"),
)

#: share of the peak that the learning rate begins with
_FIRST = 0.04


@dataclasses.dataclass(frozen=True)
class HintPair:
    """An inner tensor of the teacher, the student's that shall be like it, and the loss between them, of `OF_HINTS`."""

    teacher: str
    student: str
    loss: str = "hint"

    @staticmethod
    def parse(text: str) -> HintPair:
        """The pair of 'TEACHER=STUDENT' or 'TEACHER=STUDENT:LOSS'. Raises UsageError.

        Names of tensors have colons too ('add:0', 'onnx::MatMul_7'): the last one counts where a loss follows.
        """
        theirs, _, ours = text.partition("=")
        name, colon, loss = ours.rpartition(":")
        if not colon or loss not in OF_HINTS:
            if colon and (near := nearest(loss, OF_HINTS)):
                raise UsageError(f"a hint has no loss '{loss}'", where=f"--hint {text}", hint=near)
            name, loss = ours, "hint"
        if not theirs or not name:
            raise UsageError("not of the form TEACHER_TENSOR=STUDENT_TENSOR[:LOSS]", where=f"--hint {text}")
        return HintPair(theirs, name, loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a student is trained: every option once, for the API, the command line, recipes and the record.

    The same ones give the same student on the same threads.
    """

    loss: Literal["kl", "dkl", "dist", "mse", "cosine", "rkd"] = option(
        "kl",
        "what is near the teacher: kl, dkl and dist for class scores; mse, cosine, and rkd (how samples lie to each "
        "other, also in fewer dimensions) for embeddings and others",
    )
    temperature: float = option(4.0, "of kl and dkl: what the scores are divided by")
    hint: tuple[str, ...] = option(
        (),
        "TEACHER=STUDENT[:LOSS]: inner tensors that shall be alike; repeatable. LOSS: hint (equal, through a projector "
        "where the widths differ), mse, cosine, rkd, attention (probabilities), relation (queries, keys, values or "
        "hidden states, of any width)",
    )
    hint_weight: float = option(1.0, "weight of the hints beside the loss")
    labels_weight: float = option(0.0, "share of cross entropy with the data's labels; 1: no teacher, the control run")
    mask: str | None = option(None, "the input that is 0 where there is padding: it is left out of the losses")
    epochs: int = option(10, "times that every training sample is seen")
    batch: int = option(64, "samples per step")
    accumulate: int = option(1, "parts in which a step runs, for less memory")
    lr: float = option(1e-3, "peak of the learning rate: a warm-up, then half a cosine")
    warm_up: float = option(0.1, "share of the steps in which the learning rate rises")
    optimizer: Literal["adamw", "sgd"] = option("adamw", "adamw, or sgd with a momentum of 0.9")
    weight_decay: float = option(0.01, "of matrices and kernels; biases and norms have none")
    clip: float | None = option(None, "largest norm of a step's gradient; unset: any")
    average: float | None = option(None, "decay of a running average of the weights, which is then the result: 0.999")
    freeze_statistics: bool = option(False, "BatchNormalization keeps the statistics that it has")
    freeze: tuple[str, ...] = option(
        (), "weights, by name, that stay as they are (a large table of words costs time at each step); repeatable"
    )
    validation: float = option(0.1, "share of the samples that judges and does not train")
    metric: Literal["loss", "agreement", "accuracy"] = option(
        "loss", "what chooses the best epoch, on the validation samples"
    )
    patience: int | None = option(None, "epochs without a better one after which training ends; unset: never")
    seed: int = option(0, "of the split, the order of samples, random parts of the student")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where the student trains; on cuda in mixed precision")

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range, or options that exclude each other."""
        for names, fits, text in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise UsageError(f"--{name.replace('_', '-')} {text}", where=f"{name}={value}")
        if self.hints and self.labels_weight == 1:
            raise UsageError(
                "hints have nothing to follow: the teacher is not asked",
                where="labels_weight=1",
                hint="leave out --hint",
            )

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """What the command line makes options from, as it does from a pass's."""
        return dataclasses.fields(cls)

    @property
    def hints(self) -> tuple[HintPair, ...]:
        """Of the option `hint`. Raises UsageError for one that is none."""
        return tuple(map(HintPair.parse, self.hint))

    @property
    def compares_samples(self) -> bool:
        """Whether a loss needs the samples of a step in one run."""
        return not {self.loss, *(hint.loss for hint in self.hints)}.isdisjoint(OF_SAMPLES)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step of `steps`: a line up to `lr`, then half a cosine (Loshchilov, Hutter 2017)."""
        rising = round(self.warm_up * steps)
        if step < rising:
            return self.lr * (_FIRST + (1 - _FIRST) * step / rising)
        done = (step - rising) / max(steps - rising, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def to_json(self) -> dict[str, Any]:
        """The options by name."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Settings, Pass):
    """Train what the passes before have left of the model to answer as the recipe's input does (needs torch).

    Samples need no labels. A part of them judges every epoch and never trains; what stays is the epoch that is
    best on it. After Hinton et al. 2015 (arXiv:1503.02531) for class scores.

    Rules:
        1. The teacher is the recipe's input as it was before the first pass, or another ONNX file with the same
           inputs; ONNX Runtime runs it. Best in float32.
        2. Weights in float train; the graph stays as it is. With `quantization_aware` the graph is in int8 while it
           trains and in the end: what `quantize-static` has written before, or a float graph that is quantized first.
        3. When no epoch is better than what came, nothing has changed; a float graph is in int8 then all the same.
        4. This pass sees all samples that calibrate, also where the recipe's `calibration` gives others fewer.
    """

    name: ClassVar[str] = "distill"
    needs_data: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    teacher: str | None = option(None, "an ONNX file to learn from; unset: the recipe's input")
    quantization_aware: bool = option(False, "the model is in int8 while it trains, and in the end")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UnsupportedError: passes know nothing of torch."""
        raise UnsupportedError(
            "this pass needs torch, and somebody who brings it",
            where=self.name,
            hint="'onnxcomp run' does; in Python: optimize(model, onnxcomp.pytorch.with_torch(passes))",
        )
