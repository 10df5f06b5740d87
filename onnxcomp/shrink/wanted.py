"""What the user wants: the budget, what is minimized, and the limits."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxcomp.errors import UsageError, nearest
from onnxcomp.shrink.outcome import Outcome

OBJECTIVES = ("latency", "size", "cost")
GATES = ("upper", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a search is for.

    Attributes:
        max_drop: what the metric may lose, in its own unit.
        minimize: 'latency', 'size' or 'cost': of a million requests, one thread per core, at the highest rate at
            which `slo_p99_ms` holds. While candidates are tried, their speed stands for it.
        gate: 'upper': the upper end of the drop's interval meets the budget; 'mean': the drop itself does.
        batch: samples in one run.
        threads: ORT's intra-op threads of the final comparison.
        provider: where it runs.
        max_bytes: largest file; None: any.
        min_speedup: least speed, by that of the input; None: any.
        slo_p99_ms: 99 of 100 requests are answered within so many ms, waiting included ('cost').
        price_per_hour: of this machine ('cost').
    """

    max_drop: float
    minimize: str = "latency"
    gate: str = "upper"
    batch: int = 1
    threads: int = 1
    provider: str = "cpu"
    max_bytes: int | None = None
    min_speedup: float | None = None
    slo_p99_ms: float | None = None
    price_per_hour: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (("minimize", self.minimize, OBJECTIVES), ("gate", self.gate, GATES)):
            if value not in known:
                hint = nearest(value, known) or f"there is: {', '.join(known)}"
                raise UsageError(f"unknown {name} '{value}'", where=f"--{name}", hint=hint)
        if not self.max_drop >= 0:
            raise UsageError("the budget must not be negative", where=f"max_drop={self.max_drop}")
        if (self.minimize == "cost") != (self.slo_p99_ms is not None):
            raise UsageError(
                "the cost of requests needs an objective for p99, and nothing else does",
                where="--slo-p99",
                hint="--minimize cost --slo-p99 MS",
            )
        if self.batch < 1 or self.threads < 0:
            raise UsageError("a batch is 1 or more, threads are 0 or more", where="--batch, --threads")

    def better(self, outcome: Outcome) -> float:
        """What counts, of an outcome; higher is better."""
        if self.minimize == "size":
            return -float(outcome.bytes)
        return 0.0 if outcome.speed is None else outcome.speed.value

    def holds(self, outcome: Outcome) -> bool:
        """Whether the drop is within the budget, on the samples that choose."""
        return outcome.drop is not None and self.within(outcome.drop.value, outcome.drop.high)

    def within(self, drop: float, high: float) -> bool:
        """Whether a drop meets the budget."""
        return (high if self.gate == "upper" else drop) <= self.max_drop

    def allowed(self, outcome: Outcome) -> str | None:
        """Why an outcome may not win, whatever else; None where it may."""
        if outcome.reason is not None:
            return outcome.reason
        if outcome.drop is None or not self.holds(outcome):
            return f"over the budget of {self.max_drop:g}: {_drop(outcome)}"
        if self.max_bytes is not None and outcome.bytes > self.max_bytes:
            return f"{outcome.bytes} bytes, {self.max_bytes} are allowed"
        if self.min_speedup is not None and outcome.speed is not None and outcome.speed.high < self.min_speedup:
            return f"{outcome.speed.value:.2f} times as fast, {self.min_speedup:g} times is asked for"
        return None

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def _drop(outcome: Outcome) -> str:
    drop = outcome.drop
    return "no drop is known" if drop is None else f"a drop of {drop.value:.4g} [{drop.low:.4g}, {drop.high:.4g}]"
