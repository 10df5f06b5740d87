"""A model under settings of its own, and the comparison of several: model X with S against model Y with T."""

from __future__ import annotations

import dataclasses
import statistics as plain
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp.bench import compare as comparing
from onnxcomp.bench import runner, statistics
from onnxcomp.bench.clock import Clock
from onnxcomp.bench.feeds import shape_numbers
from onnxcomp.bench.runner import Run
from onnxcomp.runtime import Session, SessionSettings, open_session

#: runs of a trial that do not count, and those that do
_WARM, _TRIAL = 3, 5

Arrays = Sequence[Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A model, and how its sessions run.

    Attributes:
        name: label.
        path: an `.onnx` file.
        settings: session options.
        provider: short name.
        bind: use IO binding; None: on every provider but the CPU.
    """

    name: str
    path: Path
    settings: SessionSettings = dataclasses.field(default_factory=SessionSettings)
    provider: str = "cpu"
    bind: bool | None = None

    @property
    def one_thread(self) -> bool:
        """Whether the calling thread does all the work, so that its CPU time says what a run costs."""
        return self.provider == "cpu" and self.settings.threads == 1

    def open(self) -> Session:
        """A fresh session."""
        return open_session(self.path, provider=self.provider, settings=self.settings)

    def calls(self, feeds: Arrays) -> list[Run]:
        """One call per set of feeds, in a fresh session."""
        return runner.runs(self.open(), feeds, bind=self.bind)


def clock_of(arms: Sequence[Arm]) -> Clock:
    """One clock for all: the thread's CPU time where no arm has more than one thread, else the wall decides."""
    return Clock(per_process=not all(arm.one_thread for arm in arms))


def compare_arms(
    arms: Sequence[Arm],
    feeds: Arrays,
    *,
    seconds: float,
    seed: int,
    delta: float = statistics.DELTA,
    progress: Callable[[float], None] | None = None,
) -> comparing.Comparison:
    """The first arm against each of the others: interleaved rounds of fresh sessions beside an A/A control.

    Threads of one arm that still spin when another's turn comes take its cores: arms with several threads
    should all have the same spinning, or the verdict is to the spinning one's advantage.

    Args:
        arms: two or more, whose models take the same inputs; the reference first.
        feeds: arrays by input name, one dictionary per run.
        seconds: time budget; the first eight rounds are made in any case.
        seed: of all random orders.
        delta: a smaller relative difference is none.
        progress: called with the share that is done.
    """
    clock = clock_of(arms)
    begun = time.monotonic()
    trials = [_trial(arm, feeds) for arm in arms]
    shapes = shape_numbers(feeds)
    left = max(seconds - (time.monotonic() - begun), seconds / 2)
    opening, running = zip(*trials, strict=True)
    return comparing.compare(
        [arm.name for arm in arms],
        [_opener(arm, feeds) for arm in arms],
        clock=clock,
        plan=comparing.plan([*running, running[0]], [*opening, opening[0]], left, shapes=len(set(shapes))),
        seconds=left,
        seed=seed,
        delta=delta,
        shapes=shapes,
        progress=progress,
    )


def _opener(arm: Arm, feeds: Arrays) -> comparing.Opener:
    return lambda: arm.calls(feeds)


def _trial(arm: Arm, feeds: Arrays) -> tuple[float, float]:
    """Seconds of opening a session, and of a typical run."""
    start = time.perf_counter()
    calls = arm.calls(feeds)
    opened = time.perf_counter()
    took = []
    for turn in range(_WARM + _TRIAL):
        begun = time.perf_counter()
        calls[turn % len(calls)]()
        took.append(time.perf_counter() - begun)
    return opened - start, plain.median(took[_WARM:])
