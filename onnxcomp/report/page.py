"""One self-contained HTML page of results: no script, no network, safe to send around."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp.errors import DataError, UnsupportedError
from onnxcomp.report import effects, plots, scenarios, stages, text, workers

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text cells; a cell's verdict colours it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: heading.
        lead: one sentence that says the result.
        figures: (caption, SVG).
        tables: below the figures.
        notes: remarks, one line each.
    """

    title: str
    lead: str = ""
    figures: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def build(documents: Sequence[Json], *, title: str = "onnxcomp report") -> str:
    """The page for some results (JSON objects with a `schema`).

    Raises DataError for a schema that has no section, UnsupportedError without jinja2 or matplotlib.
    """
    sections = [section for document in documents for section in _sections(document)]
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise UnsupportedError("the page needs jinja2", hint="pip install 'onnxcomp[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = markupsafe.Markup  # made by us; all text of results is escaped
    return environment.get_template("page.html").render(title=title, sections=sections, verdicts=plots.COLOURS)


def _sections(document: Json) -> list[Section]:
    schema = str(document.get("schema", ""))
    kind = schema.split("/")[1] if schema.count("/") == 2 and schema.startswith("onnxcomp/") else ""
    maker = _MAKERS.get(kind)
    if maker is None:
        raise DataError(
            f"no page section for '{schema or 'a file without schema'}'",
            hint=f"give the --json output of: {', '.join(_MAKERS)}",
        )
    try:
        return maker(document)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError) as error:
        raise DataError(f"the result is damaged or of another version: {error!r}", where=schema) from error


def _demo(document: Json) -> list[Section]:
    models, metric = document["models"], document["metric"]
    rows = [
        [
            m["name"],
            text.size(m["bytes"]),
            f"{m['size_ratio'] ** -1:.2f}x",
            text.score_interval(m["score"], metric),
            "-" if m["drop"] is None else text.score_interval(m["drop"], metric),
            "-" if m["speedup"] is None else text.ratio(m["speedup"]),
            m["verdict"] or "reference",
            m["gate"],
        ]
        for m in models
    ]
    head = ["model", "size", "smaller", metric, "drop, paired", "speedup", "verdict", "gate"]
    measured = [m for m in models if m["speedup"] is not None]
    figures = [
        ("Accuracy on held-out samples, 95 % intervals", plots.intervals(
            [(m["name"], m["score"]) for m in models], label=f"{metric} in %", scale=100)),
        ("Size", plots.sizes([(m["name"], m["bytes"]) for m in models])),
    ]  # fmt: skip
    drops = [(m["name"], m["drop"]) for m in models if m["drop"]]
    if drops:
        figures.insert(1, (
            "Drop against the reference on the same samples (paired); green: within the budget", plots.intervals(
                drops, label="drop in points", scale=100, line=0.0,
                band=(-100 * document["max_drop"], 100 * document["max_drop"])),
        ))  # fmt: skip
    if measured:
        figures.append((
            "Speed against the reference in interleaved rounds, 95 % intervals; right of 1 is faster",
            plots.intervals(
                [(m["name"], m["speedup"]) for m in measured], label="speedup", line=1.0,
                colours=[plots.COLOURS[m["verdict"]] for m in measured]),
        ))  # fmt: skip
    refused = [[r["name"], r["reason"]] for r in document["refused"]]
    left = [
        [m["name"], nodes, reason]
        for m in models
        for step in m["passes"]
        for nodes, reason in effects.skipped(step["effect"])
    ]
    notes = [
        f"{step['name']}: {note['node'] + ': ' if note['node'] else ''}{note['reason']}"
        for m in models
        for step in m["passes"]
        for note in step["notes"]
    ]
    extra = [Table(["candidate", "why it was refused"], refused)] if refused else []
    if left:
        extra.append(Table(["candidate", "nodes left as they were", "reason"], left))
    main = Section(document["title"], document["conclusion"], figures, [Table(head, rows), *extra], _unique(notes))
    return [main, *_bench(document["bench"], pictured=True)]


