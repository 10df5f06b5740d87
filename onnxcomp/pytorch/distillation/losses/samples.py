"""RKD: how samples lie to each other, in distances and angles (Park et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.errors import UsageError
from onnxcomp.pytorch.distillation.losses.base import Loss, Shape, mean, not_negative, rows

#: a squared length below it counts as this one: two equal samples have no direction between them
_LEAST = 1e-12


class RKD(Loss):
    """distance * mean over pairs of h(d_s, d_t) + angle * mean over triplets of h(a_s, a_t).

    d is the distance of two samples over the mean distance in the batch, a the cosine of the angle that two
    samples make at a third, h Huber's loss; pairs and triplets are of different samples. What counts is how samples
    lie to each other, so that the widths may differ, and a student may turn, move and stretch what its teacher does.

    Student and teacher: one vector per sample, (samples, width). It compares the samples of a run: a larger batch
    knows more, fewer than three teach nothing. Memory grows with samples^3 (1 MiB for 64, 64 MiB
    for 256, for each of some tensors); `accumulate` makes runs smaller. After Park et al. 2019, arXiv 1904.05068.

    Args:
        distance: weight of the distances.
        angle: weight of the angles.
    """

    def __init__(self, *, distance: float = 1.0, angle: float = 2.0) -> None:
        super().__init__()
        not_negative(distance=distance, angle=angle)
        self.distance_weight, self.angle_weight = distance, angle

    def check(self, student: Shape, teacher: Shape) -> None:
        """One vector per sample, as many samples."""
        for who, shape in (("student", student), ("teacher", teacher)):
            if len(shape) != 2:
                raise UsageError(f"shape {tuple(shape)} of the {who}", hint="rkd needs one vector per sample")
        if student[0] != teacher[0]:
            raise UsageError(f"{student[0]} samples of the student, {teacher[0]} of the teacher")

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`."""
        s, t = (rows(x, -1, mask) for x in (student, teacher))
        apart = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
        three = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
        found = self.distance_weight * mean(_huber(*(_distances(x, apart) for x in (s, t))))
        return found + self.angle_weight * mean(_huber(*(_angles(x)[three] for x in (s, t))))


def _huber(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.smooth_l1_loss(student, teacher, reduction="none")


def _distances(x: Tensor, apart: Tensor) -> Tensor:
    """(pairs,) over their mean."""
    squares = (x[:, None] - x[None]).square().sum(-1)[apart]
    lengths = squares.clamp_min(_LEAST).sqrt()  # no gradient of a root at 0
    return lengths / mean(lengths)


def _angles(x: Tensor) -> Tensor:
    """(samples, samples, samples): at the first one, the cosine of the angle between the other two."""
    away = x[None] - x[:, None]
    lengths = away.square().sum(-1, keepdim=True).clamp_min(_LEAST).sqrt()
    directions = away / lengths
    return directions @ directions.transpose(1, 2)
