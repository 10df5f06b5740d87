"""Rounds in which every arm gives one number of its own: how often faster than the first, beside a control."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onnxcomp.bench import statistics


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
        control = np.log(np.asarray(self.values[0]) / np.asarray(self.control))
        return tuple(
            statistics.decide(
                self._logs(index),
                control,
                delta=self.delta,
                looks=(len(self.control),),
                candidates=len(self.names) - 1,
            )
            for index in range(1, len(self.names))
        )

    def to_json(self) -> list[dict[str, Any]]:
        """One object per candidate, with the keys of every comparison."""
        return [
            {
                "candidate": name,
                "reference": self.names[0],
                **decision.to_json(),
                "delta": self.delta,
                "clock": "wall",
                "what": self.what,
                "rounds": len(self.control),
                "between_round_sd": float(self._logs(index).std(ddof=1)),
                "round_ratios": [float(r) for r in np.exp(self._logs(index))],
                "seed": self.seed,
                "notes": [],
            }
            for index, (name, decision) in enumerate(zip(self.names[1:], self.decisions, strict=True), 1)
        ]

    def contention(self) -> None:
        """Not known: the numbers are wall times."""
        return

    def samples_json(self) -> dict[str, Any]:
        """What the rounds measured, per arm."""
        return {"arms": list(self.names), "values": [list(v) for v in self.values], "control": list(self.control)}

    def _logs(self, index: int) -> np.ndarray:
        found: np.ndarray = np.log(np.asarray(self.values[0]) / np.asarray(self.values[index]))
        return found
