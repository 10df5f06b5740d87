"""The picture of a search: how fast against how much is lost, the size of the file as the size of the point."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.report import canvas
from onnxcomp.report.canvas import GRID, INK, SERIES, SOFT

#: points^2 of the input; others by their share of its bytes, and never smaller than can be seen
_AREA, _SMALLEST = 700.0, 18.0

#: one candidate: name, speed, drop with its interval, share of the input's bytes, and what it is
Point = tuple[str, float, tuple[float, float, float], float, str]

_KINDS = {"winner": SERIES[2], "front": SERIES[0], "within": "#8fa3b8", "over": SERIES[1]}
_WORDS = {"winner": "the result", "front": "not beaten", "within": "within the budget", "over": "over the budget"}


def tradeoff(points: Sequence[Point], *, budget: float, unit: float, metric: str) -> str:
    """Speed against drop; the input is at 1 and 0.

    Args:
        points: candidates; the last of each is 'winner', 'front', 'within' or 'over'.
        budget: the drop that is allowed, in the metric's unit.
        unit: by which drops are multiplied: 100 for percentage points.
        metric: its name.
    """
    figure, ax = canvas.axes(3.6)
    allowed = budget * unit
    # what loses many times the budget would press everything else to a line: it stands at the edge
    edge = max(4 * allowed, 1e-9)
    ax.axhspan(-edge, allowed, color=SERIES[2], alpha=0.08, lw=0)
    ax.axhline(allowed, color=SERIES[2], lw=1.2, ls="--")
    ax.scatter([1.0], [0.0], s=_AREA, facecolor="none", edgecolor=INK, lw=1.2, zorder=2)
    ax.annotate("input", (1.0, 0.0), textcoords="offset points", xytext=(0, 16), ha="center", color=INK, fontsize=9.5)
    handles, labels = [], []
    for kind, colour in _KINDS.items():
        some = [point for point in points if point[4] == kind]
        if not some:
            continue
        drops = [min(point[2][0] * unit, edge) for point in some]
        for (_, speed, (_, low, high), *_), drop in zip(some, drops, strict=True):
            if drop < edge:
                ax.plot([speed, speed], [max(low * unit, -edge), min(high * unit, edge)], color=colour, lw=1, alpha=0.6)
        areas = [max(_AREA * point[3], _SMALLEST) for point in some]
        ax.scatter([p[1] for p in some], drops, s=areas, color=colour, alpha=0.75, edgecolor="white", lw=0.8, zorder=3)
        handles.append(ax.scatter([], [], s=60, color=colour, alpha=0.75))
        labels.append(_WORDS[kind])
    ax.set_xscale("log")
    speeds = [1.0, *(point[1] for point in points)]
    low, high = min(speeds) / 1.15, max(speeds) * 1.15
    ax.set_xlim(low, high)
    ax.set_xticks([tick for tick in _TICKS if low <= tick <= high])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ax.xaxis.set_minor_formatter(lambda _value, _: "")
    ax.tick_params(axis="x", which="minor", length=0)
    seen = [min(max(point[2][0] * unit, -edge), edge) for point in points]
    bottom = min([*seen, 0.0, *(max(p[2][1] * unit, -edge) for p in points)])
    ax.set_ylim(max([*seen, allowed]) * 1.15 + 0.1 * allowed, bottom - 0.15 * max(allowed, 1e-9))
    ax.set_xlabel("times as fast as the input, a quick look", color=INK)
    ax.set_ylabel(f"drop of {metric}" + (", points" if unit != 1 else "") + " (worse below)", color=INK)
    ax.spines["left"].set_color(SOFT)
    ax.grid(color=GRID, lw=0.8)
    canvas.legend(ax, handles, labels, columns=2)
    best = next((point for point in points if point[4] == "winner"), None)
    said = f"; the result: {best[0]}, {best[1]:.2f} times as fast" if best else ""
    return canvas.svg(figure, f"speed against drop of {len(points)} candidates{said}")


_TICKS = [round(base * 10.0**power, 6) for power in range(-2, 3) for base in (1, 1.5, 2, 3, 5, 7)]
