"""What all losses share: shapes are checked, padding is left out, numbers are float32 at least."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onnxcomp.errors import DataError, UsageError

Shape = Sequence[int]


class Loss(nn.Module, abc.ABC):
    """How far a student's tensor is from the teacher's: 0 where they are equal; no labels are needed.

    It is a mean over samples (positions, rows), so that it does not grow with the batch. Half precision
    becomes float32 first, whatever autocast says; the teacher's tensor has no gradient.
    """

    def forward(
        self, student: Tensor, teacher: Tensor, *, labels: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            student: float, of a shape that `check` takes.
            teacher: the same, on any device.
            labels: class numbers, int64, for losses that have a use for them.
            mask: bool or 0 and 1, (samples, positions) or (samples,): what is 0 is padding and left out.

        Raises UsageError for shapes that do not fit each other, DataError for a mask that fits neither.
        """
        self.check(student.shape, teacher.shape)
        with torch.autocast(student.device.type, enabled=False):
            wide = student.float() if student.dtype.itemsize < 4 else student
            target = teacher.detach().to(wide)
            mask = None if mask is None else mask.to(wide.device) != 0
            return self.distance(wide, target, labels=labels, mask=mask)

    @abc.abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, *, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """`forward` on checked tensors of one type and device, with a mask of bool."""

    def check(self, student: Shape, teacher: Shape) -> None:
        """Raise UsageError where the loss cannot compare these shapes: equal ones by default."""
        if tuple(student) != tuple(teacher):
            raise UsageError(f"shape {tuple(student)} of the student, {tuple(teacher)} of the teacher")

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make what is trained along, if anything, for tensors of these shapes; raises as `check`."""
        self.check(student.shape, teacher.shape)


def rows(tensor: Tensor, axis: int, mask: Tensor | None) -> Tensor:
    """(rows, size of the axis): all other axes are rows, those that the mask leaves out are dropped.

    The mask belongs to the first of the other axes; where they are fewer than its own (one vector per
    sample, padding within samples), there is no padding to leave out.

    Raises DataError where sizes differ.
    """
    moved = tensor.movedim(axis, -1)
    lead = moved.shape[:-1]
    if mask is None or mask.ndim > len(lead):
        return moved.reshape(-1, moved.shape[-1])
    if lead[: mask.ndim] != mask.shape:
        raise DataError(f"a mask of {tuple(mask.shape)} for a tensor of {tuple(tensor.shape)}", where="mask")
    return moved[mask].reshape(-1, moved.shape[-1])


def mean(values: Tensor) -> Tensor:
    """The mean; of nothing it is 0, with a gradient of 0: a batch of padding teaches nothing."""
    return values.mean() if values.numel() else values.sum()


def positive(**options: float) -> None:
    """Raise UsageError for one that is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise UsageError("must be above 0", where=f"{name}={value}")


def not_negative(**options: float) -> None:
    """Raise UsageError for one below 0."""
    for name, value in options.items():
        if not value >= 0:
            raise UsageError("must not be negative", where=f"{name}={value}")


def several_classes(shape: Shape, axis: int) -> None:
    """Raise UsageError where a softmax over the axis says nothing."""
    if not -len(shape) <= axis < len(shape):
        raise UsageError(f"no axis {axis} in shape {tuple(shape)}")
    if shape[axis] < 2:
        raise UsageError("class scores need two classes at least", hint="mse compares single numbers")
