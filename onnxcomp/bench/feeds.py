"""What a benchmark feeds: distinct batches held in memory, so that no run waits for a disk."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.data import Batches, Whole, open_source
from onnxcomp.errors import DataError, UsageError
from onnxcomp.model import InputSpec, Signature

#: seeded noise, where no data is given: speed seldom depends on values, accuracy always does
DEFAULT_SOURCE = "random:16"

_MAX_FEEDS = 64
_MAX_BYTES = 256 << 20

#: bytes of all feeds of a worker, which show in its peak as the requests of a server would
_FEW_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True)
class Feeds:
    """Batches that are fed in turn.

    Attributes:
        arrays: array by input name, one dictionary per run.
        samples: samples per run.
        source: what the user named.
        random: whether it is noise.
    """

    arrays: tuple[Mapping[str, np.ndarray], ...]
    samples: int
    source: str
    random: bool

    def few(self) -> Feeds:
        """Those that are small together (8 MiB), and one in any case, for what feeds many processes."""
        size = sum(array.nbytes for array in self.arrays[0].values())
        return dataclasses.replace(self, arrays=self.arrays[: max(_FEW_BYTES // max(size, 1), 1)])

    def to_json(self) -> dict[str, Any]:
        """`{source, random, distinct, shapes}`; the shapes are those of the first run."""
        shapes = {name: list(np.shape(array)) for name, array in self.arrays[0].items()}
        return {
            "source": self.source,
            "random": self.random,
            "distinct": len(self.arrays),
            "shapes": shapes,
        }


def shape_numbers(arrays: Sequence[Mapping[str, np.ndarray]]) -> tuple[int, ...]:
    """One number per feed, the same for feeds of the same shapes: each is to be warm before it counts."""
    shapes = [tuple((name, np.shape(array)) for name, array in feed.items()) for feed in arrays]
    return tuple(shapes.index(shape) for shape in shapes)


def make_feeds(
    data: str | os.PathLike[str] | None,
    inputs: tuple[InputSpec, ...],
    *,
    batch: int,
    sizes: Mapping[str, int] | None = None,
    whole: Mapping[str, Whole] | None = None,
) -> Feeds:
    """Read up to 64 batches (256 MiB) that fit these inputs.

    Args:
        data: see `onnxcomp.data.open_source`; None: seeded noise.
        inputs: the model's inputs.
        batch: samples per run; 1 stands for 'the model's own' where that is fixed.
        sizes: sizes of symbolic axes, for noise.
        whole: which whole numbers an input takes, for noise (`ids.whole_numbers`).

    Raises DataError (too few samples, or arrays that do not fit), UsageError (the batch is fixed).
    """
    source = open_source(DEFAULT_SOURCE if data is None else data, inputs, batch=batch, sizes=sizes, whole=whole)
    batches = Batches(source, inputs, batch_size=batch)
    arrays: list[Mapping[str, np.ndarray]] = []
    samples, total = 0, 0
    for one in batches:
        if arrays and one.samples < samples:
            break  # the rest of the data: shorter than the others
        samples = one.samples
        arrays.append(one.feeds)
        total += sum(array.nbytes for array in one.feeds.values())
        if len(arrays) >= _MAX_FEEDS or total >= _MAX_BYTES:
            break
    if not arrays:
        raise DataError("not enough samples for one batch", where=f"{batches.source.name}, batch {batch}")
    if batches.random:
        samples = _noise_samples(inputs, batch)
    if batch not in (samples, 1):
        fixed = _fixed_batch(inputs)
        if fixed is not None:
            raise UsageError(f"the model's batch is fixed at {fixed}", where=f"batch={batch}")
        raise DataError(
            f"a run holds {samples} samples, not {batch}",
            where=batches.source.name,
            hint="give more samples, or a smaller batch",
        )
    return Feeds(tuple(arrays), samples, batches.source.name, batches.random)


def check_same_inputs(reference: Signature, candidate: Signature, *, names: tuple[str, str]) -> None:
    """Raise UsageError unless both models can be fed the same arrays."""
    first = {spec.name: spec for spec in reference.inputs}
    second = {spec.name: spec for spec in candidate.inputs}
    where = f"{names[0]}, {names[1]}"
    hint = "compare models with the same inputs, or benchmark them one at a time"
    for name in sorted(first.keys() ^ second.keys()):
        raise UsageError(f"only one of the models has an input '{name}'", where=where, hint=hint)
    for name, spec in first.items():
        other = second[name]
        if spec.dtype != other.dtype:
            raise UsageError(
                f"the input '{name}' is {spec.dtype} in one model and {other.dtype} in the other",
                where=where,
                hint=hint,
            )
        if not _compatible(spec, other):
            raise UsageError(
                f"the input '{name}' has the shapes {_show(spec)} and {_show(other)}", where=where, hint=hint
            )


def _compatible(first: InputSpec, second: InputSpec) -> bool:
    if first.shape is None or second.shape is None:
        return True
    if len(first.shape) != len(second.shape):
        return False
    pairs = zip(first.shape, second.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _fixed_batch(inputs: tuple[InputSpec, ...]) -> int | None:
    sizes = [spec.shape[0] for spec in inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def _noise_samples(inputs: tuple[InputSpec, ...], batch: int) -> int:
    """Noise gives a symbolic first axis the batch size; without one the batch is the first input's."""
    if any(spec.shape and not isinstance(spec.shape[0], int) for spec in inputs):
        return batch
    return _fixed_batch(inputs) or 1


def _show(spec: InputSpec) -> str:
    shape = spec.shape or ()
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
