"""The table of a run against a stored one, for terminal, page and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from onnxcomp.report import text
from onnxcomp.report.scenarios import Grid

Json = Mapping[str, Any]

_HEAD = ("model", "gate", "speedup", "setting", "measured", "sessions")


def grid(found: Json) -> Grid:
    """Of the object under `baseline`."""
    rows = [
        [
            name(row),
            row["verdict"],
            "-" if row["speedup"] is None else text.ratio(row["speedup"], digits=3),
            setting(row),
            "side by side" if not row["indicative"] else f"{row['what']}, stored: indicative",
            "-" if row["sessions"] is None else f"{row['sessions'][0]}, {row['sessions'][1]}",
        ]
        for row in found["rows"]
    ]
    return Grid(title(found), _HEAD, rows, notes(found))


def title(found: Json) -> str:
    """What the gate asks."""
    allowed = text.percent(found["tolerance"], 1)
    return (
        f"baseline {PurePath(found['path']).name}: speedup against it [95 % interval]; a slowdown of {allowed} passes"
    )


def lead(found: Json) -> str:
    """The verdict in a sentence."""
    said = {
        "passed": "No row is slower than the baseline allows",
        "regression": "Slower than the baseline, beyond the noise",
        "undecided": "Undecided: the noise or the conditions do not allow a verdict on the baseline",
    }
    return f"{said[found['verdict']]} (tolerance {text.percent(found['tolerance'], 1)})."


def notes(found: Json) -> list[str]:
    """Why undecided, and what was not compared."""
    lines = [f"{name(row)} ({setting(row)}): {reason}" for row in found["rows"] for reason in row["reasons"]]
    if not found["rows"]:
        lines.append("no row of the baseline has the model, scenario and setting of one of this run")
    lines += [f"only in the baseline: {name(row)} ({setting(row)})" for row in found["missing"]]
    return list(dict.fromkeys(lines))


def name(row: Json) -> str:
    """The model's file."""
    return PurePath(row["model"]).name


def setting(row: Json) -> str:
    """'latency, cpu, batch 1, threads 1'."""
    more = [f"{row['workers']} {row.get('kind', 'workers')}"] if row.get("workers") else []
    more += [f"{row['page_cache']} page cache"] if row.get("page_cache") else []
    return ", ".join([row["scenario"], row["provider"], f"batch {row['batch']}", f"threads {row['threads']}", *more])
