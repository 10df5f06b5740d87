"""N:M sparsity: of every M neighbours along the axis that is summed over, at most N are not zero."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.passes.prune.zeros.smallest import keys

#: elements that are looked at at a time: what is made of them takes tens of MiB
_ELEMENTS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Pattern:
    """At most `kept` of every `of` elements are not zero."""

    kept: int
    of: int

    @staticmethod
    def parse(text: str) -> Pattern:
        """'2:4'. Raises UsageError for anything but N:M with 0 < N < M."""
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
        kept, of = (int(part) for part in found.groups()) if found else (0, 0)
        if not 0 < kept < of:
            raise UsageError(f"'{text}' is not N:M with 0 < N < M", where="pattern", hint="such as 2:4")
        return Pattern(kept, of)

    def remainder(self, size: int) -> int:
        """Elements of the last group of an axis, which is smaller than the others; 0 where there is none."""
        return size % self.of

    def zeroed(self, array: np.ndarray, axis: int, scale: np.ndarray | None = None) -> np.ndarray:
        """A copy in which the smallest of each group are zero, of equal ones the first: same shape and dtype.

        The last group may be smaller: at most `kept` of it stay too, as if zeros stood behind it. Elements are
        compared as multiplied by `scale`, of the size of the axis and not negative.
        """
        out = np.array(array, order="C")
        rows = np.moveaxis(out, axis, -1)
        size = rows.shape[-1]
        whole = size - self.remainder(size)
        step = max(1, _ELEMENTS * len(rows) // max(rows.size, 1))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            groups = part[..., :whole].reshape(*part.shape[:-1], -1, self.of)
            first, last = (None, None) if scale is None else (scale[:whole].reshape(-1, self.of), scale[whole:])
            part[..., :whole] = self._first_zero(groups, first).reshape(*part.shape[:-1], whole)
            part[..., whole:] = self._first_zero(part[..., whole:], last)
        return out

    def _first_zero(self, groups: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
        """Groups along the last axis, with zeros in place of all but the `kept` largest."""
        extra = groups.shape[-1] - self.kept
        if extra <= 0:
            return groups
        if scale is None:
            found = keys(groups, wide=groups.dtype.itemsize > 4)
        else:
            found = keys(groups.astype(np.float64) * scale, wide=True)
        order = np.argsort(found, axis=-1, kind="stable")
        left = groups.copy()
        np.put_along_axis(left, order[..., :extra], np.zeros((), left.dtype), -1)
        return left
