"""What one run of a student is held against: losses by name, hints, labels; and how good an epoch is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxcomp.passes.distill import OF_CLASSES, Settings
from onnxcomp.pytorch.distillation.losses import LOSSES, Objective, Term, pairs
from onnxcomp.pytorch.distillation.losses.base import rows


def make_goal(settings: Settings, student: Sequence[str], teacher: Sequence[str]) -> tuple[Objective, str, str]:
    """(the goal, the student's output that is judged, the teacher's that it is held against).

    Where labels have all of the weight, the goal has no terms: the control, which learns nothing of the teacher.

    Args:
        settings: loss, temperature, hints, share of the labels.
        student: names of the student's outputs.
        teacher: names of the teacher's.

    Raises UsageError where outputs have no counterpart.
    """
    paired = pairs(student, teacher)
    ours, theirs = paired[0]
    weight = settings.labels_weight
    tempered = {"temperature": settings.temperature} if settings.loss in ("kl", "dkl") else {}
    terms = [Term(LOSSES[settings.loss](**tempered), s, t) for s, t in paired] if weight < 1 else []
    terms += [Term(LOSSES[hint.loss](), hint.student, hint.teacher, settings.hint_weight) for hint in settings.hints]
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
