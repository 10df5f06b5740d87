"""Speed of many models in one interleaved run on one thread, beside float32 as given and at its best settings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.bench import compare, runner
from onnxcomp.bench.clock import clock_for
from onnxcomp.bench.statistics import Estimate, ratio_interval
from onnxcomp.runtime import SessionSettings, open_session

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model in one kind of session.

    Attributes:
        baseline: float32, so that it may be the best one.
    """

    name: str
    path: Path
    settings: SessionSettings = dataclasses.field(default_factory=SessionSettings)
    baseline: bool = False

    def open(self, feeds: Feeds) -> Sequence[runner.Run]:
        """The calls of a fresh session."""
        return runner.runs(open_session(self.path, settings=self.settings), feeds)


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast every arm is at one shape; CPU time, higher is faster.

    Attributes:
        shape: as the table's head says it.
        given: by arm: CPU time of float32 as given / the arm's.
        best: by arm: CPU time of the fastest float32 arm / the arm's. The fastest is chosen on these very rounds,
            which favours float32 a little.
        best_name: the fastest float32 arm.
        rounds: of fresh sessions.
        aa: a second float32 as given / the first: 1 but for noise.
        contention: wall over CPU time; 1 on an idle machine.
    """

    shape: str
    given: Mapping[str, Estimate]
    best: Mapping[str, Estimate]
    best_name: str
    rounds: int
    aa: Estimate
    contention: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def measure(shape: str, arms: Sequence[Arm], feeds: Feeds, *, seconds: float, seed: int = 0) -> Speed:
    """Run all arms in interleaved rounds of fresh sessions; the first is float32 as given.

    Args:
        shape: a name.
        arms: baselines and candidates.
        feeds: inputs in turn.
        seconds: time budget; the first eight rounds are made in any case.
        seed: of all random orders.
    """
    clock = clock_for("cpu", 1)
    opening, running = zip(*(_cost(arm, feeds) for arm in (*arms, arms[0])), strict=True)
    plan = compare.plan(running, opening, seconds)
    openers = [lambda arm=arm: arm.open(feeds) for arm in arms]
    names = [arm.name for arm in arms]
    done = compare.compare(names, openers, clock=clock, plan=plan, seconds=seconds, seed=seed)
    # one entry per round each; the last arm is the clone of the first
    logs = [compare.log_ratios(done.rounds, index, done.clock, done.overhead) for index in range(len(arms) + 1)]
    best = max((i for i, arm in enumerate(arms) if arm.baseline), key=lambda i: float(logs[i].mean()))
    return Speed(
        shape,
        {arm.name: ratio_interval(own) for arm, own in zip(arms, logs, strict=False)},
        {arm.name: ratio_interval(own - logs[best]) for arm, own in zip(arms, logs, strict=False)},
        arms[best].name,
        len(done.rounds),
        ratio_interval(logs[-1]),
        done.contention(),
    )


def _cost(arm: Arm, feeds: Feeds) -> tuple[float, float]:
    """Seconds for opening a session, and for its second run."""
    start = time.perf_counter()
    calls = arm.open(feeds)
    opened = time.perf_counter()
    calls[0]()
    warm = time.perf_counter()
    calls[0]()
    return opened - start, time.perf_counter() - warm
