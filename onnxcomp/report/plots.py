"""Pictures as inline SVG: figures with intervals, never bare bars of noisy numbers."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcomp.errors import UnsupportedError
from onnxcomp.report import text

Json = Mapping[str, Any]

COLOURS = {"faster": "#1a7f37", "slower": "#b42318", "equivalent": "#175cd3", "undecided": "#b54708"}
_INK, _SOFT, _ACCENT = "#1d2433", "#8a94a6", "#3d5afe"


def intervals(
    rows: Sequence[tuple[str, Json]], *, label: str, scale: float = 1.0, colours: Sequence[str] | None = None,
    line: float | None = None, band: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """One dot with its 95 % interval per row.

    Args:
        rows: (name, {value, low, high}).
        label: of the axis, with the unit.
        scale: factor on the figures (100 for percent).
        colours: one per row.
        line: where a reference line stands.
        band: range of values that the gate allows.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    if band is not None:
        axes.axvspan(*band, color="#1a7f37", alpha=0.08, lw=0)
    if line is not None:
        axes.axvline(line, color=_SOFT, lw=1, ls=(0, (4, 3)))
    for i, (_, found) in enumerate(rows):
        value, low, high = (scale * found[k] for k in ("value", "low", "high"))
        colour = colours[i] if colours else _ACCENT
        axes.plot([low, high], [i, i], color=colour, lw=2.2, solid_capstyle="round")
        axes.plot([value], [i], "o", color=colour, ms=6)
    _dress(axes, [name for name, _ in rows], label)
    return _svg(figure, f"{label}: " + ", ".join(f"{n} {scale * f['value']:.4g}" for n, f in rows))


def sizes(rows: Sequence[tuple[str, int]]) -> str:
    """File sizes as bars from zero, each with its figure."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    largest = max(size for _, size in rows)
    for i, (_, size) in enumerate(rows):
        axes.barh(i, size / 1e6, color=_ACCENT, height=0.5)
        axes.text((size + 0.015 * largest) / 1e6, i, text.size(size), va="center", fontsize=9, color=_INK)
    axes.set_xlim(0, 1.2 * largest / 1e6)
    _dress(axes, [name for name, _ in rows], "file size in MB")
    return _svg(figure, "file sizes: " + ", ".join(f"{n} {text.size(s)}" for n, s in rows))


def distributions(rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Cumulative distribution of wall latencies (ns); the tail beyond 3 medians is cut and counted."""
    import numpy as np

    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    lines: list[Any] = []
    labels: list[str] = []
    cut = 3 * max(float(np.median(ns)) for _, ns in rows) / 1e6
    for i, (name, ns) in enumerate(rows):
        ms = np.sort(np.asarray(ns, float)) / 1e6
        share = np.arange(1, len(ms) + 1) / len(ms)
        beyond = int(np.sum(ms > cut))
        label = name if not beyond else f"{name} ({beyond} of {len(ms)} beyond the axis)"
        keep = np.unique(np.linspace(0, len(ms) - 1, 400).astype(int))
        lines += axes.step(ms[keep], share[keep], where="post", lw=1.6, color=plt.cm.tab10(i))
        labels.append(label)
    axes.set_xlim(0, cut)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("wall latency in ms", color=_INK)
    axes.set_ylabel("share of runs", color=_INK)
    axes.grid(color="#e6e9ef", lw=0.8)
    axes.legend(lines, labels, frameon=False, fontsize=8, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(figure, "cumulative distribution of wall latencies")


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UnsupportedError("pictures need matplotlib", hint="pip install 'onnxcomp[report]'") from error
    mpl.use("Agg")
    # a fixed salt: the same results give the same bytes
    mpl.rcParams.update({"svg.hashsalt": "onnxcomp", "svg.fonttype": "none", "font.family": "sans-serif"})
    mpl.rcParams["text.parse_math"] = False  # names of models are not formulas
    import matplotlib.pyplot as plt

    return plt


def _dress(axes: Any, names: Sequence[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9, color=_INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label, fontsize=9, color=_INK)
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    axes.grid(axis="x", color="#e6e9ef", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _svg(figure: Any, description: str) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the font of the name, if ours has not
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body, count=2)
    alt = description.replace("&", "and").replace("<", " ").replace('"', "'")
    return body.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)
