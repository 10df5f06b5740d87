"""Rounds in which every arm gives one number of its own: how often faster than the first, beside a control."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.bench import statistics


def judged(logs: Sequence[np.ndarray], control: Sequence[float], delta: float) -> tuple[statistics.Decision, ...]:
    """One decision per candidate, made once, at the end: its log(reference / candidate) per round beside a control."""
    return tuple(
        statistics.decide(one, control, delta=delta, looks=(len(control),), candidates=len(logs)) for one in logs
    )


def entries(
    names: Sequence[str],
    logs: Sequence[np.ndarray],
    decisions: Sequence[statistics.Decision],
    **more: Any,
) -> list[dict[str, Any]]:
    """One object per candidate, with the keys of every comparison; `more` stands in each."""
    return [
        {
            "candidate": name,
            "reference": names[0],
            **decision.to_json(),
            **more,
            "rounds": len(one),
            "between_round_sd": float(one.std(ddof=1)),
            "round_ratios": [float(r) for r in np.exp(one)],
            "notes": [],
        }
        for name, one, decision in zip(names[1:], logs, decisions, strict=True)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired:
    """Candidates against the first arm, judged once, at the end.

    Attributes:
        names: labels, the reference first.
        values: per arm one number per round, of which less is better; two rounds or more.
        control: the same for a second set of the reference.
        what: of the numbers, with the unit.
        seed: of the random orders.
        delta: practical threshold.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    control: tuple[float, ...]
    what: str
    seed: int
    delta: float

    @property
    def decisions(self) -> tuple[statistics.Decision, ...]:
        """One per candidate."""
        return judged(self._logs, np.log(np.asarray(self.values[0]) / np.asarray(self.control)), self.delta)

    def to_json(self) -> list[dict[str, Any]]:
        """See `entries`."""
        about = {"delta": self.delta, "clock": "wall", "what": self.what, "seed": self.seed}
        return entries(self.names, self._logs, self.decisions, **about)

    def contention(self) -> None:
        """Not known: the numbers are wall times."""
        return

    def samples_json(self) -> dict[str, Any]:
        """What the rounds measured, per arm."""
        return {"arms": list(self.names), "values": [list(v) for v in self.values], "control": list(self.control)}

    @property
    def _logs(self) -> list[np.ndarray]:
        return [np.log(np.asarray(self.values[0]) / np.asarray(one)) for one in self.values[1:]]
