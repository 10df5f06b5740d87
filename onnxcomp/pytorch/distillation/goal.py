"""What one run of a student is held against: losses by name, hints, labels; and how good an epoch is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxcomp.errors import DataError, UsageError
from onnxcomp.passes.distill import OF_CLASSES, Settings
from onnxcomp.pytorch.distillation.losses import LOSSES, Hint, Losses, Objective, Term, pairs
from onnxcomp.pytorch.distillation.losses.base import rows
from onnxcomp.pytorch.distillation.losses.response import row_labels


class Supervised(nn.Module):
    """Cross entropy with the labels alone: the control, which has no teacher.

    Args:
        scores: the student's tensor of class scores.
    """

    def __init__(self, scores: str) -> None:
        super().__init__()
        self.scores = scores

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        *,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Losses:
        """The loss of one batch; nothing of the teacher is read. Raises DataError for labels that do not fit."""
        if labels is None:
            raise DataError("the data has no labels", hint="labels_weight=0 needs none")
        scores = student[self.scores]
        targets = row_labels(labels, scores, -1, mask)
        total = functional.cross_entropy(rows(scores, -1, mask).float(), targets)
        return Losses(total, {"labels": total.detach()})


Goal = Objective | Supervised


def parse_hints(hints: Sequence[str]) -> list[tuple[str, str]]:
    """(teacher's tensor, student's tensor) of each 'TEACHER=STUDENT'. Raises UsageError."""
    found = []
    for hint in hints:
        theirs, _, ours = hint.partition("=")
        if not theirs or not ours:
            raise UsageError("not of the form TEACHER_TENSOR=STUDENT_TENSOR", where=f"--hint {hint}")
        found.append((theirs, ours))
    return found


def make_goal(settings: Settings, student: Sequence[str], teacher: Sequence[str]) -> tuple[Goal, str, str]:
    """(the goal, the student's output that is judged, the teacher's that it is held against).

    Args:
        settings: loss, temperature, hints, share of the labels.
        student: names of the student's outputs.
        teacher: names of the teacher's.

    Raises UsageError where outputs have no counterpart.
    """
    paired = pairs(student, teacher)
    ours, theirs = paired[0]
    if settings.labels_weight == 1:
        return Supervised(ours), ours, theirs
    tempered = {"temperature": settings.temperature} if settings.loss in ("kl", "dkl") else {}
    terms = [Term(LOSSES[settings.loss](**tempered), s, t) for s, t in paired]
    terms += [Term(Hint(), s, t, settings.hint_weight) for t, s in parse_hints(settings.hint)]
    weight = settings.labels_weight
    return Objective(terms, labels_weight=weight, scores=ours if weight else None), ours, theirs


class Judged:
    """Sums over the judging samples: mean loss, share of rows with the teacher's class, share of right ones.

    Attributes:
        sums: of the loss, samples, rows, same and right ones; those of several processes add up.
    """

    def __init__(self) -> None:
        self.sums = [0.0] * 5

    def _count(self, *numbers: float) -> None:
        self.sums = [held + number for held, number in zip(self.sums, numbers, strict=True)]

    def add(
        self,
        loss: float,
        student: Tensor,
        teacher: Tensor,
        *,
        labels: np.ndarray | None,
        mask: Tensor | None,
        samples: int,
    ) -> None:
        """One run. student, teacher: the judged outputs."""
        self._count(loss * samples, samples, 0, 0, 0)
        if student.ndim < 2 or student.shape != teacher.shape or student.shape[-1] < 2:
            return
        real = None if mask is None else mask != 0
        ours = rows(student, -1, real).argmax(-1)
        same = int((ours == rows(teacher, -1, real).argmax(-1).to(ours.device)).sum())
        self._count(0, 0, len(ours), same, 0)
        if labels is not None and labels.shape == tuple(student.shape[:-1]):
            truth = rows(torch.from_numpy(labels).to(ours.device)[..., None], -1, real)[:, 0]
            self._count(0, 0, 0, 0, int((ours == truth).sum()))

    def to_json(self, *, classes: bool, labelled: bool) -> dict[str, float]:
        """`loss`, and `agreement` and `accuracy` where they make sense."""
        loss, samples, compared, same, right = self.sums
        found = {"loss": loss / max(samples, 1)}
        if classes and compared:
            found["agreement"] = same / compared
            if labelled:
                found["accuracy"] = right / compared
        return found


def compares_classes(settings: Settings) -> bool:
    """Whether the outputs are class scores."""
    return settings.loss in OF_CLASSES or settings.labels_weight > 0


def as_tensors(feeds: Mapping[str, object], device: torch.device) -> dict[str, Tensor]:
    """Arrays as tensors on the device."""
    return {name: torch.as_tensor(array).to(device, non_blocking=True) for name, array in feeds.items()}
