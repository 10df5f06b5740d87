"""Seeded noise for inputs: normal floats, whole numbers of a range, masks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.model import InputSpec


@dataclasses.dataclass(frozen=True)
class Whole:
    """Which whole numbers an input takes.

    Attributes:
        below: values are drawn from 0 to this, exclusive.
        choices: values are drawn from these instead, where there are some.
        mask: ones, then zeros along the last axis, as for padded texts; at least one of them is a one.
    """

    below: int = 2
    choices: tuple[int, ...] = ()
    mask: bool = False


def noise_shape(spec: InputSpec, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that noise for an input has. Raises UsageError for an axis without a size."""
    if spec.shape is None:
        raise UsageError("the input's rank is unknown", where=f"input {spec.name}", hint="give --data")
    shape = []
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif isinstance(dim, str) and dim in sizes:
            shape.append(sizes[dim])
        elif axis == 0:
            shape.append(batch)
        else:
            raise UsageError(
                f"axis {axis} of the input is symbolic ('{dim}') and has no size",
                where=f"input {spec.name}",
                hint=f"give --shape {dim or 'NAME'}=N, or --data",
            )
    return tuple(shape)


def noise(
    generator: np.random.Generator, spec: InputSpec, shape: tuple[int, ...], whole: Whole | None = None
) -> np.ndarray:
    """An array for an input: normal floats, empty strings, and whole numbers as `whole` says; 0 and 1 else.

    Args:
        generator: draws.
        spec: the input; its `dtype` is that of the array.
        shape: of the array.
        whole: for an input of whole numbers or truth values.
    """
    if spec.dtype == "string":
        return np.full(shape, "", dtype=object)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(math.prod(shape)).reshape(shape).astype(dtype)
    whole = whole or Whole()  # 0 and 1 are in range for ids, masks and flags alike
    if whole.mask and shape:
        lengths = generator.integers(1, shape[-1] + 1, (*shape[:-1], 1))
        return (np.arange(shape[-1]) < lengths).astype(dtype)
    if whole.choices:
        return generator.choice(np.array(whole.choices), shape).astype(dtype)
    limit = int(np.iinfo(dtype).max) + 1 if dtype.kind in "iu" else 2
    return generator.integers(0, min(whole.below, limit), shape, dtype=np.uint64).astype(dtype)
