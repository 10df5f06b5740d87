"""The samples of a training run, their split, and their order in each epoch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp import worker
from onnxcomp.data import Batches
from onnxcomp.data.sources import LABELS
from onnxcomp.errors import DataError, UsageError
from onnxcomp.model import InputSpec
from onnxcomp.pytorch.distillation.columns import IN_MEMORY, Column, Keeper
from onnxcomp.pytorch.distillation.lengths import Lengths

Feeds = dict[str, np.ndarray]

#: fewer samples neither train nor judge
FEWEST = 10

_TYPES = {"string": "object"}

_READ = 1024  # samples that are read at a time


@dataclasses.dataclass(frozen=True)
class Samples:
    """All samples.

    Attributes:
        arrays: (samples, ...) by input name; in memory, or in files.
        labels: (samples, ...) or None.
        size: samples per run where the model fixes it, else None.
        source: where they come from, for records.
        lengths: of texts; None for samples of one shape.
    """

    arrays: Mapping[str, np.ndarray | Column]
    labels: np.ndarray | Column | None
    size: int | None
    source: Mapping[str, Any]
    lengths: Lengths | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def feeds(self, rows: np.ndarray) -> Feeds:
        """Arrays for one run, by input name."""
        if self.size == 1:
            return {name: array[rows[:1]][0, ...] for name, array in self.arrays.items()}
        feeds = {name: array[rows] for name, array in self.arrays.items()}
        return feeds if self.lengths is None else self.lengths.cut(feeds, rows)

    def labels_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Labels of one run; of each position, where there is one for each."""
        if self.labels is None:
            return None
        labels: np.ndarray = self.labels[rows]
        lengths = self.lengths
        if lengths is not None and labels.ndim > 1 and labels.shape[1] == lengths.longest:
            labels = labels[:, : lengths.each[rows].max()]
        return labels


def read(data: Batches | str | os.PathLike[str] | Mapping[str, np.ndarray], inputs: Sequence[InputSpec]) -> Samples:
    """Every sample that `Batches` takes from the source; what is more than memory should hold stays in files.

    Raises DataError: noise, fewer than `FEWEST`, shards of different shapes, or batches for other inputs.
    """
    batches = data.in_batches_of(_READ) if isinstance(data, Batches) else Batches(data, inputs, batch_size=_READ)
    there, wanted = (sorted(spec.name for spec in specs) for specs in (batches.inputs, inputs))
    if there != wanted:
        raise DataError(
            f"the samples are for the inputs {', '.join(there)}, the teacher takes {', '.join(wanted)}",
            where=batches.source.name,
            hint="teacher and student must take the same samples",
        )
    batches.require_real("distillation")
    if batches.samples < FEWEST:
        raise DataError(
            f"{batches.samples} samples are too few to train on and to judge by",
            where=batches.source.name,
            hint=f"at least {FEWEST}, better some thousand; they need no labels",
        )
    sizes = [next(iter(batches.in_batches_of(count))).samples for count in (2, 3)]
    size = sizes[0] if sizes[0] == sizes[1] else None
    keeper, count, labelled = Keeper(IN_MEMORY), 0, True
    for batch in batches.views():
        worker.report("reading samples", count / batches.samples)
        for name, array in batch.feeds.items():
            keeper.keep(name, array[np.newaxis] if size == 1 else array)
        labelled = labelled and batch.labels is not None
        if batch.labels is not None:
            keeper.keep(LABELS, batch.labels)
        count += batch.samples
    try:
        arrays = keeper.columns({spec.name: np.dtype(_TYPES.get(spec.dtype, spec.dtype)) for spec in inputs})
    except DataError as error:
        raise DataError(error.message, where=batches.source.name) from error
    labels = arrays.pop(LABELS, None) if LABELS not in {spec.name for spec in inputs} else None
    return Samples(arrays, labels if labelled else None, size, batches.to_json(), Lengths.of(inputs, arrays))


@dataclasses.dataclass(frozen=True)
class Order:
    """Which samples train, which judge, and when each comes; a function of the seed alone.

    Texts of different lengths come in different runs.

    Attributes:
        training, judging: rows of the samples.
        batch: samples per step, of all processes together.
        part: samples per run, at most.
        seed: of the order.
        unit: samples that stay together, as the model fixes it.
        lengths: of texts.
        rank, ranks: which process of how many this is; each has its share of every step.
    """

    training: np.ndarray
    judging: np.ndarray
    batch: int
    part: int
    seed: int
    unit: int = 1
    lengths: Lengths | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def steps(self) -> int:
        """Steps per epoch. Samples that do not fill one wait for another epoch's order."""
        return len(self.training) // self.batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[list[np.ndarray]]:
        """For each step of an epoch, from step `first` on, the rows of its runs."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.training)
        for position in range(first, self.steps):
            yield self._runs(self._share(shuffled[position * self.batch : (position + 1) * self.batch]))

    def judged(self) -> Iterator[np.ndarray]:
        """The rows of each run over the judging samples."""
        yield from self._runs(self.judging)[self.rank :: self.ranks]

    def _share(self, rows: np.ndarray) -> np.ndarray:
        """What this process takes of a step: its samples in a row, as many as the others' or one unit more."""
        units = np.array_split(np.arange(len(rows) // self.unit), self.ranks)[self.rank]
        return rows[units[0] * self.unit : (units[-1] + 1) * self.unit]

    def _runs(self, rows: np.ndarray) -> list[np.ndarray]:
        alike = [rows] if self.lengths is None else self.lengths.alike(rows)
        return [group[low : low + self.part] for group in alike for low in range(0, len(group), self.part)]


def order(
    samples: Samples, *, validation: float, batch: int, accumulate: int, seed: int, rank: int = 0, ranks: int = 1
) -> Order:
    """Split by the seed. A step is at most all of the training samples, and full runs where their size is fixed.

    Raises DataError when nothing is left to train on or to judge by, UsageError for fewer samples per step than
    processes.
    """
    fixed = samples.size or 1
    count = len(samples)
    rows = np.random.default_rng(seed).permutation(count)
    judged = max(round(count * validation), 1)
    judged = -(-judged // fixed) * fixed
    training, judging = np.sort(rows[judged:]), np.sort(rows[:judged])
    batch = min(-(-batch // fixed), len(training) // fixed) * fixed
    if batch == 0:
        raise DataError(
            f"{count} samples leave none to train on",
            where="--validation",
            hint="give more samples, or a smaller share",
        )
    if batch // fixed < ranks:
        raise UsageError(
            f"{batch // fixed} runs per step for {ranks} processes", where="--batch", hint="a larger batch, or fewer"
        )
    part = samples.size or -(-batch // (accumulate * ranks))
    return Order(training, judging, batch, part, seed, fixed, samples.lengths, rank, ranks)
