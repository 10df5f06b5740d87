"""Losses on class scores: KL (Hinton et al. 2015) and decoupled KD (Zhao et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.errors import DataError
from onnxcomp.pytorch.distillation.losses.base import (
    Loss,
    Shape,
    mean,
    not_negative,
    positive,
    rows,
    several_classes,
)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p_teacher || p_student) of each row, (...,), from logits (..., classes)."""
    s, t = functional.log_softmax(student, -1), functional.log_softmax(teacher, -1)
    return functional.kl_div(s, t, reduction="none", log_target=True).sum(-1)


class KL(Loss):
    """T^2 * mean over rows of KL(softmax(t / T) || softmax(s / T)).

    T^2 keeps the gradient's size over T: without it, it falls as 1 / T^2. Student and teacher: logits,
    (rows, classes) or (samples, positions, classes). After Hinton et al. 2015, arXiv 1503.02531.

    Args:
        temperature: T.
        axis: of the classes.
    """

    def __init__(self, *, temperature: float = 4.0, axis: int = -1) -> None:
        super().__init__()
        positive(temperature=temperature)
        self.temperature, self.axis = temperature, axis

    def check(self, student: Shape, teacher: Shape) -> None:
        """Equal shapes, two classes at least."""
        super().check(student, teacher)
        several_classes(student, self.axis)

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`."""
        s, t = (rows(x, self.axis, mask) / self.temperature for x in (student, teacher))
        return self.temperature**2 * mean(divergence(s, t))


class DKD(Loss):
    """T^2 * mean over rows of alpha * TCKD + beta * NCKD: KL, with its two parts weighted apart.

    With p = softmax(x / T), target class c and q = softmax over the other classes alone:
    TCKD = KL of (p_c, 1 - p_c), NCKD = KL of q, each from teacher to student. KL itself is
    TCKD + (1 - p_c of the teacher) * NCKD. The target class is the label; without labels it is the class
    that the teacher scores highest. Shapes as in `KL`. After Zhao et al. 2022, arXiv 2203.08679, eq. 7.

    Args:
        temperature: T.
        alpha: weight of the target class against the rest.
        beta: weight of the other classes among themselves; the paper tunes it, 8 is its usual choice.
        axis: of the classes.
    """

    def __init__(self, *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0, axis: int = -1) -> None:
        super().__init__()
        positive(temperature=temperature)
        not_negative(alpha=alpha, beta=beta)
        self.temperature, self.alpha, self.beta, self.axis = temperature, alpha, beta, axis

    def check(self, student: Shape, teacher: Shape) -> None:
        """Equal shapes, two classes at least."""
        super().check(student, teacher)
        several_classes(student, self.axis)

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`; labels as the rows, before the mask."""
        s, t = (rows(x, self.axis, mask) / self.temperature for x in (student, teacher))
        targets = t.argmax(-1) if labels is None else row_labels(labels, student, self.axis, mask)
        targets = targets[:, None]
        own = divergence(_against_rest(s, targets), _against_rest(t, targets))
        others = divergence(_without(s, targets), _without(t, targets))
        return self.temperature**2 * mean(self.alpha * own + self.beta * others)


def row_labels(labels: Tensor, scores: Tensor, axis: int, mask: Tensor | None) -> Tensor:
    """(rows,) int64: the labels of the rows that `rows` gives of these scores.

    Raises DataError where they are no class numbers of the scores.
    """
    lead = scores.movedim(axis, -1).shape[:-1]
    if labels.is_floating_point() or labels.shape != lead:
        raise DataError(
            f"labels of {tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}, where class numbers of "
            f"{tuple(lead)} are needed",
            where="labels",
        )
    found = rows(labels.to(scores.device, torch.int64)[..., None], -1, mask)[:, 0]
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < scores.shape[axis]:
        raise DataError(f"a label outside of 0 to {scores.shape[axis] - 1}", where="labels")
    return found


def _against_rest(scores: Tensor, targets: Tensor) -> Tensor:
    """(rows, 2) logits of the target class and of all others together."""
    return torch.cat([scores.gather(1, targets), _without(scores, targets).logsumexp(1, keepdim=True)], 1)


def _without(scores: Tensor, targets: Tensor) -> Tensor:
    """(rows, classes - 1): the scores of the other classes."""
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, targets, value=False)
    return scores[others].reshape(len(scores), scores.shape[1] - 1)
