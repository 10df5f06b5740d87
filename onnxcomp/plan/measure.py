"""Measure configurations: closed loops of fresh workers, all configurations of all models taking turns.

A round gives one set of run times per configuration, taken while all its workers run, so that what
they do to each other (caches, memory, clock rate) is in them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from onnxcomp.bench import room
from onnxcomp.errors import LimitError
from onnxcomp.plan.serving import BUSY, Lap, Measured, Serving
from onnxcomp.replicas import Replicas

#: rounds: at least, as planned, at most
_FEWEST, _USUAL, _MOST = 2, 4, 16

#: seconds of a turn in which the workers run, and single runs of each in it, at least
_SHORTEST, _LONGEST, _RUNS = 0.3, 3.0, 5

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class First:
    """What one worker of each told.

    Attributes:
        fitting: what this machine's memory can hold.
        refused: the others, and why.
        run_seconds: of the slowest, alone.
        start_seconds: from the start of a worker to its end, without timed runs.
    """

    fitting: tuple[Serving, ...]
    refused: tuple[tuple[Serving, str], ...]
    run_seconds: float
    start_seconds: float


def first(servings: Sequence[Serving], tell: Tell) -> First:
    """Start one worker of each model and batch. Raises what `replicas.run` raises."""
    alone: dict[object, Replicas] = {}
    fitting, refused = [], []
    run, start = 0.0, 0.0
    for one in servings:
        key = (one.path, one.configuration.batch)
        if key not in alone:
            tell(f"trying {one.name}")
            begun = time.monotonic()
            alone[key] = one.first_runs()
            start = max(start, time.monotonic() - begun)
            run = max(run, alone[key].callers[0].first_wall_ns[-1] / 1e9)
        try:
            if one.configuration.kind != "threads":
                room.check(alone[key].memory(), one.at_once, name=one.name)
        except LimitError as error:
            refused.append((one, error.message))
        else:
            fitting.append(one)
    return First(tuple(fitting), tuple(refused), run, start)


def affordable(found: First, seconds: float) -> tuple[First, tuple[Serving, ...]]:
    """What two rounds have time for, the most likely ways of each model first; and what is left out."""
    count = int(seconds / (_FEWEST * (found.start_seconds + max(_SHORTEST, _RUNS * found.run_seconds))))
    likely = sorted(found.fitting, key=lambda one: one.configuration.unlikely)
    least = len({one.configuration.model for one in likely})
    kept = likely[: max(count - count % least, least)]  # as many of each model
    left_out = tuple(one for one in found.fitting if one not in kept)
    return dataclasses.replace(found, fitting=tuple(one for one in found.fitting if one in kept)), left_out


def rounds(
    found: First, *, seconds: float, seed: int, tell: Tell, clock: Callable[[], float] = time.monotonic
) -> list[Measured]:
    """Let what fits take turns in random order until the time is over; two rounds are made in any case."""
    servings = found.fitting
    turn = min(max(seconds / (_USUAL * max(len(servings), 1)) - found.start_seconds, _SHORTEST), _LONGEST)
    turn = max(turn, _RUNS * found.run_seconds)
    generator = np.random.default_rng(seed)
    laps: list[list[Lap]] = [[] for _ in servings]
    begun = clock()
    for count in range(_MOST):
        if count >= _FEWEST and (clock() - begun) * (1 + 1 / count) > seconds:
            break
        for index in generator.permutation(len(servings)):
            one = servings[int(index)]
            tell(f"{one.name}: {one.configuration.label(one.at_once)}")
            laps[int(index)].append(one.closed_loop(turn))
    return _on_one_clock([Measured(one, tuple(mine)) for one, mine in zip(servings, laps, strict=True)])


def _on_one_clock(found: Sequence[Measured]) -> list[Measured]:
    """CPU times count where runs took much longer than these: then wall times tell about other work.

    That of runs on several threads cannot be told from what they do for each other, and stays on the wall clock.
    """
    ratios = [one.contention for one in found if one.contention is not None]
    clock = "cpu" if ratios and float(np.median(ratios)) > BUSY else "wall"
    return [one if one.contention is None else dataclasses.replace(one, clock=clock) for one in found]
