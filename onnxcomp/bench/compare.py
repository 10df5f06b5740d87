"""Is the candidate faster than the reference? Rounds of fresh sessions, interleaved, with an A/A control.

Two sessions of the same bytes in one process differ by two or three percent for as long as they
live, so more runs of the same pair only make a wrong answer look certain. Therefore:

1. each round opens fresh sessions of every model, and of a clone of the reference;
2. the order of opening, of warming up and of running within each tuple is drawn at random;
3. a round gives one number per candidate, and the interval is taken over rounds, never over runs;
4. rounds are judged at fixed looks, with an error rate that holds over all of them;
5. where the clone differs from its original, there is no verdict.

The clone serves twice: the reference of every ratio is the mean of both, two sessions that differ by
luck. With the median of all averages of two runs in place of the plain median, rounds differ by a
quarter less (2.9 to 2.2 % on busy cores), which is worth three quarters more rounds.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.bench import statistics
from onnxcomp.bench.clock import Clock, Tick, quiet
from onnxcomp.bench.runner import Run

#: how an arm is opened anew: the calls of a fresh session, and whatever must live as long
Opener = Callable[[], Sequence[Run]]

#: tuples before the measured ones, where there is time
_WARM_UP = 5

_CLONE = "clone of the reference"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much one round does.

    Attributes:
        runs: interleaved tuples per round.
        warm_up: tuples before them that do not count; one of each shape that is measured is among them.
        notes: where the time budget forced less than the usual.
    """

    runs: int
    warm_up: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of fresh sessions.

    Attributes:
        created: arm indices in the order of opening.
        wall_ns, cpu_ns: per arm, one entry per tuple; arm 0 is the reference, the last its clone.
    """

    created: tuple[int, ...]
    wall_ns: tuple[tuple[int, ...], ...]
    cpu_ns: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """`{created, wall_ns, cpu_ns}`; the samples are lists per arm."""
        return {
            "created": list(self.created),
            "wall_ns": [list(a) for a in self.wall_ns],
            "cpu_ns": [list(a) for a in self.cpu_ns],
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Every candidate against the reference.

    Attributes:
        names: the models, reference first.
        decisions: one per candidate.
        rounds: what was measured.
        plan: see `Plan`.
        clock: the deciding clock: 'thread' (CPU time) or 'wall'.
        seed: of the random orders.
        delta: practical threshold.
        looks: round counts at which it was judged.
        overhead: what the clocks themselves cost; taken off before ratios are formed.
    """

    names: tuple[str, ...]
    decisions: tuple[statistics.Decision, ...]
    rounds: tuple[Round, ...]
    plan: Plan
    clock: str
    seed: int
    delta: float
    looks: tuple[int, ...]
    overhead: Tick

    def to_json(self) -> list[dict[str, Any]]:
        """One object per candidate; the rounds' samples are apart (`samples_json`)."""
        return [self._candidate(index) for index in range(1, len(self.names))]

    def samples_json(self) -> dict[str, Any]:
        """Every sample of every round, in integer nanoseconds."""
        return {"arms": [*self.names, _CLONE], "rounds": [r.to_json() for r in self.rounds]}

    def contention(self) -> float:
        """Wall time over CPU time of all runs."""
        wall = sum(sum(map(sum, r.wall_ns)) for r in self.rounds)
        return wall / max(sum(sum(map(sum, r.cpu_ns)) for r in self.rounds), 1)

    def _outliers(self, arm: int) -> int:
        """Of the clock that decides, round by round; all of them are in the ratios."""
        tables = [r.cpu_ns if self.clock == "thread" else r.wall_ns for r in self.rounds]
        return sum(statistics.outliers(table[arm]) for table in tables)

    def _candidate(self, index: int) -> dict[str, Any]:
        logs = log_ratios(self.rounds, index, self.clock, self.overhead)
        wall, paired = (
            statistics.ratio_interval(log_ratios(self.rounds, index, name, self.overhead)).to_json()
            for name in ("wall", "wall_median")
        )
        return {
            "candidate": self.names[index],
            "reference": self.names[0],
            **self.decisions[index - 1].to_json(),
            "delta": self.delta,
            "clock": self.clock,
            "wall_ratio": {"lower_quartile": wall, "paired_median": paired},
            "rounds": len(self.rounds),
            "looks": list(self.looks),
            "runs_per_round": self.plan.runs,
            "warm_up_per_round": self.plan.warm_up,
            "between_round_sd": float(logs.std(ddof=1)),
            "outliers": {"reference": self._outliers(0), "candidate": self._outliers(index)},
            "round_ratios": [float(r) for r in np.exp(logs)],
            "seed": self.seed,
            "notes": list(self.plan.notes),
        }


