"""An objective for p99: judge one run by it, and look for the highest rate that meets it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxcomp.bench import dependent, queueing
from onnxcomp.bench.latency import PERCENTILES
from onnxcomp.bench.statistics import Estimate, Percentile, ratio_interval
from onnxcomp.bench.traffic import WARM_UP, Traffic, poisson

VERDICTS = ("met", "missed", "undecided")

#: our own delay may be this share of the objective (its 99th percentile); beyond it nothing is decided
LATE = 0.1

#: the search ends when the next rate that fails is no more than this above the last that holds
TOLERANCE = 1.05

#: the time is cut into so many runs
RUNS = 4

#: steps to the first bracket double so often: from 5 % to a factor of two
_DOUBLINGS = 4

#: how far below the rate that meets the objective the one is sought whose upper bound does
_STEPS, _STEP, _FALLBACK = 40, 1.04, 1.2

_SHORTEST = 0.5  # seconds

#: the rate of the long run is at most so many times the highest that was tried, or it is not told
NEAR = 2.0

#: run an open loop at (rate, for so many seconds)
Trial = Callable[[float, float], Traffic]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What one run says about the objective.

    Attributes:
        verdict: one of `VERDICTS`.
        reason: of 'missed' and 'undecided'; '' for 'met'.
    """

    verdict: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Search:
    """All runs of a search.

    Attributes:
        trials: runs and what they said, in order.
        best: index of the run at the highest rate that met the objective, below every one that did not;
            None where none met it.
        failed_rate: the lowest rate above that which did not meet it; None where none was tried.
    """

    trials: tuple[tuple[Traffic, Judgement], ...]
    best: int | None
    failed_rate: float | None

    @property
    def converged(self) -> bool:
        """Whether the bracket is as narrow as was asked."""
        if self.best is None or self.failed_rate is None:
            return False
        return self.failed_rate / self.trials[self.best][0].rate <= TOLERANCE * 1.001

    def to_json(self) -> dict[str, Any]:
        """`{converged, failed_rate, trials: [{rate, verdict, reason, utilisation, p99_ms}]}`."""
        return {
            "converged": self.converged,
            "failed_rate": self.failed_rate,
            "trials": [
                {
                    "rate": traffic.rate,
                    "verdict": judged.verdict,
                    "reason": judged.reason,
                    "utilisation": traffic.utilisation,
                    "p99_ms": traffic.percentile(0.99).to_json(),
                }
                for traffic, judged in self.trials
            ],
        }


def judge(traffic: Traffic, slo_p99_ms: float) -> Judgement:
    """Met: the upper bound of p99 is within the objective. Missed: its lower bound, or that of p50 ... p95, is not."""
    late = traffic.lateness_ms
    delay = float(np.quantile(late, 0.99)) if len(late) else 0.0
    found = traffic.percentile(0.99)
    if traffic.failed.any():
        return Judgement("missed", f"{int(traffic.failed.sum())} requests failed: {traffic.error}")
    if delay > LATE * slo_p99_ms:
        return Judgement(
            "undecided",
            f"the load itself was late by up to {delay:.3g} ms (p99), more than {LATE:.0%} of the objective of "
            f"{slo_p99_ms:g} ms: the machine is too busy to tell",
        )
    return _judge(traffic, found, slo_p99_ms)


def _judge(traffic: Traffic, found: Percentile, slo_p99_ms: float) -> Judgement:
    if traffic.gave_up_ns is not None and float(np.mean(traffic.latency_ms > slo_p99_ms)) > 0.05:
        return Judgement("missed", "requests came faster than they could be served; the line only grew")
    for name, share in PERCENTILES:  # a run too short for p99 may tell that p90 is beyond it already
        low = traffic.percentile(share).low
        if low is not None and low > slo_p99_ms:
            return Judgement("missed", f"{name} is {low:.3g} ms or more")
    if found.low is None or found.high is None:
        return Judgement(
            "undecided",
            f"{found.samples} requests, which depend on each other, tell no p99: it takes about {found.needed}; "
            "measure longer",
        )
    if found.high <= slo_p99_ms:
        return Judgement("met")
    return Judgement("undecided", f"p99 lies between {found.low:.3g} and {found.high:.3g} ms; measure longer")


