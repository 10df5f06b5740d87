"""The accuracy budget as it is written on the command line: `0.005`, or `0.5%`."""

from __future__ import annotations

import math

from onnxcomp.errors import UsageError

#: metrics whose values lie in [0, 1]
_FRACTIONS = {"accuracy", "top5", "f1", "agreement", "cosine", "relative_error"}

#: a fraction's drop of this or more was meant as a percentage
_ABSURD = 0.3


def parse_drop(text: str, metric: str = "accuracy") -> float:
    """The largest drop allowed, in the metric's unit; '0.5%' are percentage points, 0.005 of a fraction.

    Raises UsageError for what is no number or negative, for percentages of a metric that is no fraction, and
    for a bare number that allows a fraction to drop by 0.3 or more.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"'{text}' is no allowed drop", where="max_drop", hint="for example 0.5% or 0.005")
    if percent:
        if metric not in _FRACTIONS and ":" not in metric:
            raise UsageError(
                f"{metric} is no fraction, so a drop in % says nothing",
                where="max_drop",
                hint="give a number in the metric's own unit",
            )
        return value / 100
    if metric in _FRACTIONS and value >= _ABSURD:
        raise UsageError(
            f"a drop of {value:g} of {metric} would be allowed, which lies between 0 and 1",
            where="max_drop",
            hint=f"for percentage points write {value:g}%",
        )
    return value
