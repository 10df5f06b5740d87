"""Hints: an inner tensor of the student, projected where the widths differ (Romero et al. 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from onnxcomp.errors import UsageError
from onnxcomp.pytorch.distillation.losses.base import Loss, Shape, mean, rows


class Hint(Loss):
    """Mean over rows and the teacher's width of (P s - t)^2.

    P is nothing where the widths are equal, else a linear map with bias at each position (of images: a
    1 x 1 convolution), which is trained along: its parameters belong to this module once `prepare` has
    seen tensors. (rows, width), (samples, positions, width), or (samples, channels, height, width);
    positions are equal. After FitNets, Romero et al. 2015, arXiv 1412.6550.

    Args:
        axis: of the width; by default 1 for four axes and more, else the last.
    """

    def __init__(self, *, axis: int | None = None) -> None:
        super().__init__()
        self.axis = axis
        self.projector: nn.Linear | None = None

    def check(self, student: Shape, teacher: Shape) -> None:
        """As many axes, equal but for the width, and the widths are those of the projector."""
        axis = self._axis(student)
        fits = len(student) == len(teacher) and -len(student) <= axis < len(student)
        if not fits or _without(student, axis) != _without(teacher, axis):
            raise UsageError(
                f"shape {tuple(student)} of the student, {tuple(teacher)} of the teacher",
                hint=f"a hint takes tensors that differ along axis {axis} alone, the width",
            )
        widths = (student[axis], teacher[axis])
        if self.projector is not None and widths != (self.projector.in_features, self.projector.out_features):
            raise UsageError(f"widths {widths}, which are not those of the projector")

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the projector, initialized as torch's linear layers are, on the student's device."""
        super().prepare(student, teacher)
        axis = self._axis(student.shape)
        if self.projector is None and student.shape[axis] != teacher.shape[axis]:
            self.projector = nn.Linear(student.shape[axis], teacher.shape[axis], device=student.device)

    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """See `Loss`. Raises UsageError where `prepare` was not called and the widths differ."""
        axis = self._axis(student.shape)
        s, t = (rows(x, axis, mask) for x in (student, teacher))
        if self.projector is not None:
            s = self.projector(s)
        elif s.shape[1] != t.shape[1]:
            raise UsageError("the widths differ and there is no projector yet", hint="call prepare() first")
        return mean((s - t).square())

    def _axis(self, shape: Shape) -> int:
        return self.axis if self.axis is not None else 1 if len(shape) >= 4 else -1


def _without(shape: Shape, axis: int) -> list[int]:
    kept = list(shape)
    del kept[axis]
    return kept
