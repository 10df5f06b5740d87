"""Many arms that take turns: rounds of fresh sessions in random order, each arm a block of runs of its own.

Blocks instead of interleaved runs: threads that spin on after a run would take the cores of the next
arm, dozens of sessions would not fit into memory, and arms of different shapes have no pairs. Drift
between the blocks of a round is a part of what differs between rounds, so the intervals over rounds
hold it.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence

import numpy as np

from onnxcomp.bench.arms import Arm, Arrays
from onnxcomp.bench.clock import clock_for, quiet

#: runs of a block before it counts, and those that count: at least and at most
_WARM, _FEWEST, _MOST = 3, 3, 500


@dataclasses.dataclass(frozen=True)
class Entry:
    """What takes part.

    Attributes:
        arm: a model under settings.
        feeds: what it is fed, cycled.
        samples: per run.
    """

    arm: Arm
    feeds: Arrays
    samples: int = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """The runs of one arm in one fresh session.

    Attributes:
        wall_ns, cpu_ns: one per run; the CPU time is that of all threads.
        samples: per run.
    """

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    samples: int

    @property
    def latency_ns(self) -> float:
        """Median wall time of a run."""
        return float(np.median(self.wall_ns))

    @property
    def quartile_ns(self) -> float:
        """Lower quartile of the wall time: where others have a share of the cores, it repeats better."""
        return float(np.quantile(self.wall_ns, 0.25))

    @property
    def cpu_median_ns(self) -> float:
        """Median CPU time of a run."""
        return float(np.median(self.cpu_ns))

    @property
    def cpu_per_sample_ns(self) -> float:
        """CPU time of all runs, by samples."""
        return sum(self.cpu_ns) / (len(self.cpu_ns) * self.samples)


def block(entry: Entry, seconds: float, offset: int) -> Block:
    """Open a session, warm it up, and run for so many seconds: three runs at least, 500 at most."""
    calls = entry.arm.calls(entry.feeds)
    clock = clock_for(entry.arm.provider, entry.arm.settings.threads)
    for turn in range(_WARM):
        calls[turn % len(calls)]()
    wall: list[int] = []
    cpu: list[int] = []
    until = time.monotonic() + seconds
    with quiet():
        while len(wall) < _MOST and (len(wall) < _FEWEST or time.monotonic() < until):
            tick = clock.time(calls[(offset + len(wall)) % len(calls)])
            wall.append(tick.wall_ns)
            cpu.append(tick.cpu_ns)
    return Block(tuple(wall), tuple(cpu), entry.samples)


class Field:
    """Entries and the rounds that each has had; a round that left one out has no block of it.

    Attributes:
        entries: in the order given.
        rounds: per round, the block of each entry that took part, by its index.
    """

    def __init__(self, entries: Sequence[Entry], *, seed: int) -> None:
        self.entries = tuple(entries)
        self.rounds: list[dict[int, Block]] = []
        self._generator = np.random.default_rng(seed)

    def play(
        self,
        taking_part: Sequence[int],
        *,
        rounds: int,
        block_seconds: float,
        fewest: int = 0,
        until: float | None = None,
        progress: Callable[[], None] | None = None,
    ) -> None:
        """So many more rounds of these entries.

        Args:
            taking_part: indices of entries.
            rounds: at most so many.
            block_seconds: running time of one block.
            fewest: rounds that are made even beyond `until`.
            until: no round begins that would end later, by what the last one took (`time.monotonic`).
            progress: called after each block.
        """
        took = 0.0
        for count in range(rounds):
            begun = time.monotonic()
            if count >= fewest and until is not None and begun + took > until:
                return
            one: dict[int, Block] = {}
            for place in self._generator.permutation(len(taking_part)):
                index = taking_part[int(place)]
                offset = int(self._generator.integers(1 << 16))
                one[index] = block(self.entries[index], block_seconds, offset)
                gc.collect(0)  # the session goes before the next one is opened
                if progress is not None:
                    progress()
            self.rounds.append(one)
            took = time.monotonic() - begun

    def blocks(self, index: int) -> list[Block]:
        """Of one entry, in the order of rounds."""
        return [one[index] for one in self.rounds if index in one]

    def logs(self, first: int, second: int, pick: Callable[[Block], float]) -> np.ndarray:
        """log(first / second), one number per round that both took part in."""
        both = [one for one in self.rounds if first in one and second in one]
        return np.asarray([np.log(pick(one[first]) / pick(one[second])) for one in both])
