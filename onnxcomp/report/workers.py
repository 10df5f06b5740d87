"""The table of the scenario 'workers', for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from onnxcomp.report import text

Json = Mapping[str, Any]

HEAD: tuple[str, ...] = (
    "workers", "batch", "threads", "samples/s", "p50 ms", "p99 ms", "CPU ms", "PSS", "USS", "peak", "load s", "outputs",
)  # fmt: skip

AGAINST: tuple[str, ...] = ("workers", "against", "CPU of a run", "throughput", "PSS", "USS", "peak")


def is_workers(result: Json) -> bool:
    """Whether this row of a benchmark is of the scenario."""
    return bool(result.get("scenario") == "workers")


def rows(results: Sequence[Json]) -> list[list[str]]:
    """One row per way to serve a model: absolute figures, memory as the sum of all processes."""
    return [
        [
            way(r), str(r["batch"]), str(r["threads"]), text.number(r["throughput"]),
            *(text.latency(r["latency_ms"][p]) for p in ("p50", "p99")), f"{r['cpu_ms_per_run']:.3g}",
            *(text.size(r["memory"][f"{kind}_bytes"]) for kind in ("pss", "uss", "peak")),
            f"{r['open_seconds']:.2g}", "equal" if r["outputs_equal"] and r["same_outputs"] else "DIFFER",
        ]
        for r in results
    ]  # fmt: skip


def ratios(results: Sequence[Json]) -> list[list[str]]:
    """One row per comparison of several workers with plain processes: their figure by that of these."""
    return [
        [
            way(r), way(other, named=other["model"] != r["model"]),
            *(
                "-" if other[figure] is None else text.ratio(other[figure])
                for figure in ("latency_cpu", "throughput", "pss", "uss", "peak")
            ),
        ]
        for r in results
        for other in r["against"].values()
        if r["workers"] > 1 or r["kind"] == "pack"
    ]  # fmt: skip


def way(result: Json, *, named: bool = True) -> str:
    """'model.onnx, 4 threads'."""
    count, kind = result["workers"], result["kind"]
    noun = {"processes": "process" if count == 1 else "processes", "pack": "on a pack"}.get(kind, kind)
    return (f"{PurePath(result['model']).name}, " if named else "") + f"{count} {noun}"


def notes(results: Sequence[Json]) -> list[str]:
    """What to know about the numbers, once each."""
    return list(dict.fromkeys(note for r in results for note in r["notes"]))
