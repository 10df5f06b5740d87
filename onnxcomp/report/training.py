"""What `onnxcomp distill` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcomp.report import text
from onnxcomp.report.tables import _add, _facts, _print, _table, fidelity

Json = Mapping[str, Any]


def distilled(result: Json) -> None:
    """Teacher, student and output, the epochs, and how near the output is to the teacher."""
    (step,) = result["passes"]
    effect, student, best = step["effect"], result["student"], step["effect"]["best_epoch"]
    trained = f"{text.number(effect['trained_parameters'])} of {text.number(effect['parameters'])} parameters"
    early = ", ended early" if effect["stopped_early"] else ""
    _facts(
        [
            ("teacher", f"{result['input']['path']} ({text.size(result['input']['bytes'])})"),
            ("student", f"{student['path'] or 'a model in memory'} ({text.size(student['bytes'])})"),
            ("output", f"{result['output']['path']} ({text.size(result['output']['bytes'])})"),
            ("size", f"{1 / result['size_ratio']:.2f}x smaller" if result["size_ratio"] < 1 else "not smaller"),
            (
                "training",
                f"{trained}, {effect['steps']} steps, {step['seconds']:.1f} s{early}; epoch {best} is the best",
            ),
        ]
    )
    measured = list(result["history"][0]["validation"])
    table = _table(f"judged by {result['data']['judged']} samples that did not train")
    for name in ("epoch", "training loss", *measured, "time"):
        table.add_column(name, justify="right")
    for entry in result["history"]:
        loss = "" if entry["loss"] is None else f"{entry['loss']:.4g}"
        found = [_figure(name, entry["validation"][name]) for name in measured]
        mark = "*" if entry["epoch"] == best else ""
        _add(table, f"{entry['epoch']}{mark}", loss, *found, f"{entry['seconds']:.1f} s")
    _print(table)
    if result["fidelity"] is not None:
        fidelity(result["fidelity"])


def _figure(name: str, value: float) -> str:
    return f"{value:.4g}" if name == "loss" else text.percent(value)
