"""What was asked of a plan, and what it says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from onnxcomp.bench.slo import Judgement
from onnxcomp.bench.statistics import Estimate
from onnxcomp.bench.traffic import Traffic
from onnxcomp.errors import UsageError
from onnxcomp.plan.need import Need
from onnxcomp.plan.serving import BUSY, Measured, Serving

_HOUR, _MILLION = 3600.0, 1e6


def per_million(price_per_hour: float, machines: int, rate: float) -> float:
    """Cost of a million requests, where so many machines answer so many requests a second; infinite for none."""
    return price_per_hour * machines / (rate * _HOUR) * _MILLION if rate > 0 else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is asked for.

    Attributes:
        rate: requests per second.
        slo_p99_ms: 99 of 100 requests are to be answered within so many ms.
        cores: of a machine.
        price_per_hour: of a machine, in any currency; None: no cost is told.
        memory_limit: bytes that the workers of a machine may hold (PSS); None: no limit.

    Raises UsageError for anything but positive numbers.
    """

    rate: float
    slo_p99_ms: float
    cores: int
    price_per_hour: float | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{field.name} must be a positive number", where=f"{field.name}={value:g}")

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A real open-loop run, at the rate of one machine, or of the part of it that this host has cores for.

    Attributes:
        traffic: the run.
        judgement: what it says.
        one_thread: whether a run takes a single thread, so that its CPU time is all that it should take.
    """

    traffic: Traffic
    judgement: Judgement
    one_thread: bool = True

    @property
    def contention(self) -> float | None:
        """Wall by CPU time of its runs; None for runs on several threads."""
        wall = float((self.traffic.ended_ns - self.traffic.started_ns).sum())
        return wall / max(float(self.traffic.cpu_ns.sum()), 1.0) if self.one_thread else None

    @property
    def busy(self) -> bool:
        """Whether other work held the cores."""
        return (self.contention or 1.0) > BUSY

    def to_json(self, requests: int) -> dict[str, Any]:
        """The `verified` object; rates are in requests per second."""
        return {
            "rate": self.traffic.rate * requests,
            "workers": self.traffic.workers,
            "runs": self.traffic.served,
            "seconds": self.traffic.seconds,
            "utilisation": self.traffic.utilisation,
            "p50_ms": self.traffic.percentile(0.5).to_json(),
            "p99_ms": self.traffic.percentile(0.99).to_json(),
            "wall_by_cpu": self.contention,
            "lateness_ms_p99": float(np.quantile(self.traffic.lateness_ms, 0.99)) if self.traffic.served else None,
            "verdict": self.judgement.verdict,
            "reason": self.judgement.reason,
        }


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Option:
    """One configuration of one model, and what the rate takes of it.

    Attributes:
        objective: what was asked for.
        serving: the configuration, and the model.
        most: workers of a machine, by its cores and by the memory limit.
        measured: None where it was refused unmeasured.
        capacity: highest rate of one machine in the preview, requests per second; None: not at any rate.
        need: None where no number of machines holds the objective.
        refused: why it is out of question; '' where it is not.
        trial: None where it was not verified.
    """

    objective: Objective
    serving: Serving
    most: int
    measured: Measured | None = None
    capacity: Estimate | None = None
    need: Need | None = None
    refused: str = ""
    trial: Trial | None = None

    @property
    def verdict(self) -> str | None:
        """Of the trial, 'missed' where it is refused, None where nothing was tried."""
        if self.refused:
            return "missed"
        return None if self.trial is None else self.trial.judgement.verdict

    @property
    def service_p99_ms(self) -> float:
        """Of runs alone; infinite where nothing was measured."""
        return math.inf if self.measured is None else float(np.quantile(self.measured.services_ms, 0.99))

    @property
    def workers(self) -> int:
        """Of all machines together."""
        return 0 if self.need is None else self.need.machines * self.need.workers

    @property
    def cores(self) -> int:
        """That these workers keep busy."""
        return self.workers * self.serving.configuration.threads

    @property
    def extrapolated(self) -> bool:
        """Whether it takes more workers than this host runs at once."""
        return self.workers > self.serving.at_once

    @property
    def pss_bytes(self) -> int | None:
        """Memory of one machine's workers: from the trial where that ran them all, otherwise estimated."""
        if self.need is None or self.measured is None:
            return None
        if self.trial is not None and self.trial.traffic.workers == self.need.workers:
            return self.trial.traffic.memory.pss_bytes
        return self.measured.pss_bytes(self.need.workers)

    @property
    def cost(self) -> Estimate | None:
        """Of a million requests at the rate, on whole machines; the interval is that of how many these must be."""
        price, rate = self.objective.price_per_hour, self.objective.rate
        if self.need is None or self.capacity is None or price is None:
            return None
        machines, low, high = self.need.machines, self.capacity.low, self.capacity.high
        least = min(math.ceil(rate / high), machines)
        most = max(math.ceil(rate / low), machines) if low > 0 else None
        return Estimate(
            per_million(price, machines, rate),
            per_million(price, least, rate),
            math.inf if most is None else per_million(price, most, rate),
        )

    @property
    def cost_at_full_use(self) -> Estimate | None:
        """Of a million requests at the highest rate of a machine."""
        price, rate = self.objective.price_per_hour, self.capacity
        if rate is None or price is None:
            return None
        return Estimate(*(per_million(price, 1, one) for one in (rate.value, rate.high, rate.low)))

    def to_json(self) -> dict[str, Any]:
        """One entry of `options`."""
        found, need = self.measured, self.need
        services = None if found is None else found.services_ms
        requests = self.serving.configuration.requests
        return {
            "model": self.serving.name,
            **self.serving.configuration.to_json(),
            "measured_workers": self.serving.at_once,
            "session": self.serving.settings.to_json(),
            "service_ms": None
            if services is None
            else {"mean": float(services.mean()), **{f"p{q}": float(np.percentile(services, q)) for q in (50, 99)}},
            "highest_rate": None if self.capacity is None else self.capacity.to_json(),
            "need": None
            if need is None
            else {
                "machines": need.machines,
                "workers_per_machine": need.workers,
                "workers": self.workers,
                "cores": self.cores,
                "preview": {**need.preview.to_json(), "rate": need.preview.rate * requests},
                "extrapolated": self.extrapolated,
            },
            "verified": None if self.trial is None else self.trial.to_json(requests),
            "verdict": self.verdict,
            "refused": self.refused or None,
            "memory": {"pss_bytes": self.pss_bytes},
            "cpu_seconds_per_request": None if found is None else found.cpu_seconds,
            "busy_cores": None if found is None else found.cpu_seconds * self.objective.rate,
            "clock": None if found is None else found.clock,
            "wall_by_cpu": None if found is None else found.contention,
            "cost_per_million": None if self.cost is None else self.cost.to_json(),
            "cost_per_million_at_full_use": None if self.cost_at_full_use is None else self.cost_at_full_use.to_json(),
        }
