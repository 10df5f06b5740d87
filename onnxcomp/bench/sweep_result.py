"""What a sweep found: one row per configuration, and which of them nobody beats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.bench import statistics
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.field import Block, Field
from onnxcomp.bench.latency import PERCENTILES
from onnxcomp.bench.result import Setting
from onnxcomp.settings import SessionSettings

#: fewer rounds than this give no interval
FEWEST_ROUNDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResult:
    """One configuration: a model under a setting.

    The row in `results` has the keys of every scenario (model, provider, scenario, batch, threads,
    latency_ms, throughput), and

    - `shape`: sizes of symbolic axes, by name; `spinning`, `optimization`: session settings;
    - `throughput_interval`: {low, high} of the samples per second of one caller;
    - `cpu_ms_per_sample`, `samples_per_core_second`: {value, low, high}: CPU time of all threads by samples,
      and its inverse, the throughput per core;
    - `front`: true where no configuration of the same provider and shape has a lower p50 at no more CPU time a
      sample, or the other way round, beyond the noise; `dominated_by`: one that has, 'MODEL, CONFIGURATION', or
      null;
    - `front_p99`: the same for p99 and without intervals; null where p99 is not estimable;
    - `configuration`: the setting in words; `rounds`, `runs`, `contention`; `refined`: whether it was measured
      beyond the screening;
    - `aa`: {ratio, low, high, ok}: p50 of a clone of the first configuration by that of its original, the same
      in every row: where it is not ok, the whole sweep is in doubt.
    """

    model: str
    setting: Setting
    settings: SessionSettings
    shape: Mapping[str, int]
    feeds: Feeds
    blocks: tuple[Block, ...]
    refined: bool
    configuration: str
    front: bool
    dominated_by: str | None
    front_p99: bool | None
    aa: Mapping[str, Any]

    @property
    def contention(self) -> float:
        """Wall time by CPU time."""
        return sum(sum(b.wall_ns) for b in self.blocks) / max(sum(sum(b.cpu_ns) for b in self.blocks), 1)

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The object under `results`; `samples` adds every run; each round was a session."""
        wall = pooled(self.blocks) / 1e6
        rate = _over_rounds(self.blocks, lambda b: b.samples * len(b.wall_ns) / sum(b.wall_ns) * 1e9)
        per_core = _over_rounds(self.blocks, lambda b: 1e9 / b.cpu_per_sample_ns)
        out: dict[str, Any] = {
            "model": self.model,
            **self.setting.to_json(),
            "shape": dict(self.shape),
            "spinning": self.settings.spinning,
            "optimization": self.settings.optimization,
            "configuration": self.configuration,
            "latency_ms": {name: statistics.percentile(wall, share).to_json() for name, share in PERCENTILES},
            "throughput": rate.value,
            "throughput_interval": {"low": rate.low, "high": rate.high},
            "cpu_ms_per_sample": _over_rounds(self.blocks, lambda b: b.cpu_per_sample_ns / 1e6).to_json(),
            "samples_per_core_second": per_core.to_json(),
            "front": self.front,
            "dominated_by": self.dominated_by,
            "front_p99": self.front_p99,
            "rounds": len(self.blocks),
            "runs": len(wall),
            "refined": self.refined,
            "contention": self.contention,
            "aa": dict(self.aa),
            "memory": None,
            "placement": None,
            "feeds": self.feeds.to_json(),
        }
        if samples:
            out["samples"] = {
                "wall_ns": [ns for b in self.blocks for ns in b.wall_ns],
                "cpu_ns": [ns for b in self.blocks for ns in b.cpu_ns],
                "per_session": [len(b.wall_ns) for b in self.blocks],
            }
        return out


def dominating(field: Field, group: Sequence[int]) -> dict[int, int | None]:
    """For each entry of the group, one that beats it; None where none does.

    One beats another where it is better in the median latency or in CPU time a sample by more than the noise
    (the t interval over common rounds), and in the other no worse on average.
    """
    return {one: next((rival for rival in group if _beats(field, rival, one)), None) for one in group}


def tail_front(blocks: Mapping[int, Sequence[Block]]) -> dict[int, bool | None]:
    """Whether an entry is on the front of p99 against CPU time a sample; None where p99 is not estimable."""
    points: dict[int, tuple[float, float]] = {}
    for index, some in blocks.items():
        p99 = statistics.percentile(pooled(some), 0.99).value
        if p99 is not None:
            points[index] = (p99, float(np.mean([b.cpu_per_sample_ns for b in some])))
    return {
        index: None
        if index not in points
        else not any(_below(point, points[index]) for other, point in points.items() if other != index)
        for index in blocks
    }


def pooled(blocks: Sequence[Block]) -> np.ndarray:
    """Wall times of all rounds, ns."""
    return np.concatenate([np.asarray(b.wall_ns, dtype=np.float64) for b in blocks])


def _beats(field: Field, rival: int, one: int) -> bool:
    if rival == one:
        return False
    latency = field.logs(rival, one, lambda b: b.latency_ns)
    cost = field.logs(rival, one, lambda b: b.cpu_per_sample_ns)
    if len(latency) < FEWEST_ROUNDS:
        return False
    figures = [statistics.mean_interval(logs) for logs in (latency, cost)]
    return any(f.high < 0 for f in figures) and all(f.value <= 0 for f in figures)


def _below(point: tuple[float, float], other: tuple[float, float]) -> bool:
    return point != other and point[0] <= other[0] and point[1] <= other[1]


def _over_rounds(blocks: Sequence[Block], pick: Any) -> statistics.Estimate:
    """Geometric mean over rounds with its interval."""
    values = [pick(b) for b in blocks]
    if len(values) < 2:
        return statistics.Estimate(values[0], values[0], values[0])
    return statistics.ratio_interval(np.log(values))
