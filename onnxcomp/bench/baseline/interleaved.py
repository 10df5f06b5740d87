"""Baseline and candidate in rounds of fresh sessions, where the baseline's model file is still there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import model
from onnxcomp.bench import compare, runner
from onnxcomp.bench.clock import clock_for
from onnxcomp.bench.job import Job
from onnxcomp.errors import OnnxcompError

Json = Mapping[str, Any]


def locate(stored: Json, beside: Path) -> Path | None:
    """The model file of a stored run, where a file of the same bytes is there.

    Args:
        stored: its fingerprint: an entry of `models`.
        beside: the folder of the stored run, looked into for a file of this name, too.
    """
    for path in (Path(stored["path"]), beside / Path(stored["path"]).name):
        try:
            if path.is_file() and model.fingerprint(path).sha256 == stored["sha256"]:
                return path
        except OnnxcompError:
            continue
    return None


def measure(job: Job, row: Json) -> compare.Comparison:
    """The second model of the job against its first, the baseline.

    Args:
        job: of two models.
        row: of the second, from its closed loop: what a run and an opening take.

    Raises UsageError where the inputs differ, and what `open_session` raises.
    """
    feeds = job.feeds()
    clock = clock_for(job.provider, job.settings.threads)
    usual = float(np.mean(row["samples"]["wall_ns"])) / 1e9
    openers = [lambda index=index: runner.runs(job.open(index), feeds.arrays, bind=job.bind) for index in (0, 1)]
    return compare.compare(
        job.names,
        openers,
        clock=clock,
        plan=compare.plan([usual] * 3, [row["open_seconds"]] * 3, job.seconds),
        seconds=job.seconds,
        seed=job.seed,
        delta=job.delta,
        progress=lambda f: job.tell("against the baseline", f),
    )