def plan(run_seconds: Sequence[float], open_seconds: Sequence[float], seconds: float, *, shapes: int = 1) -> Plan:
    """How many runs a round can afford.

    The furthest of the first three looks (20, 12, 8 rounds) that leaves ten runs a round: sessions
    differ more than runs do. Where none does, as many runs as the first look can have, three at
    least, even where that takes longer than `seconds`.

    Args:
        run_seconds: typical run of each arm, the clone included.
        open_seconds: opening a session of each arm, the clone included.
        seconds: time budget of the whole comparison.
        shapes: how many different shapes are fed; each is warmed up.
    """
    warm = max(_WARM_UP, shapes)
    tuple_seconds, opening = max(sum(run_seconds), 1e-9), sum(open_seconds)
    # fast models need more runs for the same certainty: 80 ms of work, in bounds
    usual = int(min(max(0.08 / max(tuple_seconds / len(run_seconds), 1e-9), 40), 200))
    for look in reversed(statistics.LOOKS[:3]):
        affordable = (seconds / look - opening) / tuple_seconds
        # a round warms the shapes that it measures
        runs = min(int(max(affordable - warm, affordable / 2)), usual)
        if runs >= 10:
            enough = look == statistics.LOOKS[2]
            notes = () if enough else (f"the time budget of {seconds:g} s is enough for about {look} rounds",)
            return Plan(runs, max(_WARM_UP, min(shapes, runs)), notes)
    first = statistics.LOOKS[0]
    affordable = (seconds / first - opening) / tuple_seconds
    warm = max(3 if affordable >= 8 else 1, min(shapes, int(affordable / 2)))
    runs = min(max(int(affordable - warm), 3), usual)
    short = [f"only {runs} runs a round: the time budget of {seconds:g} s allows no more"]
    expected = first * (opening + (warm + runs) * tuple_seconds)
    if expected > seconds:
        short.append(f"the first look needs {first} rounds, about {expected:.0f} s: more than the budget")
    return Plan(runs, warm, tuple(short))


