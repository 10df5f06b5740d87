"""A plan in sections: the table of each model, what its rates are, and what to start."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import PurePath
from typing import Any

from onnxcomp.report import plots
from onnxcomp.report.plans import _HEAD, _nearest, _row, _start, label
from onnxcomp.report.section import Section, Table

Json = Mapping[str, Any]


def sections(document: Json) -> list[Section]:
    """One per model; the comparison of models and the start stand in the first."""
    asked, found = document["objective"], []
    goal = f"{asked['rate']:g} requests a second, p99 within {asked['slo_p99_ms']:g} ms"
    for one in document["plans"]:
        name = PurePath(one["model"]).name
        rated = [(label(o), o["highest_rate"]) for o in one["options"] if o["highest_rate"] is not None]
        draw = partial(plots.intervals, rated, label="requests a second of one machine", line=asked["rate"])
        caption = "Highest rate within the objective, simulated, 95 % intervals; dashed: the rate asked for"
        notes = [
            *one["notes"],
            *(f"out of question: {label(o)}: {o['refused']}" for o in one["options"] if o["refused"]),
        ]
        if one["nearest"]:
            notes.append(f"nearest: {_nearest(one['nearest'])}")
        lead = f"{one['verdict']}: {one['reason']}" if one["reason"] else one["verdict"]
        table = Table(_HEAD, [list(_row(o)) for o in one["options"]], goal)
        found.append(Section(f"Plan: {name}", lead, [(caption, draw)] if rated else [], [table], notes))
    return [*found, _conclusion(document)]


def _conclusion(document: Json) -> Section:
    said = [row["statement"].rstrip(".") + "." for row in document["comparison"]]
    start = [list(row) for row in _start(document["best"])] if document["best"] else []
    trust = document["trust"]
    notes = [*document["notes"], *(f"{r['text']}; {r['hint']}" for r in trust["reasons"])]
    lead = " ".join([*said, f"Trust in these timings: {trust['grade']}."])
    return Section("What to start" if start else "Conclusion", lead, (), [Table(["", ""], start)], notes)
