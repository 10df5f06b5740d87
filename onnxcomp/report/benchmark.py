"""What a benchmark says, in sections: lead, pictures by scenario, tables, and the environment."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from onnxcomp.report import baseline, pictures, placement, plots, scenarios, sweep, text, workers
from onnxcomp.report.scenarios import Grid
from onnxcomp.report.section import Section, Table

Json = Mapping[str, Any]
Figure = tuple[str, Callable[[], str]]

#: title of the section that says where it ran
ENVIRONMENT = "Environment"

#: series of one picture; more cannot be told apart
_SERIES = 8

_HEAD = (
    "model", "provider", "batch", "threads", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "samples/s", "process memory",
)  # fmt: skip
_COMPARED = ("candidate", "reference", "speedup", "verdict", "A/A control", "rounds")


def sections(document: Json, *, pictured: bool = False) -> list[Section]:
    """A benchmark and where it ran; `pictured`: the speedups stand in a picture already."""
    results, comparison, gate = document["results"], document["comparison"], document.get("baseline")
    crowds = [r for r in results if workers.is_workers(r)]
    grids = [*scenarios.grids(results), *placement.grids(results), *sweep.grids(document)]
    tables = [_table(grid) for grid in grids]
    if crowds:
        tables = [Table(workers.HEAD, workers.rows(crowds)), Table(workers.AGAINST, workers.ratios(crowds))]
    if not tables:
        tables = [Table(_HEAD, [_row(r) for r in results])]
    figures = [] if pictured else [*_gated(gate), *_compared(comparison)]
    figures += _FIGURES.get(_scenario(results), _closed_loop)(results)
    if comparison:
        tables.insert(0, Table(_COMPARED, [_comparison(c) for c in comparison]))
    if gate is not None:
        tables.insert(0, _table(baseline.grid(gate)))
    notes = baseline.notes(gate) if gate is not None else []
    notes += [f"{_name(c['candidate'])}: {reason}" for c in comparison for reason in c["reasons"]]
    notes += [*workers.notes(crowds), *(note for grid in grids for note in grid.notes)]
    notes += [f"{r['text']}; {r['hint']}" for r in document["trust"]["reasons"]]
    load = document["environment"]["load_average"]
    notes.append(f"load average before the start, 1, 5 and 15 minutes: {', '.join(f'{x:.1f}' for x in load)}")
    lead = " ".join(_lead(document))
    return [Section(_title(results), lead, figures, tables, notes), _environment(document["environment"])]


def labels(results: Sequence[Json]) -> list[str]:
    """The model's file of each row, and of its setting what the rows do not have in common."""
    said: tuple[Callable[[Json], str], ...] = (
        lambda r: str(r["provider"]),
        lambda r: f"batch {r['batch']}",
        lambda r: f"threads {r['threads']}",
        lambda r: f"{r['workers']} {r['kind']}" if r.get("workers") else "",
        lambda r: f"{r['page_cache']} cache" if r.get("page_cache") else "",
    )
    varied = [tell for tell in said if len({tell(r) for r in results}) > 1]
    return [", ".join(filter(None, [_name(r["model"]), *(tell(r) for tell in varied)])) for r in results]


def _lead(document: Json) -> list[str]:
    lines = [baseline.lead(document["baseline"])] if "baseline" in document else []
    for c in document["comparison"][:3]:
        candidate, reference, speedup = _name(c["candidate"]), _name(c["reference"]), text.ratio(c["speedup"])
        lines.append(f"{candidate} against {reference}: {speedup}, {c['verdict']}.")
    for r in document["results"]:
        if r.get("slo"):
            rate = r["slo"]["highest_rate"]
            most = "" if rate is None else f" up to {rate:.4g} requests a second"
            lines.append(f"{_name(r['model'])}: p99 within {r['slo']['p99_ms']:g} ms {r['slo']['verdict']}{most}.")
    swept = [r["front"] for r in document["results"] if "front" in r]
    if swept:
        lines.append(f"{sum(swept)} of {len(swept)} settings are on the front: none is better in both.")
    return [*lines, f"Trust in these timings: {document['trust']['grade']}."]


