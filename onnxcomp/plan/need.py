"""From run times to machines: the highest rate of one machine, and how many machines and workers a rate needs.

All of it is simulated (`onnxcomp.bench.queueing`): one line per machine, requests split evenly at random
among machines, so that each machine's arrivals are Poisson again. Workers that this host has no cores
for are assumed to run as those that were measured, independent of each other.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from onnxcomp.bench import dependent, queueing, statistics, traffic
from onnxcomp.bench.statistics import Estimate
from onnxcomp.plan.serving import Measured

#: of machines, beyond what their rate says: a p99 at a rate is simulated, and so is the rate at a p99
_MORE = 8

#: for the run that verifies: how many requests more than the fewest, and what of a run counts
_MARGIN, _COUNTED = 2.5, 1 - traffic.WARM_UP


@dataclasses.dataclass(frozen=True)
class Need:
    """What a rate takes.

    Attributes:
        machines: how many.
        workers: of each, the fewest that hold the objective.
        preview: at the rate of one machine, in runs per second.
    """

    machines: int
    workers: int
    preview: queueing.Preview


def highest_rate(found: Measured, slo_p99_ms: float, *, workers: int, seed: int) -> Estimate | None:
    """Requests per second at which so many workers hold the objective, with the interval over rounds.

    None where a run alone takes longer. Where that is so in some rounds, the interval reaches to 0.
    """
    rates = [
        queueing.highest_rate(services, slo_p99_ms, workers=workers, seed=seed) or 0.0 for services in found.rounds_ms
    ]
    requests = found.serving.configuration.requests
    if min(rates) > 0 and len(rates) > 1:
        ratio = statistics.ratio_interval(np.log(rates))
        return Estimate(requests * ratio.value, requests * ratio.low, requests * ratio.high)
    pooled = queueing.highest_rate(found.services_ms, slo_p99_ms, workers=workers, seed=seed)
    return None if pooled is None else Estimate(requests * pooled, 0.0, requests * max(*rates, pooled))


def need(
    found: Measured, capacity: Estimate, *, rate: float, slo_p99_ms: float, workers: int, seed: int,
    machines: int = 1, fewest: int = 1,
) -> Need | None:  # fmt: skip
    """The fewest machines, and the fewest workers of each, that hold the objective at this rate in the preview.

    Args:
        found: run times.
        capacity: see `highest_rate`.
        rate: requests per second, over all machines.
        slo_p99_ms: the objective.
        workers: of a machine, at most.
        seed: of the simulation.
        machines: no fewer.
        fewest: no fewer workers on so many machines.

    None where no number of machines holds it.
    """
    runs = rate / found.serving.configuration.requests
    start = max(math.ceil(rate / capacity.value), machines)
    for count in range(start, start + _MORE):
        least = max(fewest if count == machines else 1, _busy(found, runs / count))
        for mine in range(least, workers + 1):
            preview = queueing.preview(found.services_ms, runs / count, workers=mine, seed=seed)
            if preview.p99_ms <= slo_p99_ms:
                return Need(count, mine, preview)
    return None


def seconds_to_tell(preview: queueing.Preview) -> float:
    """How long a run at this rate takes to tell p99 well."""
    requests = statistics.samples_needed(0.99) * preview.inflation * _MARGIN / _COUNTED
    return requests / preview.rate


def can_be_told(
    found: Measured, rate: float, *, workers: int, seconds: float, slo_p99_ms: float, seed: int
) -> bool:  # fmt: skip
    """Whether the preview expects a run of so many seconds to show that the objective is met.

    Simulated on the very arrivals that the run would use.
    """
    due = traffic.poisson(rate, seconds, seed) / 1e6
    work = np.random.default_rng(seed).choice(found.services_ms, len(due))
    waited = queueing.sojourns(due, work, workers)[int(traffic.WARM_UP * len(due)) :]
    bound = dependent.percentile(waited, 0.99).high if len(waited) else None
    return bound is not None and bound <= slo_p99_ms


def _busy(found: Measured, runs: float) -> int:
    """Workers that are needed only to keep up."""
    return math.floor(runs / queueing.capacity(found.services_ms)) + 1
