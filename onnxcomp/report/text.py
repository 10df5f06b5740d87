"""Numbers as people read them: units, intervals, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: metrics that print as percent
FRACTIONS = ("accuracy", "top5", "f1", "agreement")


def size(count: float | None) -> str:
    """Bytes in thousands: '3.16 MB'; unknown as a dash."""
    if count is None:
        return "-"
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if abs(count) < 999.5:  # what rounds to 1000 belongs to the next unit
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


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
    return percent(value) if metric in FRACTIONS else f"{value:.4g}"


def score_interval(found: Mapping[str, Any] | None, metric: str) -> str:
    """'97.40 % [93.51, 98.99]'."""
    if found is None:
        return "-"
    if metric in FRACTIONS:
        return f"{percent(found['value'])} [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
    return f"{found['value']:.4g} [{found['low']:.4g}, {found['high']:.4g}]"


def ratio(found: Mapping[str, Any], digits: int = 2) -> str:
    """A speedup with its interval: '1.42x [1.39, 1.45]'."""
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}x [{low}, {high}]"


def decibel(found: Mapping[str, Any]) -> str:
    """SQNR of an output; None in JSON stands for equal outputs, and for noise that has no measure."""
    if found["sqnr_db"] is None:
        return "equal" if found["max_abs"] == 0 else "none"
    return f"{found['sqnr_db']:.1f} dB"


def latency(found: Mapping[str, Any]) -> str:
    """A percentile in ms with its interval, or why there is none."""
    if not found["estimable"] or found["value"] is None:
        return f"not estimable (needs {found['needed']} runs)"
    high = "∞" if found["high"] is None else _three(found["high"])
    return f"{_three(found['value'])} [{_three(found['low'])}, {high}]"


def _three(value: float) -> str:
    """Three significant digits, never an exponent: '0.0123', '1.20', '1,234'."""
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:,.{decimals}f}"
