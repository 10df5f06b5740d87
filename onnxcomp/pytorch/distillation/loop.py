"""The training loop: a student, a goal, samples; everything that a step depends on follows from its number.

Order of samples, augmentation, random numbers and learning rate are functions of the seed and the
step. So a run that goes on from a checkpoint ends with the bits of one that was never interrupted, on
a CPU with the same number of threads.

Several processes share each step: gradients, losses and statistics are their means, so that all hold the
same student and decide alike; the first one keeps the checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from onnxcomp import worker
from onnxcomp.errors import GateError, UsageError
from onnxcomp.pytorch.distillation import state as states
from onnxcomp.pytorch.distillation.ahead import ahead
from onnxcomp.pytorch.distillation.checkpoint import Checkpoint, Checkpoints
from onnxcomp.pytorch.distillation.goal import Judged, as_tensors, compares_classes
from onnxcomp.pytorch.distillation.lesson import Lesson
from onnxcomp.pytorch.distillation.optimizer import fill_optimizer, make_optimizer, optimizer_tensors
from onnxcomp.pytorch.distillation.ranks import Ranks
from onnxcomp.pytorch.distillation.remembered import Remembered
from onnxcomp.pytorch.distillation.teacher import Feeds

#: what `ahead` gives: feeds of a run, and the teacher's answers
_Answered = Generator[tuple[Feeds, dict[str, Tensor]], None, None]

#: seconds between checkpoints within an epoch
CHECKPOINT_SECONDS = 60.0


class Watch(Protocol):
    """Hears of every epoch."""

    def epoch(self, facts: Mapping[str, Any], step: int) -> None:
        """`facts`: an entry of the history."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run did.

    Attributes:
        history: per epoch `epoch`, `loss`, `validation`, `seconds`, `lr`; epoch 0 is the student as it came.
        best: the epoch whose weights the student holds now.
        steps: of the optimizer.
        resumed: the step of the checkpoint that the run went on from, or None.
        stopped_early: whether patience ended it.
    """

    history: tuple[Mapping[str, Any], ...]
    best: int
    steps: int
    resumed: int | None
    stopped_early: bool


@dataclasses.dataclass
class _Progress:
    """Where the run is; plain JSON."""

    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    best: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Training:
    """One run.

    Args:
        lesson: its student holds the best weights in the end.
        checkpoints: where the run is kept; None: nowhere.
        checkpoint_seconds: between checkpoints within an epoch; there is one after each epoch too.
        watch: hears of every epoch.
        ranks: the processes that train together; the lesson's order gives each its share.
    """

    def __init__(
        self,
        lesson: Lesson,
        *,
        checkpoints: Checkpoints | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        watch: Watch | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        self._lesson, self._settings, self._module = lesson, lesson.settings, lesson.student.module
        self._judge_of = Remembered(lesson.teacher)
        self._ranks = ranks
        self._checkpoints, self._watch = checkpoints, watch
        self._checkpoint_seconds, self._saved_at = checkpoint_seconds, time.monotonic()
        self._in_epoch = lesson.order.steps
        self._steps = self._settings.epochs * self._in_epoch
        # convolutions are faster so; torch documents this form, its types lack it
        self._module.to(lesson.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = [*self._module.parameters(), *lesson.goal.to(lesson.device).parameters()]
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._optimizer = make_optimizer(self._settings, self._parameters)
        self._statistics = states.statistics(self._module)
        self._progress = _Progress()
        self._average = None if self._settings.average is None else states.copied(states.live(self._module))
        self._best: states.State = {}

    def run(self) -> Trained:
        """Train to the end.

        Raises GateError where a loss or a gradient is not finite, naming the step; UsageError where the
        metric cannot be measured; what the teacher, the data and the checkpoints raise.
        """
        with torch.random.fork_rng(devices=[self._lesson.device] if self._lesson.device.type == "cuda" else []):
            resumed = self._resume()
            self._ranks.start_alike(
                tensor for part in (self._module, self._lesson.goal) for tensor in states.live(part).values()
            )
            progress = self._progress
            if not progress.history:
                self._close_epoch(0)
            while progress.step < self._steps and not self._patience_is_over():
                epoch = progress.step // self._in_epoch
                self._epoch(epoch)
                self._close_epoch(epoch + 1)
        states.put(self._module, self._best)
        self._module.eval()
        over = progress.step < self._steps
        return Trained(tuple(progress.history), progress.best, progress.step, resumed, over)

    def _epoch(self, epoch: int) -> None:
        progress, lesson = self._progress, self._lesson
        first = progress.step % self._in_epoch
        plan = list(enumerate(lesson.order.epoch(epoch, first), first))
        rank = self._ranks.rank
        feeds = (lesson.feeds(rows, epoch, at, part, rank) for at, parts in plan for part, rows in enumerate(parts))
        start = time.perf_counter() - progress.seconds
        with contextlib.closing(self._answered(feeds)) as answered:
            for at, parts in plan:
                torch.manual_seed(_seed(self._settings.seed, epoch, at, rank))
                self._step(parts, answered, f"epoch {epoch + 1}, step {at + 1}")
                progress.seconds = time.perf_counter() - start
                text = f"epoch {epoch + 1} of {self._settings.epochs}, loss {progress.loss / (at + 1):.4f}"
                worker.report(text, progress.step / self._steps)
                if at + 1 < self._in_epoch and time.monotonic() - self._saved_at >= self._checkpoint_seconds:
                    self._save()

    def _step(self, parts: list[np.ndarray], answered: _Answered, where: str) -> None:
        settings, progress = self._settings, self._progress
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate(progress.step, self._steps)
        self._optimizer.zero_grad(set_to_none=True)
        self._lesson.student.train(frozen=settings.freeze_statistics)
        total = 0.0
        for rows in parts:
            feeds, answers = next(answered)
            loss = self._loss(feeds, answers, rows)[0] * (len(rows) / self._lesson.order.batch)
            total += loss.item()
            loss.backward()  # type: ignore[no-untyped-call]
        (total,) = self._ranks.summed([total])
        self._finite(total, "loss", where)
        self._ranks.add_gradients(self._parameters)
        self._ranks.averaged(self._statistics)
        norm = nn.utils.clip_grad_norm_(self._parameters, settings.clip or math.inf)
        self._finite(float(norm), "gradient", where)
        self._optimizer.step()
        progress.step += 1
        progress.loss += total
        if self._average is not None and settings.average is not None:
            states.average(self._average, self._module, decay=settings.average, step=progress.step)

    def _loss(
        self, feeds: Feeds, answers: Mapping[str, Tensor], rows: np.ndarray
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """(the loss, the student's values, the mask) of one run."""
        device = self._lesson.device
        tensors = as_tensors(feeds, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            values = self._lesson.student.values(tensors)
        mask = None if self._settings.mask is None else tensors[self._settings.mask]
        total: Tensor = self._lesson.goal(values, answers, labels=self._lesson.labels(rows), mask=mask).total
        return total, values, mask

    def _answered(self, feeds: Iterator[Feeds]) -> _Answered:
        if self._settings.labels_weight < 1:
            yield from ahead(self._lesson.teacher, feeds)
        else:
            yield from ((one, {}) for one in feeds)

    def _close_epoch(self, epoch: int) -> None:
        """Judge, keep what is best, and save."""
        progress, settings = self._progress, self._settings
        start = time.perf_counter()
        with states.holding(self._module, self._average):
            measured = self._judge()
            if settings.metric not in measured:
                raise UsageError(
                    f"{settings.metric} cannot be measured: {', '.join(measured)} can",
                    where="--metric",
                    hint="agreement needs class scores, accuracy labels beside them",
                )
            self._finite(measured["loss"], "loss on the validation samples", f"after epoch {epoch}")
            entry = {
                "epoch": epoch,
                "loss": progress.loss / self._in_epoch if epoch else None,
                "validation": measured,
                "seconds": round(progress.seconds + time.perf_counter() - start, 3),
                "lr": settings.rate(progress.step - 1, self._steps) if epoch else 0.0,
            }
            progress.history.append(entry)
            if not epoch or self._key(measured) > self._key(progress.history[progress.best]["validation"]):
                progress.best = epoch
                self._best = {name: t.cpu() for name, t in states.copied(states.live(self._module)).items()}
        progress.loss = progress.seconds = 0.0
        if self._watch is not None:
            self._watch.epoch(entry, progress.step)
        self._save()

    def _key(self, measured: Mapping[str, float]) -> tuple[float, ...]:
        """More is better; the loss decides between equals."""
        return (
            (-measured["loss"],)
            if self._settings.metric == "loss"
            else (
                measured[self._settings.metric],
                -measured["loss"],
            )
        )

    def _judge(self) -> dict[str, float]:
        self._module.eval()
        judged, lesson = Judged(), self._lesson
        ours, theirs = lesson.judged
        parts = list(lesson.order.judged())
        for rows, (feeds, answers) in zip(parts, ahead(self._judge_of, map(lesson.samples.feeds, parts)), strict=True):
            with torch.inference_mode():
                loss, values, mask = self._loss(feeds, answers, rows)
                judged.add(
                    loss.item(),
                    values[ours],
                    answers[theirs],
                    labels=lesson.samples.labels_of(rows),
                    mask=mask,
                    samples=len(rows),
                )
        judged.sums = self._ranks.summed(judged.sums)
        return judged.to_json(classes=compares_classes(self._settings), labelled=lesson.samples.labels is not None)

    def _patience_is_over(self) -> bool:
        progress, patience = self._progress, self._settings.patience
        at_end = progress.step % self._in_epoch == 0
        return patience is not None and at_end and len(progress.history) - 1 - progress.best >= patience

    def _finite(self, value: float, what: str, where: str) -> float:
        if math.isfinite(value):
            return value
        kept = None if self._checkpoints is None else self._checkpoints.path
        last = "" if kept is None or not kept.exists() else f"; {kept} holds the last good step"
        raise GateError(
            f"the {what} is not finite", where=where, hint=f"a smaller --lr, a --clip, or look at the samples{last}"
        )

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        parts = {
            "student": states.live(self._module),
            "objective": states.live(self._lesson.goal),
            "average": self._average or {},
            "best": self._best,
            "optimizer": optimizer_tensors(self._optimizer),
        }
        tensors = {f"{part}/{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
        self._checkpoints.save(Checkpoint(tensors, dataclasses.asdict(self._progress)))
        self._saved_at = time.monotonic()

    def _resume(self) -> int | None:
        found = self._ranks.from_first(lambda: None if self._checkpoints is None else self._checkpoints.load())
        if found is None:
            return None
        self._progress = _Progress(**found.progress)
        with torch.no_grad():
            states.put(self._module, found.part("student"))
            states.put(self._lesson.goal, found.part("objective"))
        if self._average is not None:
            self._average = {name: tensor.to(self._lesson.device) for name, tensor in found.part("average").items()}
        self._best = found.part("best")
        fill_optimizer(self._optimizer, found.part("optimizer"))
        return self._progress.step


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
