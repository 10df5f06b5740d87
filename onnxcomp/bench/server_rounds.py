"""Servers of several models side by side: rounds of fresh workers in random order, beside an A/A control.

At a rate, each round serves the same arrivals by every model (common random numbers) and compares a
percentile of the latency. Where a rate is sought, searches are too long to repeat in rounds; there a
round runs the workers in a closed loop, and compares the rates at which a simulated line of these run
times meets the objective. That is a preview, as the name of the number says: what the workers do to
each other is in it, what requests that come late do to them is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from onnxcomp import replicas
from onnxcomp.bench import queueing, statistics
from onnxcomp.bench.latency import PERCENTILES
from onnxcomp.bench.paired import Paired
from onnxcomp.bench.traffic import WARM_UP, Traffic

#: rounds: at least, as planned, at most
FEWEST, USUAL, MOST = 3, 8, 32

#: seconds of one block: at least, and of a closed loop at most; and a guess of what starting workers takes
_SHORTEST, _LOOP, _START = 0.5, 2.0, 1.0

#: run an open loop of one model: (index, rate, seconds, seed of the arrivals)
Open = Callable[[int, float, float, int], Traffic]

#: run a closed loop of one model: (index, seconds)
Closed = Callable[[int, float], replicas.Replicas]


def at_rate(names: tuple[str, ...], run: Open, rate: float, *, seconds: float, seed: int, delta: float) -> Paired:
    """The same arrivals for all: a percentile of the latency, the highest that the blocks are long enough for.

    Args:
        names: the models, reference first.
        run: see `Open`.
        rate: requests per second.
        seconds: time budget; three rounds are made in any case.
        seed: of the orders and of the arrivals.
        delta: a smaller relative difference is none.

    A block gives one number, whose interval comes from the rounds; but below the count that p99 takes (299)
    its p99 would be little else than its maximum, so there it is p95 or p90 or p50.
    """
    block = max(seconds / (USUAL * (len(names) + 1)) - _START, _SHORTEST)
    label, share = percentile_for(rate * block)

    def one(index: int, turn: int) -> float:
        return float(np.quantile(run(index, rate, block, seed + turn).latency_ms, share, method="inverted_cdf"))

    what = f"{label} of the latency at {rate:.4g} requests a second, ms"
    return _rounds(names, one, what, seconds=seconds, seed=seed, delta=delta)


def previewed(
    names: tuple[str, ...], run: Closed, slo_p99_ms: float, *, workers: int, seconds: float, seed: int, delta: float
) -> Paired | None:
    """The highest rate of each in the preview, as ms between requests; None where one has none in some round.

    Args:
        names: the models, reference first.
        run: see `Closed`.
        slo_p99_ms: the objective.
        workers: how many.
        seconds: time budget; three rounds are made in any case.
        seed: of the orders and of the simulation.
        delta: a smaller relative difference is none.
    """
    block = min(max(seconds / (USUAL * (len(names) + 1)) - _START, _SHORTEST), _LOOP)

    def one(index: int, turn: int) -> float:
        callers = run(index, block).callers
        services = np.concatenate([np.asarray(c.wall_ns, dtype=np.float64) for c in callers]) / 1e6
        rate = queueing.highest_rate(services, slo_p99_ms, workers=workers, seed=seed + turn)
        return np.nan if rate is None else 1e3 / rate

    what = f"ms between requests at the highest rate with p99 within {slo_p99_ms:g} ms, previewed from run times"
    found = _rounds(names, one, what, seconds=seconds, seed=seed, delta=delta)
    return found if np.isfinite([*found.values, found.control]).all() else None


def percentile_for(requests: float) -> tuple[str, float]:
    """The highest percentile that so many requests are enough for, less those that are not counted; at least p50."""
    counted = requests * (1 - WARM_UP)
    fit = [one for one in PERCENTILES if statistics.samples_needed(one[1]) <= counted]
    return fit[-1] if fit else PERCENTILES[0]


def _rounds(
    names: tuple[str, ...], one: Callable[[int, int], float], what: str, *, seconds: float, seed: int, delta: float
) -> Paired:
    """One number per model and round, and one more of the reference: `one(index of the model, round)`."""
    generator = np.random.default_rng(seed)
    arms = [*range(len(names)), 0]
    values: list[list[float]] = [[] for _ in arms]
    begun = time.monotonic()
    for turn in range(MOST):
        if turn >= FEWEST and (time.monotonic() - begun) * (1 + 1 / turn) > seconds:
            break
        for place in generator.permutation(len(arms)):
            values[int(place)].append(one(arms[int(place)], turn))
    *served, control = (tuple(found) for found in values)
    return Paired(names=names, values=tuple(served), control=control, what=what, seed=seed, delta=delta)
