"""What the scenario 'server' was asked for, and what it says about one model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from onnxcomp.bench import queueing, slo
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.placement import Placement
from onnxcomp.bench.result import Setting
from onnxcomp.bench.statistics import Estimate
from onnxcomp.bench.traffic import Traffic
from onnxcomp.errors import UsageError

#: latencies in a report, evenly spread
_KEPT = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What a server is asked for.

    Attributes:
        rate: requests per second; None: the highest that meets the objective is sought.
        slo_p99_ms: 99 of 100 requests are to be answered within this time; None: only measured.
        processes: workers are processes; otherwise threads on one session.
    """

    rate: float | None
    slo_p99_ms: float | None
    processes: bool = False

    def __post_init__(self) -> None:
        if self.rate is None and self.slo_p99_ms is None:
            raise UsageError("the scenario 'server' needs a rate, or an objective for p99")
        for name, value in (("rate", self.rate), ("slo_p99_ms", self.slo_p99_ms)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} must be a positive number", where=f"{name}={value:g}")

    @property
    def kind(self) -> str:
        """See `onnxcomp.replicas.KINDS`."""
        return "processes" if self.processes else "threads"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerResult:
    """One model behind one line.

    Attributes:
        model: path as given.
        setting: see `Setting`.
        load: what was asked.
        workers: how many.
        traffic: the run at `rate`, or that of the highest rate that met the objective; that of the lowest
            tried, where none did.
        judgement: of `traffic`, or of the search; None without an objective.
        search: None where a rate was given.
        limit: see `slo.limit`; None where a rate was given.
        expected: the preview at the rate of `traffic`; None where that is beyond what the workers can do.
        expected_rate: the rate whose p99 meets the objective in the preview; None without one.
        feeds: what was fed.
        placement: None where this ORT cannot tell.
        notes: what to know about the numbers.
    """

    model: str
    setting: Setting
    load: Load
    workers: int
    traffic: Traffic
    judgement: slo.Judgement | None
    search: slo.Search | None
    limit: Estimate | None
    expected: queueing.Preview | None
    expected_rate: float | None
    feeds: Feeds
    placement: Placement | None
    notes: tuple[str, ...]

    @property
    def contention(self) -> float | None:
        """Wall by CPU time of the runs of one worker; None for several, which may wait for each other."""
        wall = int((self.traffic.ended_ns - self.traffic.started_ns).sum())
        return wall / max(int(self.traffic.cpu_ns.sum()), 1) if self.workers == 1 else None

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The object under `results`; `samples` adds latencies in the order of arrival."""
        out: dict[str, Any] = {
            "model": self.model,
            **self.setting.to_json(),
            "workers": self.workers,
            "kind": self.load.kind,
            **self.traffic.to_json(),
            "throughput": self.traffic.achieved_rate * self.setting.batch,
            "slo": self._slo(),
            "search": None if self.search is None else self.search.to_json(),
            "preview": None if self.expected is None else self.expected.to_json(),
            "preview_rate": self.expected_rate,
            "memory": self.traffic.memory.to_json(),
            "placement": None if self.placement is None else self.placement.to_json(),
            "feeds": self.feeds.to_json(),
            "notes": list(self.notes),
        }
        if samples:
            found = self.traffic.latency_ms
            out["samples"] = {"wall_ns": [int(1e6 * ms) for ms in found[:: -(-len(found) // _KEPT) or 1]]}
        return out

    def _slo(self) -> Mapping[str, Any] | None:
        if self.judgement is None:
            return None
        met = self.search is not None and self.search.best is not None
        return {
            "p99_ms": self.load.slo_p99_ms,
            "verdict": self.judgement.verdict,
            "reason": self.judgement.reason,
            "highest_rate": self.traffic.rate if met else None,
            "limit_rate": None if self.limit is None else self.limit.to_json(),
        }
