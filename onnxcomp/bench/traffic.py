"""One open-loop run in the order of arrival, and what it says: latency, lateness, queue, use of the workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.bench import dependent, statistics
from onnxcomp.bench.latency import PERCENTILES
from onnxcomp.memory import Memory
from onnxcomp.replicas import Served

#: the first requests find an empty line: this share of them counts nowhere
WARM_UP = 0.05


def poisson(rate: float, seconds: float, seed: int) -> np.ndarray:
    """When requests are due, in ns: int64, ascending, `rate` a second on average.

    The same seed gives the same pattern at every rate, only faster or slower, so that rates differ by
    nothing but their speed (common random numbers).
    """
    generator = np.random.default_rng(seed)
    most = rate * seconds + 10 * (rate * seconds) ** 0.5 + 10
    due = np.cumsum(generator.standard_exponential(int(most))) / rate
    return np.asarray(due[due < seconds] * 1e9, dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests of one run, one entry each, int64 ns from the start; those nobody took have no entry but in `due_ns`.

    Attributes:
        rate: requests per second that were asked for.
        workers: how many served.
        due_ns: when requests were due.
        taken_ns: when a worker was free for it.
        started_ns, ended_ns: of the run.
        cpu_ns: CPU time of its thread.
        failed: bool, whether the run raised an error.
        error: the first of these; '' where there is none.
        gave_up_ns: when the run was ended since a request had waited too long; None: it was not.
        memory: of all workers after the run.
    """

    rate: float
    workers: int
    due_ns: np.ndarray
    taken_ns: np.ndarray
    started_ns: np.ndarray
    ended_ns: np.ndarray
    cpu_ns: np.ndarray
    failed: np.ndarray
    error: str = ""
    gave_up_ns: int | None = None
    memory: Memory = dataclasses.field(default_factory=Memory)

    @property
    def served(self) -> int:
        """How many were taken; the numbers of all that were are 0 ... served - 1."""
        return len(self.started_ns)

    @property
    def abandoned(self) -> int:
        """How many were due when the run was ended, and never taken."""
        if self.gave_up_ns is None:
            return 0
        return max(int(np.count_nonzero(self.due_ns <= self.gave_up_ns)) - self.served, 0)

    @property
    def latency_ms(self) -> np.ndarray:
        """From due to answered, in the order of arrival, without failures and without the warm-up.

        What was abandoned counts as long as it had waited: at least so long would it have taken.
        """
        ends = self.ended_ns - self.due_ns[: self.served]
        if self.abandoned:
            left = self.due_ns[self.served : self.served + self.abandoned]
            ends = np.concatenate([ends, (self.gave_up_ns or 0) - left])
        good = np.ones(len(ends), dtype=bool)
        good[: self.served] = ~self.failed
        good[: self._skipped(len(ends))] = False
        found: np.ndarray = ends[good] / 1e6
        return found

    @property
    def service_ms(self) -> np.ndarray:
        """The runs alone."""
        found: np.ndarray = (self.ended_ns - self.started_ns)[self._skipped(self.served) :] / 1e6
        return found

    @property
    def lateness_ms(self) -> np.ndarray:
        """From when a request was due and a worker free for it, to the start of its run: our own delay."""
        ready = np.maximum(self.due_ns[: self.served], self.taken_ns)
        found: np.ndarray = (self.started_ns - ready)[self._skipped(self.served) :] / 1e6
        return found

    @property
    def seconds(self) -> float:
        """From the start to the last answer, or to the end of the run."""
        ends = [int(array.max()) for array in (self.ended_ns, self.due_ns[: self.served]) if len(array)]
        return max([*ends, self.gave_up_ns or 0, 1]) / 1e9

    @property
    def achieved_rate(self) -> float:
        """Answers per second."""
        return (self.served - int(self.failed.sum())) / self.seconds

    @property
    def utilisation(self) -> float:
        """Share of the workers' time that was work."""
        return float((self.ended_ns - self.started_ns).sum()) / 1e9 / self.seconds / self.workers

    @property
    def waiting(self) -> np.ndarray:
        """How many waited in line when each request came, itself not counted (arrivals see time averages)."""
        before = np.searchsorted(np.sort(self.started_ns), self.due_ns, side="right")
        found: np.ndarray = np.maximum(np.arange(len(self.due_ns)) - before, 0)
        return found[: self.served + self.abandoned][self._skipped(self.served + self.abandoned) :]

    def percentile(self, share: float) -> statistics.Percentile:
        """Of the latency in ms; not estimable where nothing was answered, or too little."""
        found = self.latency_ms
        if not len(found):
            needed = statistics.samples_needed(share)
            return statistics.Percentile(None, None, None, False, needed, 0, float("nan"))
        return dependent.percentile(found, share)

    def to_json(self) -> dict[str, Any]:
        """Everything but the single requests."""
        waiting, lateness, service = self.waiting, self.lateness_ms, self.service_ms
        return {
            "latency_ms": {name: self.percentile(share).to_json() for name, share in PERCENTILES},
            "rate": self.rate,
            "achieved_rate": self.achieved_rate,
            "utilisation": self.utilisation,
            "queue": {"mean": _mean(waiting), "max": int(waiting.max(initial=0))},
            "lateness_ms": {"p50": _quantile(lateness, 0.5), "p99": _quantile(lateness, 0.99)},
            "service_ms": {"mean": _mean(service), "p50": _quantile(service, 0.5), "p99": _quantile(service, 0.99)},
            "service_outliers": statistics.outliers(service) if len(service) else 0,
            "requests": self.served,
            "warm_up_requests": self._skipped(self.served + self.abandoned),
            "errors": int(self.failed.sum()),
            "first_error": self.error or None,
            "abandoned": self.abandoned,
        }

    @staticmethod
    def _skipped(count: int) -> int:
        return int(WARM_UP * count)


def gather(
    served: Sequence[Served], *, rate: float, workers: int, due_ns: np.ndarray, memory: Memory | None = None
) -> Traffic:
    """The traffic that these workers served together."""
    order = np.argsort(np.concatenate([s.number for s in served]))
    ends = [s.gave_up_ns for s in served if s.gave_up_ns is not None]
    return Traffic(
        rate=rate,
        workers=workers,
        due_ns=due_ns,
        taken_ns=np.concatenate([s.taken_ns for s in served])[order],
        started_ns=np.concatenate([s.started_ns for s in served])[order],
        ended_ns=np.concatenate([s.ended_ns for s in served])[order],
        cpu_ns=np.concatenate([s.cpu_ns for s in served])[order],
        failed=np.concatenate([s.failed for s in served])[order],
        error=next((s.error for s in served if s.error), ""),
        gave_up_ns=min(ends, default=None),
        memory=memory or Memory(),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _quantile(values: np.ndarray, share: float) -> float | None:
    """None where so few values say nothing of it."""
    return float(np.quantile(values, share)) if len(values) >= statistics.samples_needed(share) else None
