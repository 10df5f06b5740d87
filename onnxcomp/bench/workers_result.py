"""What the scenario 'workers' says about one way to serve one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcomp.bench import latency, statistics
from onnxcomp.bench.contest import Ratios
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.placement import Placement
from onnxcomp.bench.result import Setting
from onnxcomp.bench.turn import Turn, Variant
from onnxcomp.memory import Memory
from onnxcomp.replicas import POINTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkersResult:
    """One way to serve one model, under one setting.

    Attributes:
        model: path as given.
        setting: see `Setting`.
        variant: see `Variant`.
        turns: one per round.
        feeds: what was fed.
        placement: None where this ORT cannot tell.
        against: ratios to 'one' plain process of the model (for a pack, of the first that is none), and to as
            many plain 'processes'; without what it is itself.
        same_outputs: whether the outputs are those of the plain processes, byte by byte.
        notes: what to know about the numbers.
    """

    model: str
    setting: Setting
    variant: Variant
    turns: tuple[Turn, ...]
    feeds: Feeds
    placement: Placement | None
    against: Mapping[str, Ratios]
    same_outputs: bool
    notes: tuple[str, ...]

    @property
    def contention(self) -> float | None:
        """Wall by CPU time of one worker; None for several, which may wait for each other."""
        if self.variant.workers > 1:
            return None
        return sum(t.wall_ns_median for t in self.turns) / max(sum(t.cpu_ns for t in self.turns), 1.0)

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The object under `results`; `samples` adds the rounds."""
        wall = np.concatenate([t.wall_ns for t in self.turns]) / 1e6
        rate = statistics.mean_interval([t.runs_per_second * self.feeds.samples for t in self.turns])
        out: dict[str, Any] = {
            "model": self.model,
            **self.setting.to_json(),
            "workers": self.variant.workers,
            "kind": self.variant.kind,
            "latency_ms": {name: statistics.percentile(wall, share).to_json() for name, share in latency.PERCENTILES},
            "throughput": rate.value,
            "throughput_interval": {"low": max(rate.low, 0.0), "high": rate.high},
            "runs": sum(t.runs for t in self.turns),
            "outliers": statistics.outliers(wall),
            "cpu_ms_per_run": float(np.median([t.cpu_ns_per_run for t in self.turns])) / 1e6,
            "memory": {
                **self._memory("ran").to_json(),
                **{point: self._memory(point).to_json() for point in POINTS if point != "ran"},
            },
            "placement": None if self.placement is None else self.placement.to_json(),
            "start_seconds": float(np.median([t.start_seconds for t in self.turns])),
            "open_seconds": float(np.median([t.load_seconds for t in self.turns])),
            "against": {role: found.to_json() for role, found in self.against.items()},
            "outputs_equal": all(t.outputs_equal and t.outputs == self.turns[0].outputs for t in self.turns),
            "same_outputs": self.same_outputs,
            "feeds": self.feeds.to_json(),
            "notes": list(self.notes),
        }
        if samples:
            out["rounds"] = [t.to_json() for t in self.turns]
        return out

    def _memory(self, point: str) -> Memory:
        """The median over rounds of each field."""
        columns = zip(*(dataclasses.astuple(t.memory[point]) for t in self.turns), strict=True)
        return Memory(*(None if None in column else int(np.median(column)) for column in columns))
