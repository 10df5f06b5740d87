"""Latency of one model, one caller, one run after the other (a closed loop).

Says how long a run takes when nothing waits in line. The tail of a server under load is longer:
a closed loop never sees a queue.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics as plain
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcomp.bench import statistics
from onnxcomp.bench.clock import Clock, Tick, quiet
from onnxcomp.bench.runner import Run

#: percentiles that are reported
PERCENTILES: tuple[tuple[str, float], ...] = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))

#: more samples than this add size to a report and nothing else
MAX_RUNS = 10_000

_MIN_WARM, _MAX_WARM, _WINDOW, _AGREE = 3, 50, 5, 0.02
_BLOCKS = 20

#: runs that are made in any case
_FEWEST = 3
_REPORT_EVERY = 0.5  # seconds

Progress = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """What ran before anything counted.

    Attributes:
        runs: how many runs.
        stable: whether the last runs took as long as the same calls before, within 2 %.
    """

    runs: int
    stable: bool

    def to_json(self) -> dict[str, Any]:
        """`{runs, stable}`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Latency:
    """A closed loop's samples and what they say.

    Attributes:
        wall_ns, cpu_ns: one entry per run, in order; all of them.
        samples_per_run: batch size.
        warm_up: see `WarmUp`.
        clock: what `cpu_ns` counts, 'thread' or 'process'.
        sessions: how many of the runs each fresh session made, in order; empty: all ran in one.
    """

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    samples_per_run: int
    warm_up: WarmUp
    clock: str
    sessions: tuple[int, ...] = ()

    @property
    def contention(self) -> float:
        """Wall time over CPU time: 1 on a core of one's own, more where others have a share."""
        return sum(self.wall_ns) / max(sum(self.cpu_ns), 1)

    def percentiles(self) -> dict[str, dict[str, Any]]:
        """`{p50: {value, low, high, estimable, ...}, ...}` of the wall time, in milliseconds."""
        wall = np.asarray(self.wall_ns) / 1e6
        return {name: statistics.percentile(wall, share).to_json() for name, share in PERCENTILES}

    def throughput(self) -> statistics.Estimate:
        """Samples per second; its interval comes from blocks of successive runs, which drift apart."""
        wall = np.asarray(self.wall_ns, dtype=np.float64) / 1e9
        value = self.samples_per_run * len(wall) / float(wall.sum())
        blocks = [len(b) * self.samples_per_run / b.sum() for b in np.array_split(wall, _BLOCKS) if len(b)]
        if len(blocks) < 2:
            return statistics.Estimate(value, value, value)
        spread = statistics.mean_interval(blocks)
        return statistics.Estimate(
            value, max(value - (spread.value - spread.low), 0.0), value + (spread.high - spread.value)
        )

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The latency keys of one result; `samples` adds every run."""
        throughput = self.throughput()
        out: dict[str, Any] = {
            "latency_ms": self.percentiles(),
            "throughput": throughput.value,
            "throughput_interval": {"low": throughput.low, "high": throughput.high},
            "runs": len(self.wall_ns),
            "outliers": statistics.outliers(self.wall_ns),
            "warm_up": self.warm_up.to_json(),
            "contention": self.contention,
            "cpu_clock": self.clock,
            "sessions": max(len(self.sessions), 1),
            "cpu_ms_p50": plain.median(self.cpu_ns) / 1e6,
        }
        if samples:
            counts = list(self.sessions) or [len(self.wall_ns)]
            out["samples"] = {"wall_ns": list(self.wall_ns), "cpu_ns": list(self.cpu_ns), "per_session": counts}
        return out


def warm_up(calls: Sequence[Run], clock: Clock, *, seconds: float = 5.0) -> WarmUp:
    """Run until the last five runs take as long as the same calls did before, within 2 % (median of the ratios).

    Every call runs at least once, so that each shape is warm. A call is compared with itself only, one
    or more turns earlier, and never with its first run: feeds of other lengths take other times. At most
    50 runs beyond the first turn, or what two more turns take, and no more than `seconds`; but 3 runs in
    any case.
    """
    deadline = time.monotonic() + seconds
    times = [_pick(clock.time(call), clock) for call in calls]
    first = len(times)
    apart = -(-_WINDOW // first) * first  # whole turns
    most = max(_MAX_WARM, apart + 2 * _WINDOW)
    stable = False
    while len(times) - first < most and not stable:
        if time.monotonic() > deadline and len(times) >= _MIN_WARM:
            break
        times.append(_pick(clock.time(calls[len(times) % first]), clock))
        stable = len(times) - first >= apart + _WINDOW and _agree(times, apart)
    return WarmUp(len(times), stable)


def measure(
    calls: Sequence[Run],
    clock: Clock,
    *,
    samples_per_run: int = 1,
    seconds: float = 10.0,
    max_runs: int = MAX_RUNS,
    progress: Progress | None = None,
) -> Latency:
    """Warm up, then run one call after the other until the time or the count is used up.

    Args:
        calls: what to run, cycled; at least one (`runner.runs`).
        clock: see `clock.clock_for`.
        samples_per_run: batch size, for the throughput.
        seconds: time budget, warm-up included; three runs are made in any case.
        max_runs: at most so many runs count.
        progress: called with the share that is done, now and then.
    """
    start = time.perf_counter_ns()
    end = start + int(seconds * 1e9)
    warm = warm_up(calls, clock, seconds=seconds / 4)
    wall_ns: list[int] = []
    cpu_ns: list[int] = []
    turns = itertools.cycle(calls)
    with quiet():
        clock.series(turns, wall_ns, cpu_ns, until=sys.maxsize, most=min(_FEWEST, max_runs))
        while len(wall_ns) < max_runs and (now := time.perf_counter_ns()) < end:
            until = end
            if progress is not None:
                progress(min(max((now - start) / (end - start), len(wall_ns) / max_runs), 1.0))
                until = min(end, now + int(_REPORT_EVERY * 1e9))
            clock.series(turns, wall_ns, cpu_ns, until=until, most=max_runs)
    return Latency(
        wall_ns=tuple(wall_ns),
        cpu_ns=tuple(cpu_ns),
        samples_per_run=samples_per_run,
        warm_up=warm,
        clock=clock.cpu_name,
    )


def join(parts: Sequence[Latency]) -> Latency:
    """The runs of several fresh sessions of one model as one; all ran at least once."""
    warm = WarmUp(sum(p.warm_up.runs for p in parts), all(p.warm_up.stable for p in parts))
    return dataclasses.replace(
        parts[0],
        wall_ns=tuple(ns for p in parts for ns in p.wall_ns),
        cpu_ns=tuple(ns for p in parts for ns in p.cpu_ns),
        warm_up=warm,
        sessions=tuple(len(p.wall_ns) for p in parts),
    )


def _pick(tick: Tick, clock: Clock) -> int:
    return tick.wall_ns if clock.per_process else tick.cpu_ns


def _agree(times: Sequence[int], apart: int) -> bool:
    pairs = zip(times[-_WINDOW:], times[-_WINDOW - apart : -apart], strict=True)
    return abs(plain.median(after / max(before, 1) for after, before in pairs) - 1) <= _AGREE
