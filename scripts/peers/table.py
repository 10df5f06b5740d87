"""The comparison as a markdown table: one row per tool, failures with their reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peers.cases import Case
from peers.speed import Speed

_UNITS = 1e6


def markdown(case: Case, results: Sequence[tuple[str, Mapping[str, Any]]], speeds: Sequence[Speed]) -> str:
    """Title, table, notes.

    Args:
        case: what was compared.
        results: (name, `Result.to_json()`), float32 first.
        speeds: one per shape; empty where the clock was not asked for.
    """
    text = case.sentences is not None
    judged = ["cosine", "padded", "nearest kept %", "same intent %"] if text else ["right %"]
    head = ["", "MB", *judged, "drop, points", *(one.shape for one in speeds), "CPU s", "wall s", "peak MiB"]
    lines = [f"### {case.name}", "", _line(head), _line(["---"] * len(head))]
    for name, result in results:
        if result["failed"] is not None:
            lines.append(_line([name, f"failed: {_plain(result['failed'])}", *[""] * (len(head) - 2)]))
            continue
        cells = [name, f"{result['bytes'] / _UNITS:.3g}", *_quality(result["quality"], text=text)]
        lines.append(_line([*cells, *(_speed(one, name) for one in speeds), *_cost(result["cost"])]))
    others = [name for name in (speeds[0].given if speeds else ()) if name not in dict(results)]
    empty = [""] * (len(judged) + 2)
    lines += [_line([name, *empty, *(_speed(one, name) for one in speeds), "", "", ""]) for name in others]
    return "\n".join([*lines, "", *_notes(case, speeds)])


def _quality(found: Mapping[str, Any], *, text: bool) -> list[str]:
    right, drop = found["right"], found["drop"]
    cells = [f"{100 * right['value']:.2f}", "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * d for d in drop.values()))]
    if not text:
        return cells
    fidelity = [f"{found['cosine']:.4f}", f"{found['cosine_padded']:.4f}", f"{100 * found['nearest']['value']:.1f}"]
    return [*fidelity, *cells]


def _speed(found: Speed, name: str) -> str:
    return f"{found.given[name].value:.2f} / {found.best[name].value:.2f}"


def _cost(cost: Mapping[str, Any] | None) -> list[str]:
    if cost is None:
        return ["", "", ""]
    return [f"{cost['cpu_seconds']:.1f}", f"{cost['seconds']:.1f}", f"{cost['peak_bytes'] / 2**20:.0f}"]


def _notes(case: Case, speeds: Sequence[Speed]) -> list[str]:
    notes = []
    if case.sentences_source is not None:
        notes.append(
            f"Cosine and nearest neighbours beside float32 on sentences of {case.sentences_source}, each alone or in "
            "padded batches of 32; intents and their paired drop on the test samples."
        )
    if speeds:
        notes.append("Speed: CPU time of float32 as exported / at its best setting over the row's; one thread.")
    notes += [
        f"{one.shape}: best float32 is '{one.best_name}'; {one.rounds} rounds, A/A {one.aa.value:.3f} "
        f"[{one.aa.low:.3f}, {one.aa.high:.3f}], contention {one.contention:.2f}."
        for one in speeds
    ]
    return [line for note in notes for line in (note, "")]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """A tool's words in one cell."""
    return " ".join(text.replace("|", "/").split())[:160]
