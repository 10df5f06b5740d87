"""A queue in numbers instead of time: how long requests would take at a rate, from measured service times.

Requests arrive by a Poisson process, wait in one line, and the first of k workers that is free takes
the first of the line (M/G/k). That is a preview: it knows nothing of what workers do to each other,
so it tells where to measure, and not what will be measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxcomp.bench import dependent

#: lines that are simulated side by side, requests of each, and how many of these only fill the line
_LINES, _REQUESTS, _FILL = 64, 3000, 500

#: relative width at which the search for a rate ends
_TOLERANCE = 0.002


@dataclasses.dataclass(frozen=True)
class Preview:
    """What a rate would give.

    Attributes:
        rate: requests per second.
        utilisation: share of the workers' time that is work.
        p99_ms: 99th percentile of the time from arrival to answer.
        inflation: by how much more requests that percentile takes than independent ones would.
    """

    rate: float
    utilisation: float
    p99_ms: float
    inflation: float

    def to_json(self) -> dict[str, float]:
        """The fields by name."""
        return dataclasses.asdict(self)


def sojourns(arrivals: np.ndarray, services: np.ndarray, workers: int = 1) -> np.ndarray:
    """Time from each arrival to its answer, for lines that are empty at first.

    Args:
        arrivals: float (..., requests), ascending along the last axis, in any unit.
        services: as long as the work takes, same shape and unit.
        workers: how many take from each line.

    One worker: Lindley's recursion (1952) in closed form, the end of request n being the largest over
    j <= n of arrival j + services j..n. Several: the recursion of Kiefer and Wolfowitz (1955) on the
    times at which each worker is free, over all lines at once.
    """
    arrivals, services = np.broadcast_arrays(np.asarray(arrivals, float), np.asarray(services, float))
    if workers == 1:
        done = np.cumsum(services, axis=-1)
        found: np.ndarray = done + np.maximum.accumulate(arrivals - (done - services), axis=-1) - arrivals
        return found
    # one row per request, all lines side by side, so that the loop reads memory in order
    flat = np.ascontiguousarray(arrivals.reshape(-1, arrivals.shape[-1]).T)
    work = np.ascontiguousarray(services.reshape(-1, arrivals.shape[-1]).T)
    lines = np.arange(flat.shape[1])
    free = np.zeros((flat.shape[1], workers))
    ends = np.empty_like(flat)
    for request in range(len(flat)):
        first = free.argmin(axis=1)
        end = np.maximum(flat[request], free[lines, first]) + work[request]
        free[lines, first] = end
        ends[request] = end
    taken: np.ndarray = ends.T.reshape(arrivals.shape) - arrivals
    return taken


def preview(services_ms: Sequence[float] | np.ndarray, rate: float, *, workers: int = 1, seed: int = 0) -> Preview:
    """Simulate this rate on service times drawn from those measured; the same seed gives the same arrivals.

    Args:
        services_ms: measured run times, one or more.
        rate: requests per second, below `capacity`: beyond it a line never ends.
        workers: how many.
        seed: of the simulation.
    """
    gaps, work = _draw(services_ms, seed)
    found = sojourns(np.cumsum(gaps * (1e3 / rate), axis=1), work, workers)[:, _FILL:]
    return Preview(
        rate=rate,
        utilisation=rate / capacity(services_ms, workers=workers),
        p99_ms=float(np.quantile(found, 0.99)),
        inflation=dependent.inflation(found.ravel(), 0.99, batches=_LINES),
    )


def capacity(services_ms: Sequence[float] | np.ndarray, *, workers: int = 1) -> float:
    """Requests per second that keep all workers busy."""
    return workers * 1e3 / float(np.mean(services_ms))


def highest_rate(
    services_ms: Sequence[float] | np.ndarray, slo_p99_ms: float, *, workers: int = 1, seed: int = 0
) -> float | None:
    """The highest rate whose simulated p99 meets the objective; None where the service alone misses it."""
    gaps, work = _draw(services_ms, seed)

    def meets(rate: float) -> bool:
        found = sojourns(np.cumsum(gaps * (1e3 / rate), axis=1), work, workers)[:, _FILL:]
        return float(np.quantile(found, 0.99)) <= slo_p99_ms

    high = capacity(services_ms, workers=workers)
    low = high / 1024
    if not meets(low):
        return None
    while high / low > 1 + _TOLERANCE:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def _draw(services_ms: Sequence[float] | np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaps between arrivals, of mean 1, and services, both (lines, requests)."""
    generator = np.random.default_rng(seed)
    gaps = generator.standard_exponential((_LINES, _REQUESTS))
    return gaps, generator.choice(np.asarray(services_ms, float), (_LINES, _REQUESTS))
