"""Tables of the scenario 'sweep': settings on the front and behind it, and what tuning found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcomp.report import text
from onnxcomp.report.scenarios import Grid, name

Json = Mapping[str, Any]

#: columns that are left out where they say the same in every row
_CONSTANT = ("provider", "shape", "level")

_HEAD = (
    "model", "provider", "batch", "shape", "threads", "spinning", "level", "front", "p50 ms", "p99 ms",
    "CPU ms/sample", "samples/s", "per core",
)  # fmt: skip


def grids(result: Json) -> list[Grid]:
    """The tables of a benchmark; none for other scenarios."""
    mine = [r for r in result["results"] if r.get("scenario") == "sweep"]
    return ([_table(mine)] if mine else []) + ([_tuning(result["tuning"])] if "tuning" in result else [])


def _table(results: Sequence[Json]) -> Grid:
    rows = _rows(results)
    same = [c for c, column in enumerate(_HEAD) if column in _CONSTANT and len({row[c] for row in rows}) == 1]
    about = ", ".join(f"{_HEAD[c]} {rows[0][c]}" for c in same if rows[0][c] != "-")
    return Grid(
        f"sweep: latency against CPU time a sample [95 % interval]{': ' * bool(about)}{about}",
        [column for c, column in enumerate(_HEAD) if c not in same],
        [[cell for c, cell in enumerate(row) if c not in same] for row in rows],
        _notes(results),
    )


def _rows(results: Sequence[Json]) -> list[list[str]]:
    """Of each provider and shape the front first, by latency."""
    ordered = sorted(
        results,
        key=lambda r: (r["provider"], _shape(r), not r["front"], r["latency_ms"]["p50"]["value"] or 0.0),
    )
    return [
        [
            name(r), r["provider"], str(r["batch"]), _shape(r), str(r["threads"]), _spinning(r), r["optimization"],
            _front(r), *(_percentile(r["latency_ms"][p]) for p in ("p50", "p99")), _span(r["cpu_ms_per_sample"]),
            text.number(r["throughput"]), text.number(r["samples_per_core_second"]["value"]),
        ]
        for r in ordered
    ]  # fmt: skip


def _front(result: Json) -> str:
    if result["front"]:
        return "p50, p99" if result["front_p99"] else "p50"
    return "p99" if result["front_p99"] else "-"


def _spinning(result: Json) -> str:
    if result["threads"] == 1 or result["provider"] != "cpu":
        return "-"
    return "on" if result["spinning"] else "off"


def _shape(result: Json) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in result["shape"].items()) or "-"


def _percentile(found: Json) -> str:
    return text.latency(found) if found["estimable"] else f"needs {found['needed']}"


def _span(found: Json) -> str:
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"


def _notes(results: Sequence[Json]) -> list[str]:
    if not results:
        return []
    control = results[0]["aa"]
    ratio = f"{control['ratio']:.3f} [{control['low']:.3f}, {control['high']:.3f}]"
    lines = [f"A/A control, p50 of the first setting measured twice: {ratio} {'ok' if control['ok'] else 'FAILED'}"]
    if not control["ok"]:
        lines.append("the same setting differs from itself: measure again on a quieter machine")
    return lines


def _tuning(found: Json) -> Grid:
    changes = sorted(found["changes"], key=lambda c: -(c["gain"]["value"] if c["gain"] else 0.0))
    rows = [
        [
            c["name"], "-" if c["gain"] is None else text.ratio(c["gain"]), str(c["rounds"]),
            "kept" if c["kept"] else (f"refused: {c['refused']}" if c["refused"] else "-"),
        ]
        for c in changes
    ]  # fmt: skip
    clock = "CPU time" if found["clock"] == "thread" else "wall time"
    head = ("change", f"gain in {clock}", "rounds", "why")
    return Grid("tuning: single changes of ORT's default settings [95 % interval]", head, rows, _conclusion(found))


def _conclusion(found: Json) -> list[str]:
    lines = list(found["notes"])
    proof = found["comparison"]
    if proof is not None:
        control = proof["aa"]
        lines.insert(
            0,
            f"the kept changes against the defaults, measured anew: {text.ratio(proof['speedup'])}, "
            f"{proof['verdict']}; A/A control {control['ratio']:.3f} {'ok' if control['ok'] else 'failed'}; "
            f"outputs equal within {found['max_difference']:.1e} of the largest value",
        )
        lines += proof["reasons"]
    if "file" in found:
        lines.append(f"settings: {found['file']}")
    return lines
