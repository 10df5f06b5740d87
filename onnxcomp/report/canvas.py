"""What all pictures share: size, ink, colours that a colour-blind reader tells apart, SVG for a page.

A picture is drawn as wide as a telephone shows it, so that its letters stay letters there; on a
wide screen it is one column of two.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

from onnxcomp.errors import UnsupportedError

#: inches; the page scales a picture to its column
WIDTH = 4.4

INK, SOFT, GRID = "#1d2433", "#5b6577", "#e3e7ee"

#: of series, in this order (Okabe and Ito 2008, darkened where they stand as lines on white)
SERIES: tuple[str, ...] = ("#0072b2", "#d55e00", "#009e73", "#b65f96", "#8c6d00", "#3a9bd9", "#5b6577", "#7a3e9d")

MARKERS: tuple[str, ...] = ("o", "s", "^", "D", "v", "P", "X", "h")

_LONGEST_NAME = 40

#: an axis whose largest value is so many times the smallest is logarithmic
_FAR = 20


def pyplot() -> Any:
    """`matplotlib.pyplot`, without a display. Raises UnsupportedError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UnsupportedError("pictures need matplotlib", hint="pip install 'onnxcomp[report]'") from error
    mpl.use("Agg")
    # a fixed salt: the same results give the same bytes
    mpl.rcParams.update({"svg.hashsalt": "onnxcomp", "svg.fonttype": "none", "font.family": "sans-serif"})
    mpl.rcParams.update({"font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5})
    mpl.rcParams["text.parse_math"] = False  # names of models are not formulas
    import matplotlib.pyplot as plt

    return plt


def axes(height: float) -> tuple[Any, Any]:
    """(figure, axes) without a frame around."""
    figure, (found,) = panels(height, 1)
    return figure, found


def panels(height: float, count: int) -> tuple[Any, list[Any]]:
    """(figure, axes above each other that share the x axis)."""
    figure, found = pyplot().subplots(
        count, 1, figsize=(WIDTH, height), layout="constrained", sharex=True, squeeze=False
    )
    for one in found[:, 0]:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color(SOFT)
        one.tick_params(colors=INK, length=3, color=SOFT)
        one.grid(color=GRID, lw=0.8)
        one.set_axisbelow(True)
    return figure, list(found[:, 0])


def rows(ax: Any, names: Sequence[str], label: str) -> None:
    """Rows with their names above them, inside of the picture: beside it they would take half of its width."""
    for index, name in enumerate(names):
        ax.text(
            0.0, index - 0.27, short(name, 52), transform=ax.get_yaxis_transform(), va="bottom", ha="left",
            color=INK, fontsize=10, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
        )  # fmt: skip
    ax.set_yticks([])
    ax.set_ylim(len(names) - 0.5, -0.75)
    ax.set_xlabel(label, color=INK)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)


def legend(ax: Any, handles: Sequence[Any], labels: Sequence[str], *, columns: int = 1) -> None:
    """A legend above the axes, where no data is."""
    ax.legend(
        handles, [short(label) for label in labels], loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncol=columns,
        frameon=False, fontsize=9.5, labelcolor=INK, borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def span(axis: Any, values: Sequence[float], *, from_zero: bool = True) -> None:
    """Limits of an axis: from zero, or logarithmic where the largest value is far from the smallest.

    The numbers are plain: formulas are not drawn, since names could be some.
    """
    ax, which = axis.axes, axis.axis_name
    low, high = min(values), max(values)
    if not (low > 0 and high > _FAR * low):
        ax.margins(**{which: 0.1})
        if from_zero:
            ax.set(**{f"{which}lim": (0, 1.18 * high if high > 0 else 1)})
        return
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set(**{f"{which}scale": "log", f"{which}lim": (low / 1.6, 1.8 * high)})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def beside(ax: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Words beside points, above, below, right or left, where they cover no point and no other word.

    Args:
        ax: axes with their final limits.
        points: (x, y, words, colour); words that find no place are left out, '' stands for none.
    """
    ax.figure.canvas.draw()  # where things are is known only then
    scale = 72 / ax.figure.dpi
    places = [tuple(scale * v for v in ax.transData.transform((x, y))) for x, y, _, _ in points]
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in places]
    for (x, y, words, colour), (px, py) in zip(points, places, strict=True):
        wide, high = 4.9 * len(words), 9.0
        for dx, dy in ((0, 11), (0, -11), (wide / 2 + 7, 0), (-wide / 2 - 7, 0), (wide / 2 + 5, 8), (wide / 2 + 5, -8)):
            box = (px + dx - wide / 2, py + dy - high / 2, px + dx + wide / 2, py + dy + high / 2)
            if words and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                ax.annotate(
                    words, (x, y), xytext=(dx, dy), textcoords="offset points", ha="center", va="center", fontsize=8.5,
                    color=colour,
                )  # fmt: skip
                break


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """The name, its middle left out where it is long."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def svg(figure: Any, description: str) -> str:
    """The picture as inline SVG; `description` is for those who do not see it."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the font of the name, if ours has not
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot().close(figure)
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body, count=2)
    alt = description.replace("&", "and").replace("<", " ").replace('"', "'")
    return body.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)