def _bench(document: Json, *, pictured: bool = False) -> list[Section]:
    """pictured: the speedups stand in a picture already."""
    results, comparison, trust = document["results"], document["comparison"], document["trust"]
    crowds, grids = [r for r in results if workers.is_workers(r)], scenarios.grids(results)
    rows = [
        [
            _name(r["model"]), r["provider"], str(r["batch"]), str(r["threads"]),
            *(text.latency(r["latency_ms"][p]) for p in ("p50", "p90", "p95", "p99")),
            text.number(r["throughput"]), text.size(r["memory"]["pss_bytes"]),
        ]
        for r in results
        if not grids
    ]  # fmt: skip
    head = [
        "model",
        "provider",
        "batch",
        "threads",
        "p50 ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        "samples/s",
        "process memory",
    ]
    found = [Table(head, rows)]
    if crowds:
        found = [Table(workers.HEAD, workers.rows(crowds)), Table(workers.AGAINST, workers.ratios(crowds))]
    if grids:
        found = [Table(grid.head, grid.rows) for grid in grids]
    figures = []
    samples = [(_name(r["model"]), r["samples"]["wall_ns"]) for r in results if "samples" in r]
    if samples:
        served = any(r.get("scenario") == "server" for r in results)
        caption = (
            "Time from when a request was due to its answer" if served else "Distribution of single runs, one caller"
        )
        figures.append((caption, plots.distributions(samples)))
    if comparison and not pictured:
        figures.append((
            "Speedup, 95 % intervals over rounds of fresh sessions",
            plots.intervals([(_name(c["candidate"]), c["speedup"]) for c in comparison], label="speedup", line=1.0,
                            colours=[plots.COLOURS[c["verdict"]] for c in comparison]),
        ))  # fmt: skip
    if comparison:
        found.append(
            Table(
                ["candidate", "reference", "speedup", "verdict", "A/A control", "rounds"],
                [
                    [
                        _name(c["candidate"]), _name(c["reference"]), text.ratio(c["speedup"]), c["verdict"],
                        f"{c['aa']['ratio']:.3f} {'ok' if c['aa']['ok'] else 'failed'}", str(c["rounds"]),
                    ]
                    for c in comparison
                ],
            )
        )  # fmt: skip
    notes = [f"{_name(c['candidate'])}: {reason}" for c in comparison for reason in c["reasons"]]
    notes += [*workers.notes(crowds), *(note for grid in grids for note in grid.notes)]
    notes += [f"{r['text']}; {r['hint']}" for r in trust["reasons"]]
    lead = f"Trust in these timings: {trust['grade']}."
    return [
        Section(_title(results), lead, figures, found, notes),
        _environment(document["environment"]),
    ]


def _title(results: Sequence[Json]) -> str:
    titles = {"workers": "Workers", "cold": "Cold start", "throughput": "Throughput", "server": "Server"}
    return titles.get(results[0].get("scenario", ""), "Latency") if results else "Latency"


def _environment(found: Json) -> Section:
    ort = found["ort"]
    rows = [
        ["CPU", f"{found['cpu']}, {found['cores']} cores, {' '.join(found['isa'])}"],
        ["memory", text.size(found["memory_bytes"])],
        ["kernel", found["kernel"]],
        ["load before", ", ".join(f"{x:.1f}" for x in found["load_average"])],
        [
            "ONNX Runtime",
            f"{ort['version']} ({', '.join(ort['distributions'])}), telemetry {'on' if ort['telemetry'] else 'off'}",
        ],
        ["packages", ", ".join(f"{k} {v}" for k, v in found["packages"].items())],
        ["Python", found["python"]],
    ]
    return Section("Environment", "", (), [Table(["", ""], rows)])


def _record(document: Json) -> list[Section]:
    before, after = document["input"], document["output"]
    rows = [
        ["input", before["path"], text.size(before["bytes"]), before["sha256"]],
        ["output", after["path"], text.size(after["bytes"]), after["sha256"]],
    ]
    steps = [[s["name"], effects.effect(s["effect"]), f"{s['seconds']:.1f} s"] for s in document["passes"]]
    left = [list(entry) for step in document["passes"] for entry in effects.skipped(step["effect"])]
    found = [Table(["", "file", "size", "sha256"], rows), Table(["pass", "effect", "time"], steps)]
    if judged := stages.rows(document):
        found.append(Table(stages.head(document), judged))
    if left:
        found.append(Table(["nodes left as they were", "reason"], left))
    notes = [f"{s['name']}: {n['reason']}" for s in document["passes"] for n in s["notes"]]
    section = Section(
        f"{_name(after['path'])}",
        f"{1 / document['size_ratio']:.2f} times smaller than {_name(before['path'])}.",
        (), found, [*notes, *document["warnings"]],
    )  # fmt: skip
    return [section, *(_fidelity(document["fidelity"]) if document["fidelity"] else [])]


def _fidelity(document: Json) -> list[Section]:
    rows = [
        [name, text.decibel(f), *("NaN" if f[k] is None else f"{f[k]:.4g}" for k in _FIDELITY)]
        for name, f in document["outputs"].items()
    ]
    agreement = document["agreement"]
    lead = f"On {document['samples']} samples of {document['data']}."
    if agreement is not None:
        lead += f" Same class: {text.score_interval(agreement, 'accuracy')}."
    head = ["output", "SQNR", "cosine mean", "cosine p1", "max abs", "max rel"]
    return [Section("Fidelity", lead, (), [Table(head, rows)])]


_FIDELITY = ("cosine_mean", "cosine_p1", "max_abs", "max_rel")


def _score(document: Json) -> list[Section]:
    metric = document["metric"]
    rows = [["candidate", text.score_interval(document, metric)]]
    if document["reference"] is not None:
        rows += [
            ["reference", text.score_interval(document["reference"], metric)],
            ["drop, paired", text.score_interval(document["drop"], metric)],
        ]
    lead = f"On {document['samples']} samples of {document['data']}."
    return [Section(f"Metric: {metric}", lead, (), [Table(["", metric], rows)])]


_MAKERS: dict[str, Callable[[Json], list[Section]]] = {
    "demo": _demo,
    "bench": _bench,
    "compare": _fidelity,
    "evaluate": _score,
    "optimize": _record,
    "quantize": _record,
    "prune": _record,
    "run": _record,
}


def _name(path: str) -> str:
    return Path(path).name


def _unique(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(lines))
