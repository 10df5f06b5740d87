"""A search in sections: what won, what was in question, what was not, and how to serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from onnxcomp.report import plots, text
from onnxcomp.report.section import Section, Table
from onnxcomp.report.shrinking import sentence, settled
from onnxcomp.report.text import FRACTIONS
from onnxcomp.report.tradeoff import Point, tradeoff

Json = Mapping[str, Any]


def sections(document: Json) -> list[Section]:
    """The result; all candidates; what was left out; how to serve it."""
    return [_result(document), _tried(document), *_left_out(document), *_serving(document)]


def _result(document: Json) -> Section:
    metric, samples, base = document["metric"], document["samples"], document["baseline"]
    rows = [["input", text.size(base["bytes"]), "", "", text.score_interval(base["score"], metric), "", ""]]
    rows += [
        [
            one["name"],
            text.size(one["bytes"]),
            f"{1 / one['size_ratio']:.2f}x",
            text.ratio(one["speedup"]),
            text.score_interval(one["score"], metric),
            text.score_interval(one["drop"], metric),
            "met" if one["met"] else "missed",
        ]
        for one in document["tested"]
    ]
    wanted = document["wanted"]
    unit = 100.0 if metric in FRACTIONS else 1.0
    drops = [(one["name"], one["drop"]) for one in document["tested"]]
    caption = "Drop on the test samples, paired with the input, 95 % intervals; shaded: within the budget"
    label = f"drop of {metric}" + (" in points" if unit != 1 else "")
    budget = unit * wanted["max_drop"]
    draw = partial(plots.intervals, drops, label=label, scale=unit, line=0.0, band=(-budget, budget))
    head = ["model", "size", "smaller", "speedup", metric, "drop, paired", "budget"]
    gate = "upper end of the interval" if wanted["gate"] == "upper" else "drop itself"
    notes = [
        f"Samples: {samples['calibration']:,} calibrated, {samples['selection']:,} chose, {samples['test']:,} tested.",
        f"Gate: the {gate} is within {text.score(wanted['max_drop'], metric)}.",
    ]
    trust = (document["benchmark"] or {}).get("trust")
    if trust is not None:
        notes.append(f"Trust in the timings: {trust['grade']}.")
        notes += [f"{reason['text']}; {reason['hint']}" for reason in trust["reasons"]]
    figures = [(caption, draw)] if drops else []
    title = f"The result for {wanted['minimize']}"
    return Section(title, sentence(document), figures, [Table(head, rows)], notes)


def _tried(document: Json) -> Section:
    metric, whole = document["metric"], document["baseline"]["bytes"]
    unit = 100.0 if metric in FRACTIONS else 1.0
    budget = document["wanted"]["max_drop"]
    points = _points(document)
    draw = partial(tradeoff, points, budget=budget, unit=unit, metric=metric)
    caption = (
        "Every candidate, on the samples that choose: right is faster, up loses less, the area is the size of the "
        "file; what loses more than four times the budget stands at the edge"
    )
    rejected = {one["recipe"]: one["reason"] for one in document["rejected"]}
    rows = [
        [
            one["name"],
            "-" if one["reason"] else f"{whole / one['bytes']:.2f}x",
            "-" if one["speed"] is None else text.ratio(one["speed"]),
            "-" if one["drop"] is None else text.score_interval(one["drop"], metric),
            rejected.get(one["name"], "in"),
        ]
        for one in document["candidates"]
    ]
    lead = f"{document['tried']} were made in {document['seconds']:.0f} s" + (
        "." if document["complete"] else "; the time was over before everything was tried."
    )
    head = ["candidate", "smaller", "speed, a quick look", "drop, paired", "verdict"]
    return Section("What was tried", lead, [(caption, draw)] if points else [], [Table(head, rows)])


def _points(document: Json) -> list[Point]:
    whole = document["baseline"]["bytes"]
    best = document["best"]["name"] if document["best"] else None
    front = {one["name"] for one in document["front"]}
    out = {one["recipe"] for one in document["rejected"]}
    found: list[Point] = []
    for one in document["candidates"]:
        if one["speed"] is None or one["drop"] is None:
            continue
        kind = "over" if one["name"] in out else "front" if one["name"] in front else "within"
        drop = (one["drop"]["value"], one["drop"]["low"], one["drop"]["high"])
        speed, share = one["speed"]["value"], one["bytes"] / whole
        found.append((one["name"], speed, drop, share, "winner" if one["name"] == best else kind))
    return found


def _left_out(document: Json) -> list[Section]:
    rows: Sequence[Sequence[str]] = [[one["what"], one["reason"]] for one in document["left_out"]]
    if not rows:
        return []
    lead = "What does not pay for a model of this kind is not tried."
    return [Section("Not tried", lead, (), [Table(["what", "why"], rows)])]


def _serving(document: Json) -> list[Section]:
    best = document["best"]
    if best is None:
        return []
    data = str(PurePath(best["path"]).parent / "study/data/calibration")
    settings = [] if best["settings"] is None else [settled(best["settings"])]
    rows = [
        ["check it", f"onnxcomp verify {best['path']}"],
        ["make it again", f"onnxcomp run {best['recipe']} {document['baseline']['path']} --data {data} -o again.onnx"],
        ["plan workers", f"onnxcomp plan {best['path']} --rate QPS --slo-p99 MS"],
        ["share its memory", f"onnxcomp pack {best['path']} -o pack"],
    ]
    return [Section("How to serve it", " ".join(settings), (), [Table(["", ""], rows)])]