def compare(
    names: Sequence[str],
    openers: Sequence[Opener],
    *,
    clock: Clock,
    plan: Plan,
    seconds: float,
    seed: int,
    delta: float = statistics.DELTA,
    looks: tuple[int, ...] = statistics.LOOKS,
    shapes: Sequence[int] = (),
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Measure rounds until every candidate has a verdict, the looks are over, or the time is.

    The first look is reached in any case; where the time ends between two looks, the rounds so far
    take the place of the next one.

    Args:
        names: the models, reference first.
        openers: opens a fresh session of each model.
        clock: the thread's CPU clock decides if it is one, else the wall.
        plan: what a round does.
        seconds: time budget.
        seed: of the random orders.
        delta: practical threshold.
        looks: round counts at which to judge.
        shapes: see `one_round`.
        progress: called with the share that is done.
    """
    generator = np.random.default_rng(seed)
    arms = [*openers, openers[0]]
    deciding = "wall" if clock.per_process else "thread"
    overhead = clock.overhead()
    rounds: list[Round] = []
    judged: list[int] = []
    decisions: list[statistics.Decision] = []
    start = time.monotonic()
    while len(rounds) < looks[-1]:
        rounds.append(one_round(arms, clock, plan, generator, shapes))
        elapsed = time.monotonic() - start
        over = elapsed * (1 + 1 / len(rounds)) > seconds and len(rounds) >= looks[0]
        if progress is not None:
            progress(min(max(len(rounds) / looks[-1], min(elapsed / seconds, len(rounds) / looks[0])), 1.0))
        if len(rounds) not in looks and not over:
            continue
        judged.append(len(rounds))
        control = log_ratios(rounds, len(arms) - 1, deciding, overhead)
        decisions = [
            statistics.decide(
                log_ratios(rounds, index, deciding, overhead),
                control,
                delta=delta,
                looks=looks,
                candidates=len(names) - 1,
            )
            for index in range(1, len(names))
        ]
        if over or all(d.verdict != "undecided" for d in decisions):
            break
    return Comparison(
        tuple(names), tuple(decisions), tuple(rounds), plan, deciding, seed, delta, tuple(judged), overhead
    )


def one_round(
    arms: Sequence[Opener], clock: Clock, plan: Plan, generator: np.random.Generator, shapes: Sequence[int] = ()
) -> Round:
    """Open every arm, warm up, and time interleaved tuples; every order is drawn anew.

    `shapes` has a number per feed, the same for feeds of the same shapes; () where all are of one shape.
    """
    created = [int(i) for i in generator.permutation(len(arms))]
    opened: Mapping[int, Sequence[Run]] = {index: arms[index]() for index in created}
    feeds = len(opened[0])
    offset = int(generator.integers(feeds))
    measured = [(offset + turn) % feeds for turn in range(min(plan.runs, feeds))]
    each = list({shapes[feed] if shapes else 0: feed for feed in reversed(measured)}.values())
    for turn in range(max(plan.warm_up, len(each))):
        for index in generator.permutation(len(arms)):
            opened[int(index)][each[turn] if turn < len(each) else measured[turn % len(measured)]]()
    wall = np.zeros((len(arms), plan.runs), dtype=np.int64)
    cpu = np.zeros_like(wall)
    with quiet():
        for turn in range(plan.runs):
            for index in generator.permutation(len(arms)):
                tick = clock.time(opened[int(index)][(offset + turn) % feeds])
                wall[index, turn], cpu[index, turn] = tick.wall_ns, tick.cpu_ns
    return Round(tuple(created), tuple(tuple(a) for a in wall.tolist()), tuple(tuple(a) for a in cpu.tolist()))


def log_ratios(rounds: Sequence[Round], arm: int, clock: str, overhead: Tick | None = None) -> np.ndarray:
    """log(reference / arm), one number per round.

    The reference is the geometric mean of arm 0 and of its clone, the last arm; for the clone, it is
    arm 0. `clock` 'thread' takes the centre of the paired CPU times, 'wall_median' that of the paired
    wall times, and 'wall' the ratio of the lower quartiles of the wall time: under load its spread is a
    third of the paired median's. The centre is the median of all averages of two (Hodges and Lehmann
    1963): as steady as the mean, and hardly moved by a few runs that took long.
    """
    overhead = overhead or Tick(0, 0)
    out = []
    for one in rounds:
        cost, table = (overhead.cpu_ns, one.cpu_ns) if clock == "thread" else (overhead.wall_ns, one.wall_ns)
        logs = np.log(np.maximum(np.asarray(table, dtype=np.float64) - cost, 1.0))
        sets = logs[[0]] if arm % len(logs) == len(logs) - 1 else logs[[0, -1]]
        if clock == "wall":
            out.append(float(np.quantile(sets, 0.25, axis=1).mean() - np.quantile(logs[arm], 0.25)))
        else:
            out.append(_centre(sets.mean(axis=0) - logs[arm]))
    return np.asarray(out)


def _centre(values: np.ndarray) -> float:
    first, second = _pairs(len(values))
    return float(np.median(values[first] + values[second])) / 2


@functools.cache
def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Each value with itself and with every later one."""
    first, second = np.triu_indices(count)
    return first, second
