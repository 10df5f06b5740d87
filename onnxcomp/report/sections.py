"""What each kind of result says, in sections: for the page, and for a comment in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onnxcomp.errors import DataError
from onnxcomp.report import benchmark, effects, planned, plots, shrunk, stages, text
from onnxcomp.report.section import Drawn, Section, Table

Json = Mapping[str, Any]


def kind(document: Json) -> str | None:
    """The verb that made a result; None where there is no section for it."""
    parts = str(document.get("schema", "")).split("/")
    known = len(parts) == 3 and parts[0] == "onnxcomp" and parts[1] in _MAKERS
    return parts[1] if known else None


def made(documents: Sequence[Json], *, pictures: bool) -> list[Drawn]:
    """The sections of some results (JSON objects with a `schema`), with their pictures or without; what several say, as
    where they ran, stands once.

    Raises DataError for a schema that has no section and for a damaged result, and what pictures raise.
    """
    found = [section for document in documents for section in _of(document, pictures=pictures)]
    return [section for index, section in enumerate(found) if section not in found[:index]]


def _of(document: Json, *, pictures: bool) -> list[Drawn]:
    schema, verb = str(document.get("schema", "")), kind(document)
    if verb is None:
        raise DataError(
            f"no page section for '{schema or 'a file without schema'}'",
            hint=f"give the --json output of: {', '.join(KINDS)}",
        )
    try:
        return [section.drawn(pictures=pictures) for section in _MAKERS[verb](document)]
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
        ("Accuracy on held-out samples, 95 % intervals", partial(
            plots.intervals, [(m["name"], m["score"]) for m in models], label=f"{metric} in %", scale=100)),
        ("Size", partial(plots.sizes, [(m["name"], m["bytes"]) for m in models])),
    ]  # fmt: skip
    drops = [(m["name"], m["drop"]) for m in models if m["drop"]]
    if drops:
        figures.insert(1, (
            "Drop against the reference on the same samples (paired); shaded: within the budget", partial(
                plots.intervals, drops, label="drop in points", scale=100, line=0.0,
                band=(-100 * document["max_drop"], 100 * document["max_drop"])),
        ))  # fmt: skip
    if measured:
        figures.append((
            "Speed against the reference in interleaved rounds, 95 % intervals; right of 1 is faster",
            partial(
                plots.intervals, [(m["name"], m["speedup"]) for m in measured], label="speedup", line=1.0,
                verdicts=[m["verdict"] for m in measured]),
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
    return [main, *benchmark.sections(document["bench"], pictured=True)]


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
    "bench": benchmark.sections,
    "compare": _fidelity,
    "evaluate": _score,
    "optimize": _record,
    "quantize": _record,
    "prune": _record,
    "run": _record,
    "share": _record,
    "distill": _record,
    "plan": planned.sections,
    "shrink": shrunk.sections,
}

#: verbs whose results have sections
KINDS = tuple(_MAKERS)


def _name(path: str) -> str:
    return Path(path).name


def _unique(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(lines))
