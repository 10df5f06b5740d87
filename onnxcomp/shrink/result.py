"""What a search has found, and what it has looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp.evaluate.intervals import Interval
from onnxcomp.shrink.final import Tested
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.settle import Settled
from onnxcomp.shrink.wanted import Wanted


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """The best model within the budget, or the news that there is none.

    Attributes:
        baseline: the input: {path, sha256, bytes, score, cost}; the score on the test samples.
        wanted: the budget, and what is minimized.
        metric: that judges.
        samples: how many calibrated, chose and tested.
        best: what won; None where nothing beats the input within the budget.
        folder: where the winner's files are.
        settled: the winner and the input, each at its best settings; None where that was not looked for.
        tested: all that met the test samples, in order; the winner last.
        outcomes: all candidates.
        front: those that no other beats in drop, size and speed at once.
        left_out: (what, why): never tried.
        benchmark: the comparison of the finalists, without samples; None where nothing was compared.
        complete: whether everything was tried; False where the time was over before.
        why_none: why there is no winner; '' where there is one.
        undecided: whether noise alone stands between a finalist and its verdict.
        needed: test samples that would make the budget certain for the nearest finalist; None where they were enough.
        seconds: that it took.
    """

    baseline: Mapping[str, Any]
    wanted: Wanted
    metric: str
    samples: Mapping[str, int]
    best: Tested | None
    folder: Path
    settled: Settled | None
    tested: Sequence[Tested]
    outcomes: Sequence[Outcome]
    front: Sequence[Outcome]
    left_out: Sequence[tuple[str, str]]
    benchmark: Mapping[str, Any] | None
    complete: bool
    why_none: str
    undecided: bool
    needed: int | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp shrink --json`."""
        rejected = [
            {"recipe": one.candidate.name, "reason": reason}
            for one in self.outcomes
            if (reason := self.wanted.allowed(one)) is not None
        ]
        return {
            "baseline": dict(self.baseline),
            "wanted": self.wanted.to_json(),
            "metric": self.metric,
            "samples": dict(self.samples),
            "best": None if self.best is None else self._winner(self.best),
            "tested": [self._tested(one) for one in self.tested],
            "front": [self._row(one) for one in self.front],
            "tried": len(self.outcomes),
            "rejected": rejected,
            "left_out": [{"what": what, "reason": why} for what, why in self.left_out],
            "budget_met": self.best is not None,
            "why_none": self.why_none or None,
            "undecided": self.undecided,
            "samples_needed": self.needed,
            "complete": self.complete,
            "candidates": [one.to_json() for one in self.outcomes],
            "benchmark": None if self.benchmark is None else dict(self.benchmark),
            "seconds": round(self.seconds, 1),
        }

    def _winner(self, best: Tested) -> dict[str, Any]:
        return {
            "path": str(self.folder / "best.onnx"),
            "recipe": str(self.folder / "recipe.toml"),
            **self._tested(best),
            "settings": None if self.settled is None else self.settled.to_json(),
        }

    def _tested(self, one: Tested) -> dict[str, Any]:
        outcome = one.timed.outcome
        return {
            "name": outcome.candidate.name,
            "bytes": outcome.bytes,
            "sha256": outcome.sha256,
            "size_ratio": outcome.bytes / self.baseline["bytes"],
            "speedup": {**one.timed.speedup.to_json(), "verdict": one.timed.verdict},
            "cost_per_million": _json(one.timed.cost),
            "score": one.score.value.to_json(),
            "drop": one.drop.to_json(),
            "samples": one.score.samples,
            "met": one.met,
        }

    def _row(self, one: Outcome) -> dict[str, Any]:
        """A member of the front, by what chose."""
        return {
            "name": one.candidate.name,
            "bytes": one.bytes,
            "size_ratio": one.bytes / self.baseline["bytes"],
            "speedup": _json(one.speed),
            "drop": _json(one.drop),
            "score": _json(one.score),
        }


def _json(value: Interval | None) -> dict[str, float] | None:
    return None if value is None else value.to_json()
