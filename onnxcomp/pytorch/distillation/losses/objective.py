"""What a student is trained for: weighted losses between named tensors, and labels where there are some."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxcomp.errors import DataError, OnnxcompError, UsageError, nearest
from onnxcomp.pytorch.distillation.losses.base import Loss, mean, not_negative, rows
from onnxcomp.pytorch.distillation.losses.response import row_labels


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss between a tensor of the student and one of the teacher.

    Attributes:
        loss: of `LOSSES`.
        student: name of the student's tensor.
        teacher: name of the teacher's.
        weight: at least 0.
    """

    loss: Loss
    student: str
    teacher: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative(weight=self.weight)

    def __str__(self) -> str:
        return f"{type(self.loss).__name__.lower()} {self.student}={self.teacher}"


@dataclasses.dataclass(frozen=True)
class Losses:
    """Of one batch: `total` to go backward from, `parts` (no gradient, before weights) by term, and 'labels'."""

    total: Tensor
    parts: Mapping[str, Tensor]


class Objective(nn.Module):
    """(1 - labels_weight) * sum of weight * loss, + labels_weight * cross-entropy with the labels.

    Its parameters are the projectors of hints: give them to the optimizer after `prepare`. They are no part
    of the student.

    Args:
        terms: none with a labels_weight of 1, which is the control run: the teacher is not looked at.
        labels_weight: in [0, 1]; 0 needs no labels.
        scores: the student's tensor of class scores that labels are held against.
        axis: of its classes.
    """

    def __init__(
        self, terms: Sequence[Term], *, labels_weight: float = 0.0, scores: str | None = None, axis: int = -1
    ) -> None:
        super().__init__()
        if not 0 <= labels_weight <= 1:
            raise UsageError("must be in [0, 1]", where=f"labels_weight={labels_weight}")
        if not terms and labels_weight < 1:
            raise UsageError("no loss to train with")
        if labels_weight and scores is None:
            raise UsageError("labels need the name of the student's class scores", where="scores")
        self.terms = tuple(terms)
        self.labels_weight, self.scores, self.axis = labels_weight, scores, axis
        self.losses = nn.ModuleList(term.loss for term in terms)

    def prepare(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """Check names and shapes on the outputs of one batch, and make the projectors.

        Raises UsageError, naming the term.
        """
        for term, s, t in self._each(student, teacher):
            with _naming(term):
                term.loss.prepare(s, t)
        if self.scores is not None:
            _of(student, self.scores, "student")

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        *,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Losses:
        """The losses of one batch; see `Loss.forward` for labels and mask.

        Raises UsageError for names and shapes (naming the term), DataError for labels that are missing or do
        not fit.
        """
        parts, total = {}, torch.zeros(())
        for term, s, t in self._each(student, teacher):
            with _naming(term):
                found = term.loss(s, t, labels=labels, mask=mask)
            parts[str(term)] = found.detach()
            total = total.to(found) + (1 - self.labels_weight) * term.weight * found
        if self.labels_weight and self.scores is not None:
            found = self._supervised(_of(student, self.scores, "student"), labels, mask)
            parts["labels"] = found.detach()
            total = total + self.labels_weight * found
        return Losses(total, parts)

    def _supervised(self, scores: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        if labels is None:
            raise DataError("the data has no labels", hint="labels_weight=0 needs none")
        mask = None if mask is None else mask.to(scores.device) != 0
        targets = row_labels(labels, scores, self.axis, mask)
        return mean(functional.cross_entropy(rows(scores, self.axis, mask).float(), targets, reduction="none"))

    def _each(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> Iterator[tuple[Term, Tensor, Tensor]]:
        for term in self.terms:
            yield term, _of(student, term.student, "student"), _of(teacher, term.teacher, "teacher")


def pairs(student: Sequence[str], teacher: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(student's, teacher's) outputs that belong together: of one name, or else by position.

    Raises UsageError where the student has a name that the teacher has not, and not all can go by position.
    """
    if set(student) <= set(teacher):
        return tuple((name, name) for name in student)
    if len(student) == len(teacher) and not set(student) & set(teacher):
        return tuple(zip(student, teacher, strict=True))
    odd = next(name for name in student if name not in teacher)
    raise UsageError(
        f"the student's outputs are {', '.join(student)}, the teacher's {', '.join(teacher)}",
        where=odd,
        hint=nearest(odd, teacher) or "say which belong together",
    )


def _of(tensors: Mapping[str, Tensor], name: str, who: str) -> Tensor:
    if name not in tensors:
        raise UsageError(f"the {who} gives no such tensor", where=name, hint=nearest(name, tensors))
    return tensors[name]


@contextlib.contextmanager
def _naming(term: Term) -> Iterator[None]:
    """Errors of a loss say which term it is."""
    try:
        yield
    except OnnxcompError as error:
        where = str(term) if error.where is None else f"{term}: {error.where}"
        raise type(error)(error.message, where=where, hint=error.hint) from error