def _gated(gate: Json | None) -> list[Figure]:
    rows = [] if gate is None else [r for r in gate["rows"] if r["speedup"] is not None]
    if gate is None or not rows:
        return []
    draw = partial(
        plots.intervals,
        list(zip(labels(rows), (r["speedup"] for r in rows), strict=True)),
        label="speedup against the baseline",
        line=1.0,
        band=(1 / (1 + gate["tolerance"]), 1 + gate["tolerance"]),
        verdicts=[r["verdict"] for r in rows],
    )
    return [("Against the stored run, 95 % intervals; left of the shaded band is a regression", draw)]


def _compared(comparison: Sequence[Json]) -> list[Figure]:
    if not comparison:
        return []
    names = [_name(c["candidate"]) for c in comparison]
    shaded = "; shaded: no difference of use" if any("delta" in c for c in comparison) else ""
    caption = f"Speedup, 95 % intervals over rounds of fresh sessions; right of 1 is faster{shaded}"
    return [(caption, partial(pictures.ratios, comparison, names))]


def _closed_loop(results: Sequence[Json]) -> list[Figure]:
    return _distributions(results, "Single runs, one caller", "wall time of a run in ms")


def _distributions(results: Sequence[Json], what: str, label: str) -> list[Figure]:
    told = [r for r in results if isinstance(r.get("samples"), Mapping)][:_SERIES]
    if not told:
        return []
    rows = list(zip(labels(told), (r["samples"]["wall_ns"] for r in told), strict=True))
    more = f" (the first {_SERIES} of {len(results)} rows)" if len(results) > _SERIES else ""
    return [
        (f"{what}: how often each time came{more}", partial(plots.histograms, rows, label=label)),
        (f"{what}: share of runs at or below a time{more}", partial(plots.distributions, rows, label=label)),
    ]


def _server(results: Sequence[Json]) -> list[Figure]:
    label = "ms from when a request was due to its answer"
    found = _distributions(results, "Requests", label)
    searched = [r for r in results if r["search"]]
    if not searched:
        return found
    rows = list(zip(labels(searched), (r["search"]["trials"] for r in searched), strict=True))
    goals = {r["slo"]["p99_ms"] for r in searched}
    draw = partial(pictures.rates, rows, slo_ms=goals.pop() if len(goals) == 1 else None)
    return [("p99 over the rate, 95 % intervals; filled: the objective was met", draw), *found]


def _throughput(results: Sequence[Json]) -> list[Figure]:
    tail = "p99" if all(r["latency_ms"]["p99"]["estimable"] for r in results) else "p50"
    rows = _by_model(
        [r for r in results if r["latency_ms"][tail]["estimable"]],
        lambda r: {
            "x": r["throughput"],
            "y": r["latency_ms"][tail]["value"],
            "label": f"{r['batch']}/{r['threads']}/{r['workers']}",
            "best": r["best"],
        },
    )
    if not rows:
        return []
    draw = partial(pictures.points, rows, x_label="samples a second", y_label=f"{tail} of a run in ms")
    return [(f"Throughput against {tail}; beside a point: batch / threads / callers; filled: the most samples", draw)]


def _sweep(results: Sequence[Json]) -> list[Figure]:
    rows = _by_model(
        [r for r in results if r["latency_ms"]["p50"]["estimable"]],
        lambda r: {
            "x": r["latency_ms"]["p50"]["value"],
            "y": r["cpu_ms_per_sample"]["value"],
            "label": f"{r['batch']}/{r['threads']}" + ("s" if r["spinning"] and r["threads"] != 1 else ""),
            "best": r["front"],
        },
    )
    if not rows:
        return []
    draw = partial(pictures.points, rows, x_label="p50 of a run in ms", y_label="CPU ms a sample", front="front")
    return [("Latency against CPU time; beside a point: batch / threads (s: spinning); filled: none is better", draw)]


