"""Pictures of the scenarios of a benchmark: what a server holds, what throughput costs, where memory and time go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcomp.report import canvas, plots

Json = Mapping[str, Any]


def rates(rows: Sequence[tuple[str, Sequence[Json]]], *, slo_ms: float | None) -> str:
    """p99 with its interval over the rate of requests: the trials of a search, by what they said.

    Args:
        rows: (name, trials: {rate, verdict, p99_ms}) per model.
        slo_ms: the objective, a line.
    """
    figure, ax = canvas.axes(3.0 + 0.2 * len(rows))
    handles: list[Any] = []
    for i, (_, trials) in enumerate(rows):
        told = sorted((t for t in trials if t["p99_ms"]["estimable"]), key=lambda t: t["rate"])
        rate, p99 = [t["rate"] for t in told], [t["p99_ms"]["value"] for t in told]
        colour = canvas.SERIES[i % 8]
        ax.plot(rate, p99, "-", color=colour, lw=1.3, alpha=0.7)
        handles += ax.plot([], [], "-" + canvas.MARKERS[i % 8], color=colour, lw=1.3, ms=7)
        for t in told:
            low, high = t["p99_ms"]["low"], t["p99_ms"]["high"]
            ax.plot([t["rate"]] * 2, [low, high if high is not None else t["p99_ms"]["value"]], color=colour, lw=1.8)
            held = t["verdict"] == "met"
            ax.plot(
                t["rate"], t["p99_ms"]["value"], canvas.MARKERS[i % 8], ms=7, color=colour if held else "white",
                mec=colour, mew=1.6,
            )  # fmt: skip
    labels = [name for name, _ in rows]
    if slo_ms is not None:
        handles.append(ax.axhline(slo_ms, color=canvas.INK, lw=1.2, ls=(0, (4, 3))))
        labels.append(f"objective: p99 within {slo_ms:g} ms")
    ax.set_xlabel("requests a second", color=canvas.INK)
    ax.set_ylabel("p99 in ms", color=canvas.INK)
    spread = [t["p99_ms"]["value"] for _, trials in rows for t in trials if t["p99_ms"]["estimable"]]
    if spread:
        highs = [t["p99_ms"]["high"] or 0 for _, trials in rows for t in trials if t["p99_ms"]["estimable"]]
        canvas.span(ax.yaxis, [*spread, *highs, *([slo_ms] if slo_ms else [])])
    ax.margins(x=0.08)
    canvas.legend(ax, handles, labels)
    return canvas.svg(figure, "p99 over the rate of requests: " + ", ".join(name for name, _ in rows))


def points(rows: Sequence[tuple[str, Sequence[Json]]], *, x_label: str, y_label: str, front: str = "") -> str:
    """Settings as points, those that no other beats joined by a line.

    Args:
        rows: (name, points: {x, y, label, best}) per model.
        x_label: with its unit.
        y_label: with its unit.
        front: what the line joins; '' for no line.
    """
    figure, ax = canvas.axes(3.2 + 0.2 * len(rows))
    handles, labels = [], []
    words: list[tuple[float, float, str, str]] = []
    for i, (name, found) in enumerate(rows):
        colour, marker = canvas.SERIES[i % 8], canvas.MARKERS[i % 8]
        best = sorted((p for p in found if p["best"]), key=lambda p: p["x"])
        rest = [p for p in found if not p["best"]]
        ax.plot([p["x"] for p in rest], [p["y"] for p in rest], marker, color="white", mec=colour, mew=1.4, ms=6)
        line = "-" if front else ""
        handles += ax.plot(
            [p["x"] for p in best], [p["y"] for p in best], line + marker, color=colour, lw=1.5, ms=7.5, mec="white"
        )
        labels.append(name + (f" ({front})" if front else ""))
        words += [(p["x"], p["y"], p["label"], colour) for p in sorted(found, key=lambda p: not p["best"])]
    ax.set_xlabel(x_label, color=canvas.INK)
    ax.set_ylabel(y_label, color=canvas.INK)
    canvas.span(ax.xaxis, [w[0] for w in words], from_zero=False)
    canvas.span(ax.yaxis, [w[1] for w in words])
    canvas.legend(ax, handles, labels)
    canvas.beside(ax, words)
    return canvas.svg(figure, f"{y_label} over {x_label}: " + ", ".join(name for name, _ in rows))


def stacked(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], totals: Sequence[str], *, label: str) -> str:
    """Bars of parts, each with its total behind it.

    Args:
        rows: (name, parts: (name, size)); the parts have the same names in every row.
        totals: text behind each bar.
        label: of the axis, with the unit.
    """
    figure, ax = canvas.axes(1.0 + 0.56 * len(rows))
    handles: list[Any] = []
    longest = max(sum(size for _, size in parts) for _, parts in rows)
    for i, (_, parts) in enumerate(rows):
        left = 0.0
        for k, (_, size) in enumerate(parts):
            bar = ax.barh(i, size, left=left, color=canvas.SERIES[k % 8], height=0.42, edgecolor="white", lw=0.8)
            left += size
            if i == 0:
                handles.append(bar)
        ax.text(left + 0.015 * longest, i, totals[i], va="center", color=canvas.INK)
    ax.set_xlim(0, 1.26 * longest)
    canvas.rows(ax, [name for name, _ in rows], label)
    if len(rows[0][1]) > 1:
        canvas.legend(ax, handles, [name for name, _ in rows[0][1]], columns=len(rows[0][1]))
    told = ", ".join(f"{name} {total}" for (name, _), total in zip(rows, totals, strict=True))
    return canvas.svg(figure, f"{label}: {told}")


def ratios(comparison: Sequence[Json], names: Sequence[str], *, label: str = "speedup") -> str:
    """Speedups with their intervals; shaded: what counts as no difference."""
    deltas = {c["delta"] for c in comparison if "delta" in c}
    delta = deltas.pop() if len(deltas) == 1 else None
    return plots.intervals(
        list(zip(names, (c["speedup"] for c in comparison), strict=True)),
        label=label,
        line=1.0,
        band=None if delta is None else (1 / (1 + delta), 1 + delta),
        verdicts=[c["verdict"] for c in comparison],
    )
