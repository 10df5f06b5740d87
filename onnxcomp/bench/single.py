"""The scenario 'latency': each model alone in a closed loop, then all of them in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from onnxcomp import memory
from onnxcomp.bench import compare as comparing
from onnxcomp.bench import latency, runner
from onnxcomp.bench.clock import Clock, clock_for
from onnxcomp.bench.feeds import Feeds, shape_numbers
from onnxcomp.bench.job import Job
from onnxcomp.bench.placement import placement
from onnxcomp.bench.result import Result

#: where several fresh sessions are asked for and the time ends before
_FEWEST_SESSIONS = 5

#: share of the time that a comparison gets; the rest goes to the closed loops of the single models
_COMPARE_SHARE = 0.7


def measure(job: Job) -> tuple[list[Result], list[comparing.Comparison]]:
    """A result per model, and where there are several, their comparison with the first."""
    clock = clock_for(job.provider, job.settings.threads)
    feeds = job.feeds()
    several = len(job.paths) > 1
    share = (1 - _COMPARE_SHARE) / len(job.paths) if several else 1.0
    results = [_single(job, index, feeds, clock, share) for index in range(len(job.paths))]
    return results, [_compare(job, results, feeds, clock)] if several else []


def _single(job: Job, index: int, feeds: Feeds, clock: Clock, share: float) -> Result:
    """The closed loop of one model, in sessions of its own."""
    placed = placement(job.paths[index], provider=job.provider, settings=job.settings)
    before = memory.measure()
    measured, open_seconds, after = _sessions(job, index, feeds, clock, share)
    growth = None
    if before.pss_bytes is not None and after.pss_bytes is not None:
        growth = after.pss_bytes - before.pss_bytes
    return Result(job.names[index], job.setting(feeds), measured, after, growth, placed, open_seconds, feeds)


def _sessions(
    job: Job, index: int, feeds: Feeds, clock: Clock, share: float
) -> tuple[latency.Latency, float, memory.Memory]:
    """The runs of all sessions; the seconds of the first opening, and the memory after the first session's runs."""
    begun = time.monotonic()
    parts: list[latency.Latency] = []
    seconds = job.seconds * share / job.sessions
    while len(parts) < job.sessions:
        if len(parts) >= _FEWEST_SESSIONS and time.monotonic() - begun > job.seconds * share:
            break
        done = len(parts) / job.sessions
        start = time.perf_counter()
        session = job.open(index)
        opening = time.perf_counter() - start
        part = latency.measure(
            runner.runs(session, feeds.arrays, bind=job.bind),
            clock,
            samples_per_run=feeds.samples,
            # where there are several, opening them is a part of the time
            seconds=seconds if job.sessions == 1 else max(seconds - opening, 0.0),
            max_runs=-(-job.max_runs // job.sessions),
            progress=lambda f, done=done: job.tell(  # type: ignore[misc]
                job.names[index], (index + done + f / job.sessions) * share
            ),
        )
        if not parts:
            open_seconds, after = opening, memory.measure()
        parts.append(part)
    return (latency.join(parts) if job.sessions > 1 else parts[0]), open_seconds, after


def _compare(job: Job, results: Sequence[Result], feeds: Feeds, clock: Clock) -> comparing.Comparison:
    """All candidates against the reference, in rounds of fresh sessions."""
    usual = [float(np.mean(r.latency.wall_ns)) / 1e9 for r in results]
    opening = [r.open_seconds for r in results]
    budget = job.seconds * _COMPARE_SHARE
    shapes = shape_numbers(feeds.arrays)
    return comparing.compare(
        job.names,
        [_opener(job, index, feeds) for index in range(len(job.paths))],
        clock=clock,
        plan=comparing.plan([*usual, usual[0]], [*opening, opening[0]], budget, shapes=len(set(shapes))),
        seconds=budget,
        seed=job.seed,
        delta=job.delta,
        shapes=shapes,
        progress=lambda f: job.tell("comparing", 1 - _COMPARE_SHARE * (1 - f)),
    )


def _opener(job: Job, index: int, feeds: Feeds) -> comparing.Opener:
    return lambda: runner.runs(job.open(index), feeds.arrays, bind=job.bind)
