"""Why there is no winner, in words and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxcomp.shrink.final import Tested, Timed
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.wanted import Wanted


def why(
    outcomes: Sequence[Outcome],
    chosen: Sequence[Outcome],
    timed: Sequence[Timed],
    tested: Sequence[Tested],
    wish: Wanted,
) -> str:
    """Why nothing has won, in words."""
    if not outcomes:
        return "the time was over before the first candidate was made"
    if not any(one.made for one in outcomes):
        return "no candidate could be made; the reasons stand with the rejected ones"
    if not chosen:
        return "no candidate is smaller or faster than the input and within the budget on the samples that choose"
    if not tested and wish.minimize == "cost":
        return "with no finalist requests are surely cheaper than with the input"
    if not tested:
        verdicts = ", ".join(f"{one.outcome.candidate.name}: {one.verdict}" for one in timed)
        return f"nothing is measurably faster than the input on this machine ({verdicts})"
    last = min(tested, key=lambda one: one.drop.high)
    return (
        f"none of {len(tested)} finalists holds the budget of {wish.max_drop:g} on the test samples; the nearest, "
        f"{last.timed.outcome.candidate.name}, loses {last.drop.value:.4g} [{last.drop.low:.4g}, {last.drop.high:.4g}]"
    )


def needed(tested: Sequence[Tested], wish: Wanted) -> int | None:
    """Samples at which the nearest finalist's upper end, shrinking with the square root, would meet the budget."""
    near = [one for one in tested if one.drop.value < wish.max_drop]
    if not near:
        return None
    last = min(near, key=lambda one: one.drop.high)
    half = last.drop.high - last.drop.value
    return math.ceil(last.score.samples * (half / (wish.max_drop - last.drop.value)) ** 2)
