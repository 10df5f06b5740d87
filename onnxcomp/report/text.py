"""Numbers as people read them: units, intervals, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def size(count: float) -> str:
    """Bytes in thousands: '3.16 MB'."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def number(count: float | None) -> str:
    """A count: '784,223'; unknown as a dash."""
    return "-" if count is None else f"{count:,.0f}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as percent: '97.40 %'."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def score(value: float | None, metric: str) -> str:
    """A metric's value in its unit: fractions as percent."""
    if value is None:
        return "-"
    return percent(value) if metric in ("accuracy", "top5", "f1") else f"{value:.4g}"


def score_interval(found: Mapping[str, Any] | None, metric: str) -> str:
    """'97.40 % [93.51, 98.99]'."""
    if found is None:
        return "-"
    if metric in ("accuracy", "top5", "f1"):
        return f"{percent(found['value'])} [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
    return f"{found['value']:.4g} [{found['low']:.4g}, {found['high']:.4g}]"


def ratio(found: Mapping[str, Any]) -> str:
    """A speedup with its interval: '1.42x [1.39, 1.45]'."""
    return f"{found['value']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"


def decibel(value: float | None) -> str:
    """SQNR; None in JSON stands for equal outputs."""
    return "equal" if value is None else f"{value:.1f} dB"


def latency(found: Mapping[str, Any]) -> str:
    """A percentile in ms with its interval, or why there is none."""
    if not found["estimable"] or found["value"] is None:
        return f"not estimable (needs {found['needed']} runs)"
    high = "∞" if found["high"] is None else f"{found['high']:#.3g}"
    return f"{found['value']:#.3g} [{found['low']:#.3g}, {high}]"
