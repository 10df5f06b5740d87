"""The clocks of one run, in whole nanoseconds.

Wall time is what a caller feels; CPU time is what the work costs. Where the cores are shared, the
CPU time of the running thread repeats about ten times better than the wall time, so it decides
comparisons on one thread. With several threads the CPU time of the process hides waiting and
counts spinning, so there the wall decides and the CPU time stands beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns, process_time_ns, thread_time_ns
from typing import NamedTuple


class Tick(NamedTuple):
    """The duration of one run; a tuple, since a frozen dataclass takes twice as long to make.

    Attributes:
        wall_ns: elapsed time.
        cpu_ns: CPU time of the calling thread, or of the whole process (`per_process`).
    """

    wall_ns: int
    cpu_ns: int


@dataclasses.dataclass(frozen=True)
class Clock:
    """Times one call at a time.

    Attributes:
        per_process: the CPU clock counts all threads, not only the calling one.
    """

    per_process: bool = False

    @property
    def cpu_name(self) -> str:
        """What the CPU clock counts: 'thread' or 'process'."""
        return "process" if self.per_process else "thread"

    def time(self, call: Callable[[], object]) -> Tick:
        """Call once and return how long it took. The clocks themselves cost `overhead()`."""
        cpu_clock = process_time_ns if self.per_process else thread_time_ns
        # the wall clock is the inner pair: reading the CPU clock is a system call
        cpu = cpu_clock()
        wall = perf_counter_ns()
        call()
        wall = perf_counter_ns() - wall
        return Tick(wall, cpu_clock() - cpu)

    def series(
        self, calls: Iterator[Callable[[], object]], wall_ns: list[int], cpu_ns: list[int], *, until: int, most: int
    ) -> None:
        """Time one call after the other: what `time` measures is added to both lists.

        The loop stands here, since after a run of a model none of it is in the CPU's caches: a function call and
        a record for each run would double what the harness costs.

        Args:
            calls: endless.
            wall_ns: elapsed times so far.
            cpu_ns: CPU times so far, as many.
            until: reading of `time.perf_counter_ns` at which to stop, after one call at least.
            most: stop when the lists are as long as this.
        """
        cpu_clock = process_time_ns if self.per_process else thread_time_ns
        for call in itertools.islice(calls, most - len(wall_ns)):
            cpu = cpu_clock()
            begun = perf_counter_ns()
            call()
            ended = perf_counter_ns()
            cpu_ns.append(cpu_clock() - cpu)
            wall_ns.append(ended - begun)
            if ended >= until:
                return

    def overhead(self) -> Tick:
        """What an empty call measures: the median of many."""
        return _overhead(self.per_process)


def clock_for(provider: str, threads: int) -> Clock:
    """The thread's CPU clock where one thread does all the work, else the process's."""
    return Clock(per_process=not (provider == "cpu" and threads == 1))


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside; young garbage is collected first (all of it would take 0.1 s)."""
    enabled = gc.isenabled()
    gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@functools.cache
def _overhead(per_process: bool) -> Tick:
    clock = Clock(per_process)
    ticks = [clock.time(_nothing) for _ in range(500)]
    return Tick(int(statistics.median(t.wall_ns for t in ticks)), int(statistics.median(t.cpu_ns for t in ticks)))


def _nothing() -> None:
    return None
