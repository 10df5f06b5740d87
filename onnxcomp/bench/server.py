"""The scenario 'server': requests arrive by a Poisson process, whether or not a worker is free.

A closed loop sends the next request when the last is answered, so it never sees a line: its p99 is
off by a factor of six at 70 % utilisation. Here latency counts from when a request was due.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxcomp import replicas
from onnxcomp.bench import queueing, room, server_rounds, slo, traffic
from onnxcomp.bench.environment import usable_cores
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.job import Job
from onnxcomp.bench.paired import Paired
from onnxcomp.bench.placement import placement
from onnxcomp.bench.server_result import Load, ServerResult
from onnxcomp.bench.traffic import Traffic
from onnxcomp.errors import UsageError

#: share of the time for the closed loop that tells how long a run takes, and at most so many seconds
_PROBE_SHARE, _PROBE = 0.1, 5.0

#: share of the time that several models get for being compared in rounds
_COMPARE_SHARE = 0.4

#: seconds of one run: a worker that is silent for longer would count as stuck
_LONGEST = 600.0

#: seconds that a request may wait before the run is ended: at least, and by the objective
_PATIENCE, _PATIENCE_BY_SLO = 2.0, 20


def measure(job: Job, workers: int, load: Load) -> tuple[list[ServerResult], list[Paired]]:
    """Each model alone behind its line, in random order; then several in rounds against the first.

    Raises what `replicas.run` raises, and LimitError.
    """
    feeds = job.feeds().few()
    several = len(job.paths) > 1
    seconds = job.seconds * (1 - _COMPARE_SHARE) if several else job.seconds
    found: dict[int, ServerResult] = {}
    for index in np.random.default_rng(job.seed).permutation(len(job.paths)):
        server = _Server(job, feeds, int(index), workers, load, len(found), seconds)
        found[int(index)] = server.result()
    results = [found[index] for index in range(len(job.paths))]
    compared = _compare(job, feeds, workers, load) if several else None
    return results, [] if compared is None else [compared]


def _compare(job: Job, feeds: Feeds, workers: int, load: Load) -> Paired | None:
    seconds = _COMPARE_SHARE * job.seconds * len(job.paths)
    servers = [_Server(job, feeds, index, workers, load, len(job.paths), seconds) for index in range(len(job.paths))]
    about: dict[str, Any] = {"seconds": seconds, "seed": job.seed, "delta": job.delta}
    if load.rate is not None:
        return server_rounds.at_rate(
            job.names, lambda index, rate, block, seed: servers[index].trial(rate, block, seed), load.rate, **about
        )
    return server_rounds.previewed(
        job.names,
        lambda index, block: servers[index].closed(block),
        load.slo_p99_ms or 0.0,
        workers=workers,
        **about,
    )


def open_loop(
    run: Callable[..., replicas.Replicas], rate: float, seconds: float, *, workers: int, seed: int,
    slo_p99_ms: float | None = None,
) -> Traffic:  # fmt: skip
    """Fresh workers serve Poisson arrivals; the run ends early where the line only grows.

    Args:
        run: `replicas.run` with all but `due_ns` and `patience` given; it starts `workers`.
        rate: requests per second.
        seconds: 600 at most.
        workers: how many.
        seed: of the pattern of arrivals.
        slo_p99_ms: the objective; a request that has waited 20 times as long ends the run.

    Raises UsageError where no request is due, and what `run` raises.
    """
    due = traffic.poisson(rate, min(seconds, _LONGEST), seed)
    if not len(due):
        raise UsageError(f"no request is due within {seconds:.3g} s", where=f"rate={rate:g}", hint="measure longer")
    found = run(due_ns=due, patience=max(_PATIENCE_BY_SLO * (slo_p99_ms or 0) / 1e3, _PATIENCE))
    served = [caller.served for caller in found.callers if caller.served is not None]
    return traffic.gather(served, rate=rate, workers=workers, due_ns=due, memory=found.memory())


@dataclasses.dataclass
class _Server:
    """One model; `turn` is its place in the order, `seconds` its time."""

    job: Job
    feeds: Feeds
    index: int
    workers: int
    load: Load
    turn: int
    seconds: float

    def result(self) -> ServerResult:
        services = self._probe()
        seconds = self.seconds - min(_PROBE_SHARE * self.seconds, _PROBE)
        search, judged, expected_rate = None, None, None
        if self.load.slo_p99_ms is not None:
            expected_rate = queueing.highest_rate(
                services, self.load.slo_p99_ms, workers=self.workers, seed=self.job.seed
            )
        if self.load.rate is not None:
            run = self.trial(self.load.rate, seconds)
            judged = None if self.load.slo_p99_ms is None else slo.judge(run, self.load.slo_p99_ms)
        else:
            search, run, judged = self._search(services, seconds)
        busy = run.rate >= queueing.capacity(services, workers=self.workers)
        seed, job = self.job.seed, self.job
        return ServerResult(
            model=job.names[self.index],
            setting=job.setting(self.feeds),
            load=self.load,
            workers=self.workers,
            traffic=run,
            judgement=judged,
            search=search,
            limit=None if search is None else slo.limit(search, self.load.slo_p99_ms or 0.0, seed=seed),
            expected=None if busy else queueing.preview(services, run.rate, workers=self.workers, seed=seed),
            expected_rate=expected_rate,
            feeds=self.feeds,
            placement=placement(job.paths[self.index], provider=job.provider, settings=job.settings),
            notes=self._notes(run, search),
        )

    def trial(self, rate: float, seconds: float, seed: int | None = None) -> Traffic:
        """An open loop of fresh workers; without a `seed`, with the pattern of arrivals of all runs of the job."""
        self._tell(f"{rate:.4g} requests a second")
        seed = self.job.seed if seed is None else seed
        return open_loop(self._run, rate, seconds, workers=self.workers, seed=seed, slo_p99_ms=self.load.slo_p99_ms)

    def closed(self, seconds: float) -> replicas.Replicas:
        """A closed loop of fresh workers."""
        self._tell("run times")
        return self._run(seconds=seconds)

    def _probe(self) -> np.ndarray:
        """How long runs take while all workers run, in ms; and whether there is room for so many."""
        self._tell("trying")
        seconds = min(_PROBE_SHARE * self.seconds, _PROBE)
        if self.load.processes and self.workers > 1:
            one = self._run(workers=1, seconds=seconds / 4)
            room.check(one.memory(), self.workers, name=self.job.names[self.index])
        found = self._run(seconds=seconds)
        return np.concatenate([np.asarray(c.wall_ns, dtype=np.float64) for c in found.callers]) / 1e6

    def _search(self, services: np.ndarray, seconds: float) -> tuple[slo.Search | None, Traffic, slo.Judgement]:
        objective = self.load.slo_p99_ms or 0.0
        first = slo.first_rate(services, objective, seconds / slo.RUNS, workers=self.workers, seed=self.job.seed)
        if first is None:
            run = self.trial(queueing.capacity(services, workers=self.workers) / 10, seconds)
            judged = slo.judge(run, objective)
            if judged.verdict != "met":
                return None, run, judged
            first = run.rate
        search = slo.search(self.trial, slo_p99_ms=objective, guess=first, seconds=seconds)
        if search.best is not None:
            return search, search.trials[search.best][0], slo.Judgement("met")
        run, judged = min(search.trials, key=lambda one: one[0].rate)
        if run.failed.any():
            return search, run, judged
        tried = f"no rate that was tried held, down to {run.rate:.4g} requests a second: {judged.reason}"
        return search, run, slo.Judgement("undecided", tried)

    def _run(
        self, *, workers: int | None = None, seconds: float = 0.0, due_ns: np.ndarray | None = None,
        patience: float = _PATIENCE,
    ) -> replicas.Replicas:  # fmt: skip
        return replicas.run(
            self.job.paths[self.index],
            workers or self.workers,
            feeds=self.feeds.arrays,
            seconds=seconds,
            due_ns=due_ns,
            patience=patience,
            provider=self.job.provider,
            settings=self.job.settings,
            kind=self.load.kind,
        )

    def _notes(self, run: Traffic, search: slo.Search | None) -> tuple[str, ...]:
        notes = []
        cores, threads = usable_cores(), max(self.job.settings.threads, 1)
        if self.workers * threads > cores:
            notes.append(f"{self.workers} workers of {threads} threads share {cores} cores")
        if run.abandoned:
            notes.append(
                f"at {run.rate:.4g} requests a second the line only grew; {run.abandoned} requests were given up, "
                "and count as long as they had waited"
            )
        if search is not None and search.best is not None and not search.converged:
            limit = (
                "no higher rate was tried" if search.failed_rate is None else f"{search.failed_rate:.4g} did not hold"
            )
            notes.append(f"the time was over before the rate was known to {slo.TOLERANCE - 1:.0%}: {limit}")
        return tuple(notes)

    def _tell(self, text: str) -> None:
        self.job.tell(f"{self.job.names[self.index]}: {text}", self.turn / (len(self.job.paths) + 1))
