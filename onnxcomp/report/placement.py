"""Tables of the scenario 'placement': providers before and after fusion, and the operators that take the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from onnxcomp.report import text
from onnxcomp.report.scenarios import Grid

Json = Mapping[str, Any]

#: operators that are shown; the rest is one row
_MOST_OPS = 12
_MEMCPY = "copies host/device"


def grids(results: Sequence[Json]) -> list[Grid]:
    """The tables; none for results of other scenarios."""
    mine = [r for r in results if r.get("scenario") == "placement"]
    if not mine:
        return []
    notes = list(dict.fromkeys(note for r in mine for note in r["notes"]))
    return [
        Grid(
            "placement: shares of nodes and of time [95 % interval over runs]",
            _HEAD,
            _rows(mine),
            [*_fallbacks(mine), *_latencies(mine)],
        ),
        _operators(mine, notes),
    ]


_HEAD = ("model", "batch", "threads", "where", "nodes", "of nodes", "fused nodes", "of those", "of time", "ms a run")


def _rows(results: Sequence[Json]) -> list[list[str]]:
    rows = []
    for result in results:
        before = result["placement"].get("providers", {})
        after = result["placement"]["after_fusion"]
        parts = {**after["providers"]} | ({_MEMCPY: after["memcpy"]} if after["memcpy"]["nodes"] else {})
        for name in dict.fromkeys([*before, *parts]):
            one, other = before.get(name), parts.get(name)
            rows.append(
                [
                    _name(result), str(result["batch"]), str(result["threads"]), name,
                    "-" if one is None else text.number(one["nodes"]),
                    "-" if one is None else text.percent(one["share"], 1),
                    *(["-"] * 4 if other is None else _part(other)),
                ]
            )  # fmt: skip
    return rows


def _part(found: Json) -> list[str]:
    return [text.number(found["nodes"]), text.percent(found["share"], 1), _share(found), f"{found['ms_per_run']:.3g}"]


def _share(found: Json) -> str:
    span = found["time_share_interval"]
    return f"{text.percent(found['time_share'], 1)} [{100 * span['low']:.1f}, {100 * span['high']:.1f}]"


def _fallbacks(results: Sequence[Json]) -> list[str]:
    """What landed on the CPU where another provider was asked for, by name."""
    lines = []
    for result in results:
        placed = result["placement"]
        for what, found in (("nodes", placed.get("ops_on_cpu", {})), ("fused", placed["after_fusion"]["ops_on_cpu"])):
            if found:
                ops = ", ".join(f"{op.removeprefix('ai.onnx::')} {count}" for op, count in found.items())
                lines.append(f"{_name(result)}: {result['provider']} was asked for, on the CPU are ({what}): {ops}")
    return lines


def _latencies(results: Sequence[Json]) -> list[str]:
    return [
        f"{label}: p50 {text.latency(result['latency_ms']['p50'])} ms a run, without the profiler"
        for label, result in zip(_labels(results), results, strict=True)
    ]


def _operators(results: Sequence[Json], notes: Sequence[str]) -> Grid:
    """A row for each operator with a column group for each result, those with the most time first."""
    kinds: dict[tuple[str, str], float] = {}
    found = [{(o["op"], o["provider"]): o for o in r["placement"]["after_fusion"]["ops"]} for r in results]
    for ops in found:
        for key, one in ops.items():
            kinds[key] = max(kinds.get(key, 0.0), one["ms_per_run"])
    order = sorted(kinds, key=lambda key: (-kinds[key], key))
    rows = [[op, provider, *_cells(found, [(op, provider)])] for op, provider in order[:_MOST_OPS]]
    if order[_MOST_OPS:]:
        rows.append([f"{len(order) - _MOST_OPS} others", "", *_cells(found, order[_MOST_OPS:])])
    several = len(results) > 1
    head = ["operator", "where"]
    for number in range(1, len(results) + 1):
        head += [f"{number}: {column}" if several else column for column in ("nodes", "ms a run", "of time")]
    title = "operators by time, after fusion"
    if several:
        title += "; " + ", ".join(f"{number}: {label}" for number, label in enumerate(_labels(results), 1))
    runs = ", ".join(str(r["placement"]["after_fusion"]["runs"]) for r in results)
    return Grid(title, head, rows, [f"means of the middle half of {runs} profiled runs", *notes])


def _cells(found: Sequence[Mapping[tuple[str, str], Json]], keys: Sequence[tuple[str, str]]) -> list[str]:
    cells = []
    for ops in found:
        there = [ops[key] for key in keys if key in ops]
        if not there:
            cells += ["-", "-", "-"]
            continue
        cells += [
            text.number(sum(o["nodes"] for o in there)),
            f"{sum(o['ms_per_run'] for o in there):.3g}",
            text.percent(sum(o["time_share"] for o in there), 1),
        ]
    return cells


def _labels(results: Sequence[Json]) -> list[str]:
    """The models' names, with what differs besides."""
    keys = [key for key in ("provider", "batch", "threads") if len({r[key] for r in results}) > 1]
    return [" ".join([_name(r), *(f"{key} {r[key]}" for key in keys)]) for r in results]


def _name(result: Json) -> str:
    return PurePath(result["model"]).name
