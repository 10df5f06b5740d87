"""Texts of about one length in one run, cut to it: nothing is learnt from padding, and it takes time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from onnxcomp.data.unpadded import MASK, text_axes, text_lengths
from onnxcomp.model import InputSpec
from onnxcomp.pytorch.distillation.columns import Column

#: lengths are rounded up to a multiple of this: fewer and larger runs, with little padding left
_ROUNDED = 8


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How many positions of each sample are kept.

    They follow from the sample alone, not from those beside it: what is kept of a teacher's answers is found again.

    Attributes:
        each: (samples,) int64, at most `longest`.
        axes: of each input, those that are positions.
        longest: positions of the arrays as they came.
    """

    each: np.ndarray
    axes: Mapping[str, Sequence[int]]
    longest: int

    @classmethod
    def of(cls, inputs: Sequence[InputSpec], arrays: Mapping[str, np.ndarray | Column]) -> Self | None:
        """None where the model takes no texts of any length, or the samples have one length."""
        axes = text_axes(inputs)
        if axes is None:
            return None
        mask = arrays[MASK]
        longest = mask.shape[1]
        found = np.concatenate([text_lengths(part) for part in (mask.parts if isinstance(mask, Column) else [mask])])
        each = np.minimum(-(-found // _ROUNDED) * _ROUNDED, longest)
        return None if each.min() == longest else cls(each, axes, longest)

    def cut(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of some samples without the positions that none of them keeps."""
        length = int(self.each[rows].max())
        found = {}
        for name, array in arrays.items():
            axes = self.axes.get(name, ())
            found[name] = array[tuple(slice(0, length) if axis in axes else slice(None) for axis in range(array.ndim))]
        return found

    def alike(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows, in their order, by length."""
        each = self.each[rows]
        return [rows[each == length] for length in np.unique(each)]
