"""What a model is worth after each pass: its score against labels, its bytes, and a quick look at its speed."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import speed, worker
from onnxcomp.data import Batches
from onnxcomp.evaluate.score import Score, evaluate
from onnxcomp.speed import Speed

EvalData = str | os.PathLike[str] | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A model on its way, against the one that the first pass got.

    Attributes:
        bytes: of its file and external data.
        score: with the paired drop.
        speed: one sample, one thread.
    """

    bytes: int
    score: Score
    speed: Speed

    def to_json(self) -> dict[str, Any]:
        """`{bytes, score, speed}`."""
        return {"bytes": self.bytes, "score": self.score.to_json(), "speed": self.speed.to_json()}


class Stages:
    """Judges models against their source, on samples that no pass sees.

    Args:
        source: the file that the first pass gets.
        data: samples with labels.
        metric: as `evaluate` takes it.
        batch_size: samples per run where the model leaves it open.

    Attributes:
        score: of the source.

    Raises DataError (no labels, random data), UsageError (an unknown metric): at the start, before hours of work.
    """

    def __init__(self, source: Path, data: EvalData, *, metric: str, batch_size: int) -> None:
        self._source, self._metric = source, metric
        self._batches = Batches(data, models.signature(models.load(source)).inputs, batch_size=batch_size)
        self.score = evaluate(source, self._batches, metric=metric)

    def judge(self, model: ir.Model, folder: Path) -> Stage:
        """Write the model into a folder of its own in `folder` for a while, and measure it there."""
        worker.report("judging what the pass made")
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = models.write_to(model, Path(place), "stage")
            score = evaluate(path, self._batches, metric=self._metric, against=self._source)
            batch = next(iter(self._batches.in_batches_of(1)))
            looked = speed.compare(self._source, path, batch.feeds, batch.samples)
            return Stage(models.total_bytes(path), score, looked)
