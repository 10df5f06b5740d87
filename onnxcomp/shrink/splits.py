"""The samples in three parts: what calibrates and trains, what chooses, and what is looked at once, in the end."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import documents, worker
from onnxcomp import model as models
from onnxcomp.data import Batches, Source
from onnxcomp.data.sources import Shard
from onnxcomp.errors import DataError, from_os_error

#: part -> its share where one source holds all of them
_OF_DATA = {"calibration": 0.5, "selection": 0.2, "test": 0.3}

#: the same where `eval` judges: `data` then calibrates alone
_OF_EVAL = {"selection": 0.4, "test": 0.6}

#: more samples choose no better, and each candidate has to run on them
_MOST_TO_SELECT = 4000

#: fewer cannot be divided
_FEWEST = 20


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three parts, as folders of `.npz` shards.

    Attributes:
        folder: holds a folder for each part.
        samples: how many each part has.
        labelled: whether what chooses and judges has labels.
        sources: fingerprints of what the user gave.
    """

    folder: Path
    samples: dict[str, int]
    labelled: bool
    sources: dict[str, Any]

    def path(self, part: str) -> Path:
        """The folder of 'calibration', 'selection' or 'test'."""
        return self.folder / part

    def to_json(self) -> dict[str, Any]:
        """`{folder, samples, labelled, sources}`."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    @staticmethod
    def read(folder: Path) -> Splits | None:
        """What an earlier run has written; None where there is none."""
        if not (folder / "splits.json").exists():
            return None
        found = documents.read(folder / "splits.json")
        return Splits(folder, found["samples"], found["labelled"], found["sources"])


def divide(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    eval_data: str | os.PathLike[str] | None,
    folder: Path,
) -> Splits:
    """Divide the samples at random, with a fixed seed, and write the parts into `folder`.

    The same samples give the same parts. One shard is in memory at a time. What is in `folder` already is used,
    when it was made of the same samples.

    Args:
        model: for its inputs.
        data: samples; all that there are, unless `eval_data` is given.
        eval_data: samples that choose and judge; `data` then only calibrates and trains.
        folder: made; whole or not at all.

    Raises DataError for random data, samples that do not fit, fewer than 20 in a source that is divided, and a
    folder that holds others.
    """
    inputs = models.signature(models.load(model)).inputs
    given = {"data": Batches(data, inputs)} | ({} if eval_data is None else {"eval": Batches(eval_data, inputs)})
    for one in given.values():
        one.require_real("a choice of models")
    worker.report("reading the samples")
    sources = {name: one.to_json() for name, one in given.items()}
    found = Splits.read(folder)
    if found is not None:
        if found.sources != sources:
            raise DataError("the samples are not those of the interrupted run", where=folder)
        return found
    judging = given.get("eval", given["data"])
    shares = _OF_DATA if eval_data is None else _OF_EVAL
    assigned = _assign(judging.samples, shares, judging.source.name)
    parts = {name: (judging.source, rows) for name, rows in assigned.items()}
    if eval_data is not None:
        parts["calibration"] = (given["data"].source, np.arange(given["data"].samples))
    staged = folder.with_name(folder.name + ".part")
    shutil.rmtree(staged, ignore_errors=True)
    made = Splits(folder, {name: len(rows) for name, (_, rows) in parts.items()}, judging.labelled, sources)
    try:
        for name, (source, rows) in parts.items():
            worker.report(f"writing the samples of the part '{name}'")
            _write(staged / name, source, rows)
        (staged / "splits.json").write_text(documents.to_text(made.to_json()))
        staged.rename(folder)
    except OSError as error:
        raise from_os_error(error, folder) from error
    return made


def _assign(count: int, shares: dict[str, float], where: str) -> dict[str, np.ndarray]:
    """Rows of each part, sorted."""
    if count < _FEWEST:
        raise DataError(
            f"{count} samples cannot be divided into those that choose and those that judge",
            where=where,
            hint=f"{_FEWEST} at least; some hundreds for a budget of one percent",
        )
    order = np.random.default_rng(0).permutation(count)
    ends = np.round(np.cumsum(list(shares.values())) * count).astype(int)
    rows = dict(zip(shares, np.split(order, ends[:-1]), strict=True))
    rows["selection"] = rows["selection"][:_MOST_TO_SELECT]
    return {name: np.sort(chosen) for name, chosen in rows.items()}


def _write(folder: Path, source: Source, rows: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, shard in enumerate(_chosen(source, rows)):
        np.savez(folder / f"{index:05d}.npz", **shard)  # type: ignore[arg-type]


def _chosen(source: Source, rows: np.ndarray) -> Iterator[Shard]:
    start = 0
    for shard in source:
        count = len(next(iter(shard.values())))
        low, high = np.searchsorted(rows, [start, start + count])
        if high > low:
            yield {name: np.asarray(array)[rows[low:high] - start] for name, array in shard.items()}
        start += count
