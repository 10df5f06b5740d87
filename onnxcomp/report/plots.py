"""Pictures of intervals, sizes and distributions: never bare bars of noisy numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcomp.report import canvas, text

Json = Mapping[str, Any]

#: of verdicts, told apart by a colour-blind reader, and readable as text on white
COLOURS = {
    "faster": "#00714d",
    "slower": "#b84a00",
    "equivalent": "#0064a4",
    "undecided": "#6b5b8a",
    "passed": "#00714d",
    "regression": "#b84a00",
    "met": "#00714d",
    "missed": "#b84a00",
}

#: an interval is drawn to so many times the largest value; an arrow says that it goes on
_REACH = 4

#: of points of a cumulative curve that are drawn: more than a screen shows
_CURVE = 240


def intervals(
    rows: Sequence[tuple[str, Json]], *, label: str, scale: float = 1.0, verdicts: Sequence[str] | None = None,
    line: float | None = None, band: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """One mark with its 95 % interval per row.

    Args:
        rows: (name, {value, low, high}).
        label: of the axis, with the unit.
        scale: factor on the figures (100 for percent).
        verdicts: one per row: colour of the mark, and behind the name.
        line: where a reference line stands.
        band: range of values that the gate allows, or that counts as equal.
    """
    figure, ax = canvas.axes(0.75 + 0.52 * len(rows))
    if band is not None:
        ax.axvspan(*band, color=canvas.SERIES[0], alpha=0.13, lw=0)
    if line is not None:
        ax.axvline(line, color=canvas.SOFT, lw=1, ls=(0, (4, 3)))
    seen = [scale * found["value"] for _, found in rows] + list(band or ())
    reach = _REACH * max(map(abs, seen)) or math.inf
    for i, (_, found) in enumerate(rows):
        value, low, high = (scale * found[k] for k in ("value", "low", "high"))
        colour = COLOURS[verdicts[i]] if verdicts else canvas.SERIES[0]
        ends = (max(low, -reach), min(high, reach))
        ax.plot(ends, [i, i], color=colour, lw=2.4, solid_capstyle="butt")
        for end, arrow in zip(ends, "<>", strict=True):
            beyond = 0 < reach <= abs(end)
            ax.plot([end], [i], arrow if beyond else "|", color=colour, ms=7 if beyond else 9, mew=1.6)
        ax.plot([value], [i], "o", color=colour, ms=8, mec="white", mew=0.8)
    names = [name for name, _ in rows]
    canvas.rows(
        ax, [f"{canvas.short(n)}: {v}" for n, v in zip(names, verdicts, strict=True)] if verdicts else names, label
    )
    ax.margins(x=0.08)
    return canvas.svg(figure, f"{label}: " + ", ".join(f"{n} {scale * f['value']:.4g}" for n, f in rows))


def sizes(rows: Sequence[tuple[str, int]]) -> str:
    """File sizes as bars from zero, each with its figure."""
    figure, ax = canvas.axes(0.75 + 0.52 * len(rows))
    largest = max(size for _, size in rows)
    for i, (_, size) in enumerate(rows):
        ax.barh(i, size / 1e6, color=canvas.SERIES[0], height=0.42)
        ax.text((size + 0.015 * largest) / 1e6, i, text.size(size), va="center", color=canvas.INK)
    ax.set_xlim(0, 1.2 * largest / 1e6)
    canvas.rows(ax, [name for name, _ in rows], "file size in MB")
    return canvas.svg(figure, "file sizes: " + ", ".join(f"{n} {text.size(s)}" for n, s in rows))


def distributions(rows: Sequence[tuple[str, Sequence[int]]], *, label: str = "wall time of a run in ms") -> str:
    """Cumulative distribution of latencies (ns); the tail beyond three 90th percentiles is cut and counted."""
    import numpy as np

    figure, ax = canvas.axes(2.7 + 0.2 * len(rows))
    lines: list[Any] = []
    labels: list[str] = []
    cut = far(rows)
    for i, (name, ns) in enumerate(rows):
        ms = np.sort(np.asarray(ns, float)) / 1e6
        share = np.arange(1, len(ms) + 1) / len(ms)
        beyond = int(np.sum(ms > cut))
        keep = np.unique(np.linspace(0, len(ms) - 1, _CURVE).astype(int))
        keep = keep[ms[keep] <= cut]
        x, y = [*ms[keep], cut], [*share[keep], np.mean(ms <= cut)]
        lines += ax.step(x, 100 * np.asarray(y), where="post", lw=1.8, color=canvas.SERIES[i % 8])
        labels.append(canvas.short(name) + (f" ({beyond} of {len(ms)} beyond)" if beyond else ""))
    ax.set_xlim(0, cut)
    ax.set_ylim(0, 101)
    ax.set_xlabel(label, color=canvas.INK)
    ax.set_ylabel("% of runs at or below", color=canvas.INK)
    canvas.legend(ax, lines, labels)
    return canvas.svg(figure, "cumulative distribution of wall latencies")


def histograms(rows: Sequence[tuple[str, Sequence[int]]], *, label: str = "wall time of a run in ms") -> str:
    """How often each latency (ns) came, one below the other on one axis, with median and p99 where there are enough."""
    import numpy as np

    figure, found = canvas.panels(0.75 + 1.4 * len(rows), len(rows))
    cut = far(rows)
    for i, (name, ns) in enumerate(rows):
        ax = found[i]
        ms = np.asarray(ns, float) / 1e6
        counts, edges = np.histogram(ms[ms <= cut], bins=60, range=(0, cut))
        ax.stairs(100 * counts / len(ms), edges, fill=True, color=canvas.SERIES[i % 8], alpha=0.75)
        median = float(np.median(ms))
        ax.axvline(median, color=canvas.INK, lw=1.1)
        marks = f"median {median:.3g} ms"
        if len(ms) >= 299:
            tail = float(np.quantile(ms, 0.99))
            marks += f", p99 {tail:.3g} ms"
            if tail <= cut:
                ax.axvline(tail, color=canvas.INK, lw=1.1, ls=(0, (2, 2)))
        beyond = int(np.sum(ms > cut))
        marks += f", {beyond} beyond" if beyond else ""
        ax.set_title(f"{canvas.short(name)}\n{marks}", loc="left", fontsize=10, color=canvas.INK)
        ax.set_ylabel("% of runs", color=canvas.INK)
        ax.tick_params(labelbottom=i == len(rows) - 1)
    last = found[-1]
    last.set_xlim(0, cut)
    last.set_xlabel(label, color=canvas.INK)
    return canvas.svg(figure, "histogram of wall latencies")


def far(rows: Sequence[tuple[str, Sequence[int]]]) -> float:
    """The end of the axis in ms: three times the largest median, or less where no run is beyond."""
    import numpy as np

    cut = 3 * max(float(np.median(ns)) for _, ns in rows)
    return float(min(cut, 1.03 * max(float(np.max(ns)) for _, ns in rows))) / 1e6
