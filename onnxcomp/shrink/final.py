"""The last two steps: the best few are timed against the input beside a control; one meets the test samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxcomp.evaluate.intervals import CONFIDENCE, Interval
from onnxcomp.evaluate.score import Score
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.wanted import Wanted

#: how many are timed, and how many of them may meet the test samples, one after the other
FINALISTS = 3

#: what is smaller or faster by less than this is the input over again
_SMALLER, _FASTER = 0.995, 1.02


@dataclasses.dataclass(frozen=True)
class Timed:
    """A finalist after the comparison.

    Attributes:
        outcome: what it is.
        speedup: with the interval over rounds.
        verdict: faster, slower, equivalent or undecided.
        cost: of a million requests; None where it was not asked for, or where the objective for p99 cannot be held.
    """

    outcome: Outcome
    speedup: Interval
    verdict: str
    cost: Interval | None = None


@dataclasses.dataclass(frozen=True)
class Tested:
    """A finalist on the samples that chose nothing.

    Attributes:
        timed: the finalist.
        score: with the drop's interval, wide enough for all tests that may be made.
        met: whether the budget holds.
    """

    timed: Timed
    score: Score
    drop: Interval
    met: bool

    @property
    def path(self) -> str:
        """Of its file."""
        assert self.timed.outcome.path is not None
        return self.timed.outcome.path


def finalists(outcomes: Sequence[Outcome], wanted: Wanted, input_bytes: int) -> list[Outcome]:
    """The best few that may win, best first; one file each, none that is neither smaller nor faster."""
    fit: list[Outcome] = []
    for one in sorted(outcomes, key=wanted.better, reverse=True):
        useful = one.bytes < _SMALLER * input_bytes or (one.speed is not None and one.speed.low > _FASTER)
        if wanted.allowed(one) is None and useful and one.sha256 not in {other.sha256 for other in fit}:
            fit.append(one)
    return fit[:FINALISTS]


def front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other beats in drop, bytes and speed at once, fastest first."""

    def figures(one: Outcome) -> tuple[float, float, float]:
        assert one.drop is not None
        assert one.speed is not None
        return one.drop.value, float(one.bytes), -one.speed.value

    made = [one for one in outcomes if one.made and one.drop is not None and one.speed is not None]
    kept = [
        one
        for one in made
        if not any(
            figures(other) != figures(one) and all(a <= b for a, b in zip(figures(other), figures(one), strict=True))
            for other in made
        )
    ]
    return sorted(kept, key=lambda one: figures(one)[2])


def compare(
    source: Path, chosen: Sequence[Outcome], wanted: Wanted, *, data: Path, seconds: float, seed: int
) -> tuple[list[Timed], dict[str, Any]]:
    """Time the finalists against the input; the whole benchmark beside it, without samples."""
    from onnxcomp.bench import bench

    result = bench(
        [source, *(str(one.path) for one in chosen)],
        data=str(data),
        batch=wanted.batch,
        threads=wanted.threads,
        provider=wanted.provider,
        seconds=seconds,
        seed=seed,
    ).to_json(samples=False)
    rows = {entry["candidate"]: entry for entry in result["comparison"]}
    timed = []
    for one in chosen:
        row = rows[one.path]
        speedup = Interval(**{name: row["speedup"][name] for name in ("value", "low", "high")})
        timed.append(Timed(one, speedup, row["verdict"]))
    return timed, result


def price(
    source: Path, timed: Sequence[Timed], wanted: Wanted, *, data: Path, seconds: float, seed: int
) -> tuple[Interval | None, list[Timed]]:
    """What a million requests cost with the input, and with each finalist, on the same arrivals."""
    from onnxcomp.plan.cost import cost

    assert wanted.slo_p99_ms is not None
    found: list[Interval | None] = []
    for path in (source, *(Path(str(one.outcome.path)) for one in timed)):
        cost_of = cost(
            path,
            slo_p99_ms=wanted.slo_p99_ms,
            price_per_hour=wanted.price_per_hour,
            data=data,
            seconds=seconds / (1 + len(timed)),
            seed=seed,
        )
        per = None if cost_of is None else cost_of.per_million
        found.append(None if per is None else Interval(per.value, per.low, per.high))
    own, *others = found
    return own, [dataclasses.replace(one, cost=each) for one, each in zip(timed, others, strict=True)]


def ranked(timed: Sequence[Timed], wanted: Wanted, own_cost: Interval | None = None) -> list[Timed]:
    """In the order in which they meet the test samples: what is surely faster, or cheaper, than the input."""
    if wanted.minimize == "cost":
        most = math.inf if own_cost is None else own_cost.low
        cheaper = [(one.cost.high, one) for one in timed if one.cost is not None and one.cost.high < most]
        return [one for _, one in sorted(cheaper, key=lambda pair: pair[0])]
    if wanted.minimize == "size":
        return sorted(timed, key=lambda one: one.outcome.bytes)
    able = [one for one in timed if one.verdict == "faster"]
    if wanted.min_speedup is not None:
        able = [one for one in able if one.speedup.low >= wanted.min_speedup]
    return sorted(able, key=lambda one: one.speedup.low, reverse=True)


def test(
    order: Sequence[Timed],
    wanted: Wanted,
    judge: Callable[[Path, float], Score],
) -> list[Tested]:
    """Judge one after the other until one meets the budget.

    A sample that says no to one and yes to the next has begun to choose. That is paid for: the interval of each is as
    wide as it takes for all of them together to hold with 95 % (Bonferroni).
    """
    found: list[Tested] = []
    for timed in order:
        assert timed.outcome.path is not None
        score = judge(Path(timed.outcome.path), 1 - (1 - CONFIDENCE) / max(len(order), 1))
        assert score.drop is not None
        drop = score.drop
        if not score.higher_is_better:
            drop = Interval(-drop.value, -drop.high, -drop.low)
        found.append(Tested(timed, score, drop, wanted.within(drop.value, drop.high)))
        if found[-1].met:
            break
    return found