def _workers(results: Sequence[Json]) -> list[Figure]:
    told = [r for r in results if r["memory"]["pss_bytes"] is not None]
    if not told:
        return []
    parts = {"anonymous": "anonymous_bytes", "mapped files": "file_bytes"}
    if not all(r["memory"].get(key) for r in told for key in parts.values()):
        parts = {"PSS": "pss_bytes"}
    rows = [(workers.way(r), [(part, r["memory"][key] / 1e6) for part, key in parts.items()]) for r in told]
    totals = [text.size(r["memory"]["pss_bytes"]) for r in told]
    draw = partial(pictures.stacked, rows, totals, label="memory (PSS) of all together in MB")
    return [("Memory of all workers together, shared pages counted once", draw)]


def _cold(results: Sequence[Json]) -> list[Figure]:
    parts = (("start", "start and imports"), ("load", "load"), ("first", "first run"))
    rows = [
        (name, [(said, statistics.median(s[phase] for s in r["starts"])) for phase, said in parts])
        for name, r in zip(labels(results), results, strict=True)
        if r.get("starts")
    ]
    if not rows:
        return []
    totals = [f"{sum(size for _, size in found):,.0f} ms" for _, found in rows]
    draw = partial(pictures.stacked, rows, totals, label="ms from process start to first output, medians")
    return [("Where the time to the first output goes", draw)]


def _by_model(results: Sequence[Json], point: Callable[[Json], Json]) -> list[tuple[str, list[Json]]]:
    """[(model, points)]; with several providers one series each."""
    found: dict[str, list[Json]] = {}
    several = len({r["provider"] for r in results}) > 1
    for r in results:
        found.setdefault(_name(r["model"]) + (f", {r['provider']}" if several else ""), []).append(point(r))
    return list(found.items())[:_SERIES]


_FIGURES: Mapping[str, Callable[[Sequence[Json]], list[Figure]]] = {
    "server": _server,
    "throughput": _throughput,
    "sweep": _sweep,
    "workers": _workers,
    "cold": _cold,
    "placement": lambda _: [],
}

_TITLES = {
    "workers": "Workers", "cold": "Cold start", "throughput": "Throughput", "server": "Server", "sweep": "Sweep",
    "placement": "Placement",
}  # fmt: skip


def _scenario(results: Sequence[Json]) -> str:
    return str(results[0].get("scenario", "")) if results else ""


def _title(results: Sequence[Json]) -> str:
    return _TITLES.get(_scenario(results), "Latency")


def _table(grid: Grid) -> Table:
    return Table(grid.head, grid.rows, grid.title)


def _row(r: Json) -> list[str]:
    return [
        _name(r["model"]), r["provider"], str(r["batch"]), str(r["threads"]),
        *(text.latency(r["latency_ms"][p]) for p in ("p50", "p90", "p95", "p99")),
        text.number(r["throughput"]), text.size(r["memory"]["pss_bytes"]),
    ]  # fmt: skip


def _comparison(c: Json) -> list[str]:
    return [
        _name(c["candidate"]), _name(c["reference"]), text.ratio(c["speedup"]), c["verdict"],
        f"{c['aa']['ratio']:.3f} {'ok' if c['aa']['ok'] else 'failed'}", str(c["rounds"]),
    ]  # fmt: skip


def _environment(found: Json) -> Section:
    ort = found["ort"]
    rows = [
        ["CPU", f"{found['cpu']}, {found['cores']} cores, {' '.join(found['isa'])}"],
        ["memory", text.size(found["memory_bytes"])],
        ["kernel", found["kernel"]],
        [
            "ONNX Runtime",
            f"{ort['version']} ({', '.join(ort['distributions'])}), telemetry {'on' if ort['telemetry'] else 'off'}",
        ],
        ["packages", ", ".join(f"{k} {v}" for k, v in found["packages"].items())],
        ["Python", found["python"]],
    ]
    return Section(ENVIRONMENT, "", (), [Table(["", ""], rows)])


def _name(path: str) -> str:
    return PurePath(path).name
