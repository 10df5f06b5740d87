"""Batches: samples from a source, checked against a model's inputs and cut to its batch size."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.data import mapped
from onnxcomp.data.sources import LABELS, Shard, Source, from_arrays, open_source
from onnxcomp.errors import DataError, UsageError, nearest
from onnxcomp.model import InputSpec

#: bytes that are read of a mapped file before they are given back
_PAGES = 16 << 20

#: bytes of selected samples that are copied out of a shard at a time
_AT_ONCE = 256 << 20


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one run gets.

    Attributes:
        feeds: array per input name.
        labels: (samples, ...) or None.
        start: index of the first sample, counting those that were left out before it.
        samples: how many samples the batch holds.
    """

    feeds: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    start: int
    samples: int


class Batches:
    """A re-iterable stream of batches that fit a model.

    An array with as many axes as the input is cut along its first axis (by the model's own batch
    size where that is fixed); one with an axis more holds one whole input per sample. Samples that
    do not fill a fixed batch are left out and counted in `left_out`.

    Args:
        source: path, `FILE.py:fn`, `random:N[:SEED]`, a dictionary of arrays, or a `Source`.
        inputs: the model's inputs (`onnxcomp.model.signature(model).inputs`).
        batch_size: samples per run where the model leaves the size open.
        sizes: sizes of symbolic axes, for `random:`.

    Raises DataError, naming the array, for a wrong name, shape or type, and for no samples.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Shard | Source,
        inputs: Sequence[InputSpec],
        *,
        batch_size: int = 32,
        sizes: Mapping[str, int] | None = None,
        selection: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError("the batch size must be at least 1", where=f"batch_size={batch_size}")
        self.inputs = tuple(inputs)
        if isinstance(source, Mapping):
            self.source = from_arrays(source)
        elif isinstance(source, Source):
            self.source = source
        else:
            self.source = open_source(source, self.inputs, batch=batch_size, sizes=sizes)
        self.batch_size = batch_size
        self.random = self.source.random
        self._selection = selection
        self._total: int | None = None
        self.left_out = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.views():
            feeds = {
                spec.name: _ready(batch.feeds[spec.name], None if spec.dtype == "string" else spec.dtype)
                for spec in self.inputs
            }
            yield dataclasses.replace(batch, feeds=feeds)

    def views(self) -> Iterator[Batch]:
        """The batches as the source holds them: views of mapped files, unaligned, of other integer types.

        Pages that were read of mapped files are given back as it goes on.
        """
        start = self.left_out = read = 0
        for shard in self._shards():
            plan = self._plan(shard)
            usable = plan.samples - plan.samples % plan.step if plan.fixed else plan.samples
            self.left_out += plan.samples - usable
            for low in range(0, usable, plan.step):
                high = min(low + plan.step, usable)
                feeds = {
                    # the ellipsis: also a single string stays an array
                    name: array[low, ...] if plan.whole[name] else array[low:high]
                    for name, array in plan.arrays.items()
                }
                labels = None if plan.labels is None else plan.labels[low:high]
                yield Batch(feeds, labels, start + low, high - low)
                read += sum(array.nbytes for array in feeds.values())
                if read > _PAGES:
                    read = 0
                    for array in plan.arrays.values():
                        mapped.give_back(array)
            start += plan.samples

    @property
    def samples(self) -> int:
        """How many samples there are (selected ones only); the first call may read the source."""
        if self._total is None:
            self._total = sum(_count(shard, self.inputs, self.source.name) for shard in self._shards())
        if self._total == 0:
            raise DataError("there are no samples", where=self.source.name)
        return self._total

    @property
    def selection(self) -> np.ndarray | None:
        """Which samples of the source these are, in order; None: all."""
        return self._selection

    @property
    def labelled(self) -> bool:
        """Whether the first shard carries labels."""
        return any(LABELS in shard for shard in _first(self.source))

    def require_real(self, what: str) -> None:
        """Raise DataError for noise: `what` ('calibration', 'accuracy') needs real data."""
        if self.random:
            raise DataError(
                f"{what} needs real data, not {self.source.name}",
                where="--data",
                hint="random inputs never judge quality; give samples the model will see",
            )

    def split(self, share: float, *, seed: int = 0) -> tuple[Batches, Batches]:
        """Two disjoint parts, `share` of the samples in the first; same seed, same parts.

        Raises DataError with fewer than two samples.
        """
        count = self.samples
        if count < 2:
            raise DataError("too few samples to split", where=self.source.name)
        order = np.random.default_rng(seed).permutation(count)
        cut = min(max(round(count * share), 1), count - 1)
        base = np.arange(count) if self._selection is None else self._selection
        return self._select(base[np.sort(order[:cut])]), self._select(base[np.sort(order[cut:])])

    def take(self, count: int) -> Batches:
        """The first `count` samples."""
        base = np.arange(self.samples) if self._selection is None else self._selection
        return self._select(base[:count])

    def in_batches_of(self, batch_size: int) -> Batches:
        """The same samples, so many at a time."""
        return Batches(self.source, self.inputs, batch_size=batch_size, selection=self._selection)

    def index_in_source(self, position: int) -> int:
        """Where the source holds the sample at this position of the selected ones (`Batch.start` is one)."""
        return position if self._selection is None else int(self._selection[position])

    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, types, shapes and bytes of all selected samples."""
        digest = hashlib.sha256()
        for shard in self._shards():
            for name in sorted(shard):
                array = np.ascontiguousarray(shard[name])
                digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
                for piece in _pieces(array):
                    digest.update(piece.tobytes() if array.dtype.kind != "O" else repr(piece.tolist()).encode())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Where the data comes from, for records."""
        return {"source": self.source.name, "samples": self.samples, "sha256": self.fingerprint()}

    def _select(self, selection: np.ndarray) -> Batches:
        return Batches(self.source, self.inputs, batch_size=self.batch_size, selection=selection)

    def _shards(self) -> Iterator[Shard]:
        """The shards of the source, reduced to the selected samples."""
        if self._selection is None:
            yield from self.source
            return
        start = 0
        for shard in self.source:
            count = _count(shard, self.inputs, self.source.name)
            low, high = np.searchsorted(self._selection, [start, start + count])
            for at in range(low, high, step := self._most_rows(shard)):
                rows = self._selection[at : min(at + step, high)] - start
                yield {name: np.asarray(array)[rows] for name, array in shard.items()}
            start += count

    def _most_rows(self, shard: Shard) -> int:
        """Samples that are copied out of a shard at a time: full batches, where the model fixes their size."""
        fixed = [spec.shape[0] for spec in self.inputs if spec.shape and isinstance(spec.shape[0], int)]
        whole = math.lcm(*(size for size in fixed if size)) if fixed else 1
        each = sum(array.nbytes for array in shard.values()) // max(len(shard[self.inputs[0].name]), 1)
        return max(_AT_ONCE // max(each, 1) // whole, 1) * whole

    def _plan(self, shard: Shard) -> _Plan:
        """Check a shard against the inputs and decide how to cut it."""
        name = self.source.name
        samples = _count(shard, self.inputs, name)
        arrays, whole, fixed = {}, {}, None
        for spec in self.inputs:
            array = _fitting(shard[spec.name], spec, name)
            whole[spec.name] = _is_whole(array, spec, name)
            _check_shape(array, spec, name, whole=whole[spec.name])
            size = spec.shape[0] if spec.shape and not whole[spec.name] else None
            if isinstance(size, int):
                if fixed is not None and fixed != size:
                    raise DataError(
                        f"inputs with different fixed batch sizes ({fixed}, {size})",
                        where=f"{name}: {spec.name}",
                        hint="give whole inputs: one more axis, samples first",
                    )
                fixed = size
            arrays[spec.name] = array
        if any(whole.values()):
            if fixed not in (None, 1):
                raise DataError(
                    f"some arrays hold whole inputs, but the model's batch is fixed at {fixed}",
                    where=name,
                    hint="give every array one more axis: whole inputs, samples first",
                )
            fixed = 1
        step = fixed or self.batch_size
        labels = shard.get(LABELS)
        return _Plan(arrays, whole, samples, step, fixed is not None, labels)


@dataclasses.dataclass(frozen=True)
class _Plan:
    arrays: Mapping[str, np.ndarray]
    whole: Mapping[str, bool]
    samples: int
    step: int
    fixed: bool
    labels: np.ndarray | None


def _first(source: Source) -> Iterable[Shard]:
    for shard in source:
        return [shard]
    return []


def _count(shard: Shard, inputs: tuple[InputSpec, ...], source: str) -> int:
    names = [spec.name for spec in inputs]
    for name in shard:
        if name not in names and name != LABELS:
            raise DataError(
                f"the model has no input '{name}'",
                where=source,
                hint=nearest(name, names) or f"its inputs are: {', '.join(names)}",
            )
    counts = {}
    for name in [*names, LABELS]:
        if name not in shard:
            if name == LABELS:
                continue
            raise DataError(
                f"no array for the input '{name}'",
                where=source,
                hint=f"there are: {', '.join(shard) or 'none'}",
            )
        if np.ndim(shard[name]) == 0:
            raise DataError("an array without a sample axis", where=f"{source}: {name}")
        counts[name] = len(shard[name])
    if not names:
        raise DataError("the model has no inputs", where=source)
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise DataError("arrays with different numbers of samples", where=f"{source}: {text}")
    return counts[names[0]]


def _fitting(array: np.ndarray, spec: InputSpec, source: str) -> np.ndarray:
    """The array, whose values the input's type holds: integers of another type are cast later, batch by batch."""
    have, where = str(array.dtype), f"{source}: {spec.name}"
    if spec.dtype == "string":
        if array.dtype.kind in "UO":
            return array.astype(object)
        raise DataError(f"the input takes strings, the array holds {have}", where=where)
    if have == spec.dtype:
        return array
    try:
        wanted = np.dtype(spec.dtype)
    except TypeError as error:
        raise DataError(f"numpy has no type {spec.dtype}", where=where) from error
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if all(piece.min() >= limits.min and piece.max() <= limits.max for piece in _pieces(array) if piece.size):
            return array
        raise DataError(f"integers beyond the range of {spec.dtype}", where=where)
    raise DataError(
        f"the input takes {spec.dtype}, the array holds {have}",
        where=where,
        hint=f"convert it yourself: array.astype('{spec.dtype}')",
    )


