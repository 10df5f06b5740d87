"""Make a candidate and judge it; everything here runs in a worker process of its own."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

from onnxcomp import model as models
from onnxcomp import speed
from onnxcomp.data import Batches
from onnxcomp.evaluate.intervals import Interval
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch.recipe import with_torch
from onnxcomp.sensitivity import quantize_within
from onnxcomp.shrink import judging
from onnxcomp.shrink.candidates import Candidate
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.splits import Splits

#: candidates that the search for nodes in float makes at most
_TRIES = 12


@dataclasses.dataclass(frozen=True)
class Task:
    """Where everything lies, the same for all candidates.

    Attributes:
        source: the input.
        splits: the parts of the samples.
        answers: what the input says to the part that chooses, see `judging.record`.
        metric: that chooses.
        max_drop: the budget.
        batch: samples in one run, for the look at the speed.
        store: keeps statistics of activations, so that they are collected once.
    """

    source: Path
    splits: Splits
    answers: Path
    metric: str
    max_drop: float
    batch: int
    store: Path


def attempt(task: Task, candidate: Candidate, folder: Path) -> Outcome:
    """Make a candidate in `folder`, as `best.onnx` with its record and recipe, and judge it.

    Raises what its passes raise.
    """
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    if candidate.rescue:
        candidate = _rescue(task, candidate, folder)
    output, recipe = folder / "best.onnx", candidate.recipe()
    record = optimize_file(
        task.source,
        output,
        with_torch(recipe.passes),
        data=os.fspath(task.splits.path("calibration")),
        force=True,
        allow_no_effect=recipe.allow_no_effect,
        calibration=recipe.calibration,
        checkpoint=folder / "checkpoint" if candidate.epochs else None,
        resume=bool(candidate.epochs),
        store=task.store,
        schema="onnxcomp/run/1",
    )
    models.write_file(folder / "recipe.toml", recipe.to_toml().encode(), force=True)
    found = judging.judge(output, task.source, task.splits.path("selection"), task.answers)
    assert found.drop is not None
    looked = look(task, output)
    return Outcome(
        candidate,
        path=str(output),
        bytes=models.total_bytes(output),
        score=found.value,
        drop=_worse(found.drop, higher_is_better=found.higher_is_better),
        speed=Interval(looked.ratio, looked.low, looked.high),
        seconds=time.monotonic() - start,
        sha256=record.output.sha256,
    )


def look(task: Task, path: Path) -> speed.Speed:
    """A quick look at a file's speed, against the input."""
    inputs = models.signature(models.load(task.source)).inputs
    batch = next(iter(Batches(task.splits.path("selection"), inputs, batch_size=task.batch)))
    return speed.compare(task.source, path, batch.feeds, batch.samples)


def _worse(drop: Interval, *, higher_is_better: bool) -> Interval:
    """A drop in which more is worse, whatever the metric."""
    return drop if higher_is_better else Interval(-drop.value, -drop.high, -drop.low)


def _rescue(task: Task, candidate: Candidate, folder: Path) -> Candidate:
    """Find the fewest nodes that have to stay in float."""
    steps = [step for step in candidate.recipe().passes if step.name not in ("smooth", "correct-bias")]
    metric, allowed = task.metric, task.max_drop
    if metric == "cosine":  # the search knows relative errors: 1 - cos is half the square of one
        allowed = math.sqrt(2 * allowed)
    record = quantize_within(
        task.source,
        folder / "search.onnx",
        steps,
        eval=task.splits.path("selection"),
        max_drop=allowed,
        metric="accuracy" if metric in judging.FIDELITY else metric,
        data=os.fspath(task.splits.path("calibration")),
        tries=_TRIES,
        allow_no_effect=True,
        force=True,
    )
    quantized = next(one for one in record.passes if "search" in one.effect)
    names: list[Any] = [entry["node"] for entry in quantized.effect["search"]["excluded"]]
    return dataclasses.replace(candidate, exclude=tuple(names), rescue=False)
