"""Rounds of fresh workers: ratios between the ways to serve a model, one number per round."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcomp.bench import statistics
from onnxcomp.bench.paired import entries, judged
from onnxcomp.bench.turn import Turn, Variant

#: memory that is compared
_SIZES = ("pss_bytes", "uss_bytes", "anonymous_bytes", "peak_bytes")


@dataclasses.dataclass(frozen=True)
class Contest:
    """N workers of one model in other ways than as plain processes, against plain processes.

    The rounds are as many as the time allows, whatever they show, and judged once, at the end.

    Attributes:
        names: labels; the plain processes first.
        turns: per name, one per round.
        control: log(plain processes / a second set of them) per round, of the first model.
        clock: the deciding clock: 'thread' (CPU time of a run) or 'wall'.
        seed: of the random orders.
        delta: practical threshold.
    """

    names: tuple[str, ...]
    turns: tuple[tuple[Turn, ...], ...]
    control: tuple[float, ...]
    clock: str
    seed: int
    delta: float

    @property
    def decisions(self) -> tuple[statistics.Decision, ...]:
        """One per candidate."""
        return judged(self._logs, self.control, self.delta)

    def to_json(self) -> list[dict[str, Any]]:
        """See `entries`."""
        about = {"delta": self.delta, "clock": self.clock, "seed": self.seed}
        return entries(self.names, self._logs, self.decisions, **about)

    def contention(self) -> None:
        """Not known: workers may wait for each other."""
        return

    def samples_json(self) -> dict[str, Any]:
        """What the rounds measured, per arm."""
        return {
            "arms": list(self.names),
            "turns": [[turn.to_json() for turn in turns] for turns in self.turns],
            "control_ratios": [float(r) for r in np.exp(self.control)],
        }

    @property
    def _logs(self) -> list[np.ndarray]:
        return [logs(one, self.turns[0], deciding(self.clock)) for one in self.turns[1:]]


def deciding(clock: str) -> Callable[[Turn], float]:
    """What of a turn is compared under this clock."""
    return (lambda turn: turn.cpu_ns) if clock == "thread" else (lambda turn: turn.wall_ns_median)


def logs(turns: Sequence[Turn], others: Sequence[Turn], pick: Callable[[Turn], float]) -> np.ndarray:
    """log(other / this), one per round."""
    return np.asarray([np.log(pick(b) / pick(a)) for a, b in zip(turns, others, strict=True)])


@dataclasses.dataclass(frozen=True)
class Ratios:
    """A variant against another: its number by the other's, with the interval over rounds.

    Attributes:
        model: the other's model.
        variant: the other.
        figures: 'latency_cpu', 'latency_wall', 'throughput', and the kinds of memory.
    """

    model: str
    variant: Variant
    figures: dict[str, statistics.Estimate | None]

    def to_json(self) -> dict[str, Any]:
        """`{model, kind, workers, latency_cpu: {value, low, high}, ...}`; null where memory is not readable."""
        return {
            "model": self.model,
            "kind": self.variant.kind,
            "workers": self.variant.workers,
            **{name: None if found is None else found.to_json() for name, found in self.figures.items()},
        }


def ratios(turns: Sequence[Turn], others: Sequence[Turn], *, model: str, variant: Variant) -> Ratios:
    """Compare the turns of a variant with those of `variant`, round by round."""

    def estimate(pick: Callable[[Turn], float]) -> statistics.Estimate:
        return statistics.ratio_interval(-logs(turns, others, pick))

    figures: dict[str, statistics.Estimate | None] = {
        "latency_cpu": estimate(lambda t: t.cpu_ns_per_run),
        "latency_wall": estimate(lambda t: t.wall_ns_median),
        "throughput": estimate(lambda t: t.runs_per_second),
    }
    for size in _SIZES:
        readable = all(getattr(t.memory["ran"], size) for t in (*turns, *others))
        figures[size.removesuffix("_bytes")] = estimate(functools.partial(_held, size)) if readable else None
    return Ratios(model, variant, figures)


def _held(size: str, turn: Turn) -> float:
    return float(getattr(turn.memory["ran"], size))
