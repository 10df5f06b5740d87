"""Tables of the scenarios 'cold', 'throughput' and 'server', for the terminal and for the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from onnxcomp.report import text

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of text cells: what it shows, the names of its columns, its rows, and remarks."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def grids(results: Sequence[Json]) -> list[Grid]:
    """The tables of these scenarios; none for results of others."""
    found = []
    for scenario, make in _MAKERS.items():
        mine = [r for r in results if r.get("scenario") == scenario]
        if mine:
            found += make(mine)
    return found


def name(result: Json) -> str:
    """The model's file."""
    return PurePath(result["model"]).name


def _cold(results: Sequence[Json]) -> list[Grid]:
    phases = ("total", "start", "load", "first", "second")
    rows = [
        [
            name(r), r["page_cache"], str(r["batch"]), str(r["threads"]), str(r["processes"]),
            *(text.latency(r["cold_ms"][phase]) for phase in phases), text.size(r["memory"]["peak_bytes"]),
        ]
        for r in results
    ]  # fmt: skip
    head = (
        "model", "page cache", "batch", "threads", "processes", "first output", "imports", "load", "first run",
        "second run", "peak",
    )  # fmt: skip
    return [Grid("cold start in ms, medians [95 % interval]", head, rows, _notes(results))]


def _throughput(results: Sequence[Json]) -> list[Grid]:
    rows = [
        [
            name(r), r["provider"], str(r["batch"]), str(r["threads"]), _workers(r),
            _rate(r["throughput"], r["throughput_interval"]), "best" if r["best"] else text.ratio(r["of_best"]),
            text.latency(r["latency_ms"]["p50"]), f"{r['cpu_ms_per_run']:.3g}", text.size(r["memory"]["pss_bytes"]),
        ]
        for r in sorted(results, key=lambda r: (r["model"], r["provider"], -r["throughput"]))
    ]  # fmt: skip
    head = (
        "model", "provider", "batch", "threads", "callers", "samples/s", "of the best", "run p50 ms", "CPU ms", "PSS",
    )  # fmt: skip
    return [Grid("throughput [95 % interval over rounds]", head, rows, [*_best(results), *_notes(results)])]


def _best(results: Sequence[Json]) -> list[str]:
    """One line per model and provider: the best, and what may be as good."""
    lines = []
    for best in (r for r in results if r["best"]):
        mine = [r for r in results if (r["model"], r["provider"]) == (best["model"], best["provider"])]
        near = [r for r in mine if r is not best and r["of_best"]["high"] >= 1]
        line = f"{name(best)}, {best['provider']}: best {_setting(best)}, {text.number(best['throughput'])} samples/s"
        if near:
            line += "; no difference measured to " + ", ".join(f"({_setting(r)})" for r in near)
        lines.append(line)
    return lines


def _setting(result: Json) -> str:
    return f"batch {result['batch']}, intra-op threads {result['threads']}, callers {result['workers']}"


def _server(results: Sequence[Json]) -> list[Grid]:
    rows = [
        [
            name(r), str(r["batch"]), _workers(r), f"{r['rate']:.4g}", f"{r['achieved_rate']:.4g}",
            text.percent(r["utilisation"], 0), *(_ms(r["latency_ms"][p]) for p in ("p50", "p90", "p99")),
            f"{r['queue']['mean']:.2g}, {r['queue']['max']}", _late(r["lateness_ms"]),
            str(r["errors"] + r["abandoned"]), r["slo"]["verdict"] if r["slo"] else "-",
        ]
        for r in results
    ]  # fmt: skip
    head = (
        "model", "batch", "workers", "rate/s", "achieved", "busy", "p50 ms", "p90 ms", "p99 ms", "queue, max",
        "late", "failed", "SLO",
    )  # fmt: skip
    verdicts = [line for r in results for line in _verdict(r)]
    found = [Grid("server: ms from when a request was due [95 % interval]", head, rows, [*verdicts, *_notes(results)])]
    trials = [
        [
            name(r), f"{t['rate']:.4g}", text.percent(t["utilisation"], 0), _ms(t["p99_ms"]), t["verdict"],
            t["reason"] or "-",
        ]
        for r in results
        if r["search"]
        for t in r["search"]["trials"]
    ]  # fmt: skip
    if trials:
        found.append(Grid("runs of the search", ("model", "rate/s", "busy", "p99 ms", "SLO", "why"), trials, ()))
    return found


def _late(lateness: Json) -> str:
    return "-" if lateness["p99"] is None else f"{lateness['p99']:.2g}"


def _verdict(result: Json) -> list[str]:
    lines = []
    slo, preview = result["slo"], result["preview"]
    if slo is not None:
        line = f"{name(result)}: p99 within {slo['p99_ms']:g} ms: {slo['verdict']}"
        if slo["highest_rate"] is not None:
            line += f" up to {slo['highest_rate']:.4g} requests a second"
        if slo.get("limit_rate"):
            limit = slo["limit_rate"]
            line += f", in the long run up to {limit['value']:.4g} [{limit['low']:.4g}, {limit['high']:.4g}]"
        lines.append(line + (f" ({slo['reason']})" if slo["reason"] else ""))
    if preview is not None:
        expected = (
            f"{name(result)}: a simulated line of these run times gives p99 {preview['p99_ms']:.3g} ms at this rate"
        )
        if result["preview_rate"] is not None:
            expected += f", and {result['preview_rate']:.4g} requests a second within the objective"
        lines.append(expected)
    return lines


def _workers(result: Json) -> str:
    count, kind = result["workers"], result["kind"]
    return f"{count} {kind if count > 1 else {'threads': 'thread', 'processes': 'process'}[kind]}"


def _ms(found: Json) -> str:
    return text.latency(found) if found["estimable"] else f"needs {found['needed']}"


def _rate(value: float, interval: Json) -> str:
    return f"{text.number(value)} [{text.number(interval['low'])}, {text.number(interval['high'])}]"


def _notes(results: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(note for r in results for note in r["notes"]))


_MAKERS: Mapping[str, Callable[[Sequence[Json]], list[Grid]]] = {
    "cold": _cold,
    "throughput": _throughput,
    "server": _server,
}
