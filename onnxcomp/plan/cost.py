"""One number for a search: what a million requests cost with a model, as fast as p99 allows."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from onnxcomp.bench import queueing, slo
from onnxcomp.bench.environment import usable_cores
from onnxcomp.bench.result import finite
from onnxcomp.bench.statistics import Estimate
from onnxcomp.bench.traffic import Traffic
from onnxcomp.errors import UsageError
from onnxcomp.plan import measure
from onnxcomp.plan.need import highest_rate
from onnxcomp.plan.prepare import Feeding, ModelPath, all_cores
from onnxcomp.plan.result import Objective, per_million
from onnxcomp.plan.serving import Measured, Serving
from onnxcomp.settings import SessionSettings

#: share of the time for closed loops where open loops follow
_MEASURING = 0.3


@dataclasses.dataclass(frozen=True)
class Cost:
    """What requests cost at the highest rate of a machine.

    Attributes:
        per_million: cost of a million requests, in the currency of the price.
        rate: requests per second of one machine, all its cores used, at which p99 holds.
        verified: whether real open loops found the rate; otherwise it is simulated.
        clock: 'wall', or 'cpu' where other work held the cores and the simulation took CPU times instead.
    """

    per_million: Estimate
    rate: Estimate
    verified: bool
    clock: str

    def to_json(self) -> dict[str, Any]:
        """`{per_million: {value, low, high}, rate: {value, low, high}, verified}`."""
        cleaned: dict[str, Any] = finite(dataclasses.asdict(self))
        return cleaned


def cost(
    model: ModelPath,
    *,
    slo_p99_ms: float,
    price_per_hour: float = 1.0,
    settings: SessionSettings | None = None,
    data: ModelPath | None = None,
    sizes: Mapping[str, int] | None = None,
    verified: bool = False,
    seconds: float = 8.0,
    seed: int | None = None,
) -> Cost | None:
    """Cost of a million requests when one thread per core of this machine runs one shared session.

    Args:
        model: path of an `.onnx` file.
        slo_p99_ms: 99 of 100 requests are answered within so many ms.
        price_per_hour: of this machine.
        settings: session options; `threads` is 1.
        data: what is fed; None: seeded noise.
        sizes: sizes of symbolic axes, for noise.
        verified: look for the rate by real open loops; otherwise run times alone are measured, and the line
            is simulated, which costs a fraction and knows nothing of what else happens under load. The
            interval is that over rounds, and of the search between the highest rate that held and the
            lowest that did not.
        seconds: time budget.
        seed: of arrivals and noise; the same one for all candidates of a search compares them on the same
            arrivals.

    None where a run alone takes longer than the objective, or no rate held. Raises UsageError, and what
    `open_session` and `Batches` raise.
    """
    if not seconds > 0:
        raise UsageError("the time must be positive", where=f"seconds={seconds:g}")
    cores, seed = usable_cores(), secrets.randbits(48) if seed is None else seed
    Objective(rate=1.0, slo_p99_ms=slo_p99_ms, cores=cores, price_per_hour=price_per_hour)  # checks both
    feeding = Feeding(data=data, sizes=sizes, batch=None, seed=seed)
    serving = all_cores(model, settings or SessionSettings(), feeding)
    first = measure.first([serving], _silent)
    (found,) = measure.rounds(first, seconds=seconds * (_MEASURING if verified else 1), seed=seed, tell=_silent)
    rate = highest_rate(found, slo_p99_ms, workers=cores, seed=seed)
    if rate is not None and verified:
        rate = _searched(serving, found, slo_p99_ms, seconds * (1 - _MEASURING), seed)
    if rate is None:
        return None
    per = Estimate(*(per_million(price_per_hour, 1, one) for one in (rate.value, rate.high, rate.low)))
    return Cost(per, rate, verified, found.clock)


def _searched(serving: Serving, found: Measured, slo_p99_ms: float, seconds: float, seed: int) -> Estimate | None:
    """Between the highest rate that held and the lowest that did not."""
    workers = serving.at_once
    guess = slo.first_rate(found.services_ms, slo_p99_ms, seconds / slo.RUNS, workers=workers, seed=seed)
    if guess is None:
        return None

    def trial(rate: float, length: float) -> Traffic:
        return serving.open_loop(rate, length, workers=workers, seed=seed, slo_p99_ms=slo_p99_ms)

    search = slo.search(trial, slo_p99_ms=slo_p99_ms, guess=guess, seconds=seconds)
    if search.best is None:
        return None
    best = search.trials[search.best][0].rate
    return Estimate(best, best, search.failed_rate or queueing.capacity(found.services_ms, workers=workers))


def _silent(_: str) -> None:
    """A search tells its own progress."""