def _is_whole(array: np.ndarray, spec: InputSpec, source: str) -> bool:
    if spec.shape is None:
        return False
    extra = array.ndim - len(spec.shape)
    if extra not in (0, 1) or (extra == 0 and array.ndim == 0):
        raise DataError(
            f"the input has {len(spec.shape)} axes {_show(spec.shape)}, the array {array.ndim}",
            where=f"{source}: {spec.name}",
            hint="samples first: as many axes as the input, or one more",
        )
    return extra == 1


def _check_shape(array: np.ndarray, spec: InputSpec, source: str, *, whole: bool) -> None:
    if spec.shape is None:
        return
    have = array.shape[1:]
    want = spec.shape if whole else spec.shape[1:]
    for axis, (size, dim) in enumerate(zip(have, want, strict=True), start=1):
        if isinstance(dim, int) and dim != size:
            raise DataError(
                f"axis {axis} has size {size}, the input takes {dim}",
                where=f"{source}: {spec.name} {array.shape}",
                hint=f"the input's shape is {_show(spec.shape)}",
            )


def _show(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def _ready(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """In the input's type, contiguous and aligned, as native code wants it."""
    made = np.require(array, None if str(array.dtype) == dtype else dtype, ("C", "A"))
    return made if made.ndim == array.ndim else made.reshape(array.shape)


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in parts along its first axis; whole where it is not large."""
    if array.ndim == 0 or array.nbytes <= _PAGES:
        yield array
        return
    step = max(_PAGES // max(array.nbytes // len(array), 1), 1)
    for low in range(0, len(array), step):
        yield array[low : low + step]
        mapped.give_back(array)
