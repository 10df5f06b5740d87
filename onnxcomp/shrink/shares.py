"""How the time is divided: what is left after the last steps is for candidates."""

from __future__ import annotations

import dataclasses

from onnxcomp.shrink.wanted import Wanted

#: share of the time, and bounds in seconds
_COMPARING = (0.12, 8.0, 90.0)
_SETTLING = (0.15, 20.0, 90.0)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Seconds of each step.

    Attributes:
        searching: until no candidate is begun or goes on.
        comparing: of the finalists with the input.
        settling: session settings, or the cost of requests; 0 where there is neither.
    """

    searching: float
    comparing: float
    settling: float

    @classmethod
    def of(cls, time_budget: float, wish: Wanted, *, tune: bool, testing: float) -> Shares:
        """Divide so many seconds; `testing` is what the finalists take on the test samples."""
        comparing = _bounded(time_budget, *_COMPARING)
        last = tunable(wish, tune=tune) or wish.minimize == "cost"
        settling = _bounded(time_budget, *_SETTLING) if last else 0.0
        return cls(time_budget - comparing - settling - testing, comparing, settling)


def tunable(wish: Wanted, *, tune: bool) -> bool:
    """Whether session settings are looked for."""
    return tune and wish.provider == "cpu" and wish.minimize == "latency"


def _bounded(time_budget: float, share: float, least: float, most: float) -> float:
    return min(max(share * time_budget, least), most)