def first_rate(
    services_ms: np.ndarray, slo_p99_ms: float, seconds: float, *, workers: int = 1, seed: int = 0
) -> float | None:
    """The rate at which a search should begin: whose upper bound of p99 meets the objective in the preview.

    The preview runs on the very pattern of arrivals that the search will use, for as many seconds as
    one of its runs takes. Where so short a run is not expected to tell p99 at all: somewhat below the
    rate whose p99 itself meets it. None where the service alone misses the objective.
    """
    goal = queueing.highest_rate(services_ms, slo_p99_ms, workers=workers, seed=seed)
    if goal is None:
        return None
    for step in range(_STEPS):
        due = poisson(goal / _STEP**step, seconds, seed) / 1e6
        work = np.random.default_rng(seed).choice(services_ms, len(due))
        found = queueing.sojourns(due, work, workers)[int(WARM_UP * len(due)) :]
        bound = dependent.percentile(found, 0.99).high if len(found) else None
        if bound is not None and bound <= slo_p99_ms:
            return goal / _STEP**step
    return goal / _FALLBACK


def search(
    trial: Trial, *, slo_p99_ms: float, guess: float, seconds: float, clock: Callable[[], float] = time.monotonic
) -> Search:
    """Bisect to the highest rate whose upper bound of p99 meets the objective.

    Args:
        trial: runs an open loop; every call with the same pattern of arrivals, so that the order of rates
            does not change by luck.
        slo_p99_ms: the objective.
        guess: rate of the first run.
        seconds: for all of them, what starting them takes included; one run is made in any case.
        clock: tells how long they took.

    A rate that is undecided does not hold.
    """
    begun, extra = clock(), 0.0
    found: list[tuple[Traffic, Judgement]] = []
    low: int | None = None
    high: float | None = None
    rate = guess
    while True:
        length = max(seconds / RUNS - extra, _SHORTEST)
        if found and clock() - begun + length + extra > seconds * (1 + 1 / (2 * RUNS)):
            break
        start = clock()
        traffic = trial(rate, length)
        extra = max(clock() - start - length, 0.0)
        judged = judge(traffic, slo_p99_ms)
        found.append((traffic, judged))
        if judged.verdict == "met":
            low = len(found) - 1
        else:
            high = rate
        rate = _next(found[low][0].rate if low is not None else None, high, len(found))
        if low is not None and high is not None and high / found[low][0].rate <= TOLERANCE * 1.001:
            break
    return Search(tuple(found), low, high)


def limit(search: Search, slo_p99_ms: float, *, seed: int = 0) -> Estimate | None:
    """The rate whose p99 is the objective, in lines of many arrivals with the service times of the search.

    The highest rate that held is one whose upper bound holds for the few arrivals that there was time for, and
    two searches may differ by a tenth from that alone. Here each run gives its service times under real load;
    simulated arrivals in great number do the rest (`queueing.highest_rate`), so the luck of the draw is gone. One
    number per run, each of fresh workers; the interval is over runs. Our own lateness, which only meets requests
    that find a worker idle, is not in it.

    None for a search of one run, or where requests failed, or the service alone misses the objective; and where
    no run came near: a worker that is mostly idle has other service times than one that is busy, above all where
    others want its core.
    """
    runs = [traffic for traffic, _ in search.trials if not traffic.failed.any() and traffic.served]
    found = [queueing.highest_rate(run.service_ms, slo_p99_ms, workers=run.workers, seed=seed) for run in runs]
    rates = [rate for rate in found if rate is not None]
    if len(rates) < 2 or len(rates) < len(search.trials):
        return None
    found_rate = ratio_interval(np.log(rates))
    return found_rate if found_rate.value <= NEAR * max(run.rate for run in runs) else None


def _next(low: float | None, high: float | None, tried: int) -> float:
    """Up or down in steps that double, until there is a bracket; then its middle."""
    if low is not None and high is not None:
        return float(np.sqrt(low * high))
    step = float(TOLERANCE**2 ** min(tried - 1, _DOUBLINGS))
    return low * step if low is not None else (high or 1.0) / step
