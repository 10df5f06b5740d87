"""The gate: every row of a run against the same row of a stored one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp import documents
from onnxcomp.bench.baseline import interleaved, stored, surroundings
from onnxcomp.bench.baseline.result import Gate, Gated, Row
from onnxcomp.bench.job import Job
from onnxcomp.bench.scenario import ModelPath, bench
from onnxcomp.bench.statistics import Estimate
from onnxcomp.errors import DataError, OnnxcompError, UsageError
from onnxcomp.settings import taken

Json = Mapping[str, Any]

#: a slowdown that passes
TOLERANCE = 0.02

#: fresh sessions of a run that is stored, or compared with a stored one
SESSIONS = 20

#: share of the time for the rounds against the baseline's model; the rest is for the run itself
_ROUNDS_SHARE = 0.7

#: what must be the same in two rows, beside the model
_KEYS = (
    "scenario", "provider", "batch", "threads", "workers", "kind", "page_cache", "configuration", "shape", "spinning",
    "optimization",
)  # fmt: skip


def gate(
    models: ModelPath | Sequence[ModelPath],
    baseline: str | os.PathLike[str],
    *,
    tolerance: float = TOLERANCE,
    seconds: float = 20.0,
    sessions: int = SESSIONS,
    **options: Any,
) -> Gated:
    """Run `bench`, and judge each row by the row of a stored run of the same model, scenario and setting.

    A row passes where the slowdown is within the tolerance with 95 % certainty, is a regression where
    it is beyond it with the same certainty, and undecided otherwise. Where the baseline's model file
    is still there, byte for byte, a row of the scenario 'latency' is measured side by side with it;
    otherwise what was stored is compared, and where machine or software differ, nothing is decided.

    Args:
        models: see `bench`. A model's baseline is the stored one with the same file name; where both runs
            have one model, that.
        baseline: file of an `onnxcomp/bench/1` object with its samples.
        tolerance: relative slowdown that passes, in (0, 1).
        seconds: time budget per setting, of bench and the rounds against the baseline together.
        sessions: see `bench`; two sessions of the same bytes differ, and one says nothing about a regression.
        options: all others of `bench`.

    Raises DataError for another file, UsageError, and what `bench` raises.
    """
    if not 0 < tolerance < 1:
        raise UsageError("the tolerance is a relative slowdown between 0 and 1", where=f"tolerance={tolerance}")
    before = _read(Path(baseline))
    scenario = options.get("scenario", "latency")
    found = {m["path"]: interleaved.locate(m, Path(baseline).parent) for m in before["models"]}
    side_by_side = scenario == "latency" and not options.get("cuda_graph")
    share = 1 - _ROUNDS_SHARE if side_by_side and any(found.values()) else 1.0
    measured = bench(models, seconds=share * seconds, sessions=sessions if scenario == "latency" else 1, **options)
    now = {"models": [], **measured.to_json()}
    differences = (*surroundings.machine(before, now), *surroundings.session(before, now))
    pairs, missing = _matched(before, now)
    rows = []
    for place, (old, row) in enumerate(pairs):
        file = found.get(old["model"])
        if side_by_side and file is not None and not surroundings.session(before, now):
            job = _job(
                file,
                row,
                options,
                tolerance=tolerance,
                seconds=_ROUNDS_SHARE * seconds,
                seed=measured.seed + 1 + place,
            )
            rows.append(_side_by_side(job, row))
        else:
            drift = stored.allowance(before["trust"]["grade"], now["trust"]["grade"])
            rows.append(_from_stored(stored.compare(old, row, drift=drift), row, differences, tolerance))
    return Gated(measured, Gate(os.fspath(baseline), tolerance, differences, tuple(rows), tuple(missing)))


def _read(path: Path) -> Json:
    found = documents.read(path)
    if found.get("schema") != "onnxcomp/bench/1":
        raise DataError("not a stored run of bench", where=path, hint="store one with: onnxcomp bench MODEL -o FILE")
    missing = [key for key in ("environment", "trust", "session", "models", "results") if key not in found]
    if missing:
        raise DataError(f"the stored run has no '{missing[0]}'", where=path, hint="store it again: bench MODEL -o FILE")
    return found


def _matched(before: Json, now: Json) -> tuple[list[tuple[Json, Json]], list[Json]]:
    """(stored row, row of now) of the same model and setting, and the keys of stored rows without one."""
    alone = all(len({r["model"] for r in one["results"]}) == 1 for one in (before, now))
    rows = {_identity(row, alone=alone): row for row in now["results"]}
    pairs = [(old, rows[key]) for old in before["results"] if (key := _identity(old, alone=alone)) in rows]
    missing = [_key(old) for old in before["results"] if _identity(old, alone=alone) not in rows]
    return pairs, missing


def _identity(row: Json, *, alone: bool) -> tuple[Any, ...]:
    return ("" if alone else Path(row["model"]).name, *(str(row.get(key)) for key in _KEYS))


def _key(row: Json) -> Json:
    return {"model": row["model"], **{key: row[key] for key in _KEYS if key in row}}


def _from_stored(
    found: stored.Found, row: Json, differences: Sequence[surroundings.Difference], tolerance: float
) -> Row:
    if found.speedup is None:
        return Row(_key(row), "stored", found, "undecided", (found.reason,))
    if differences:
        reasons = ("the runs had not the same conditions: " + "; ".join(map(str, differences)),)
        return Row(_key(row), "stored", found, "undecided", reasons)
    return Row(_key(row), "stored", found, *judge(found.speedup, tolerance))


def _side_by_side(job: Job, row: Json) -> Row:
    what = "interleaved rounds of fresh sessions"
    try:
        measured = interleaved.measure(job, row)
    except OnnxcompError as error:
        return Row(_key(row), "interleaved", stored.Found(what, None), "undecided", (str(error),))
    (decision,) = measured.decisions
    found = stored.Found(what, decision.speedup, (len(measured.rounds),) * 2)
    control = decision.to_json()["aa"]
    if not decision.aa_ok:
        return Row(_key(row), "interleaved", found, "undecided", decision.reasons, control)
    verdict, reasons = judge(decision.speedup, job.delta)
    return Row(_key(row), "interleaved", found, verdict, reasons, control)


def judge(speedup: Estimate, tolerance: float) -> tuple[str, tuple[str, ...]]:
    """(verdict, reasons): on which side of the tolerance the whole interval lies."""
    allowed = 1 / (1 + tolerance)
    if speedup.high < allowed:
        return "regression", ()
    if speedup.low >= allowed:
        return "passed", ()
    reason = (
        f"the interval [{speedup.low:.4f}, {speedup.high:.4f}] holds {allowed:.4f}, the slowdown of {tolerance:.1%} "
        "that passes; measure longer, or on a quieter machine"
    )
    return "undecided", (reason,)


def _job(file: Path, row: Json, options: Mapping[str, Any], *, tolerance: float, seconds: float, seed: int) -> Job:
    """Baseline and candidate under the setting of a row."""
    settings, _ = taken(options.get("settings"))
    return Job(
        paths=(file, Path(row["model"])),
        names=(os.fspath(file), row["model"]),
        provider=row["provider"],
        scenario="latency",
        data=options.get("data"),
        batch=row["batch"],
        sizes=options.get("sizes"),
        settings=dataclasses.replace(settings, threads=row["threads"]),
        seconds=seconds,
        seed=seed,
        delta=tolerance,
        max_runs=1,
        bind=options.get("bind"),
        done=0.0,
        share=1.0,
    )
