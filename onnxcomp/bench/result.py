"""The result of a benchmark: summary and every sample, as one JSON object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

from onnxcomp.bench.environment import Environment
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.latency import Latency
from onnxcomp.bench.placement import Placement
from onnxcomp.bench.statistics import Decision
from onnxcomp.bench.trust import Trust
from onnxcomp.bench.tune_result import Tuning
from onnxcomp.memory import Memory
from onnxcomp.model import ModelFile


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one measurement ran under.

    Attributes:
        provider: short name.
        scenario: name.
        batch: samples per run.
        threads: ORT's intra-op threads; 0: its own choice.
    """

    provider: str
    scenario: str
    batch: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


class Measured(Protocol):
    """What every scenario says about one model under one setting."""

    @property
    def setting(self) -> Setting:
        """What it ran under."""

    @property
    def contention(self) -> float | None:
        """Wall by CPU time of what ran alone; None where that is not known."""

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The object under `results`."""


class Compared(Protocol):
    """What every scenario says about the candidates against the reference."""

    @property
    def decisions(self) -> Sequence[Decision]:
        """One per candidate."""

    def contention(self) -> float | None:
        """As that of `Measured`."""

    def to_json(self) -> list[dict[str, Any]]:
        """One object per candidate, under `comparison`."""

    def samples_json(self) -> dict[str, Any]:
        """What the rounds measured."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One model under one setting.

    Attributes:
        model: path as given.
        setting: see `Setting`.
        latency: samples and summary.
        memory: of this process after the runs; other models measured before may still show in it.
        memory_growth_bytes: PSS added since before the session was opened.
        placement: None where this ORT cannot tell.
        open_seconds: opening the session, scan of the file included.
        feeds: what was fed.
    """

    model: str
    setting: Setting
    latency: Latency
    memory: Memory
    memory_growth_bytes: int | None
    placement: Placement | None
    open_seconds: float
    feeds: Feeds

    @property
    def contention(self) -> float:
        """Wall time by CPU time."""
        return self.latency.contention

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The object under `results`."""
        return {
            "model": self.model,
            **self.setting.to_json(),
            **self.latency.to_json(samples=samples),
            "memory": {**self.memory.to_json(), "growth_bytes": self.memory_growth_bytes},
            "placement": None if self.placement is None else self.placement.to_json(),
            "open_seconds": self.open_seconds,
            "feeds": self.feeds.to_json(),
        }


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Everything one benchmark measured.

    Attributes:
        environment, trust: where, and how far to believe it.
        models: fingerprint of each model, reference first.
        results: one per model and setting.
        comparisons: one per setting, each with all candidates; empty for a single model.
        seed: of all random orders.
        seconds: time budget of one setting; of everything in a sweep.
        session: session options in use.
        warnings: what speaks against the settings file that was given.
        tuning: the search for better session settings ('sweep').
    """

    environment: Environment
    trust: Trust
    models: tuple[ModelFile, ...]
    results: tuple[Measured, ...]
    comparisons: tuple[tuple[Setting, Compared], ...]
    seed: int
    seconds: float
    session: dict[str, Any]
    warnings: tuple[str, ...] = ()
    tuning: Tuning | None = None

    @property
    def decided(self) -> bool:
        """Whether every comparison has a verdict."""
        return all(d.verdict != "undecided" for _, c in self.comparisons for d in c.decisions)

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The `bench` object of the command line; without `samples` only the summary."""
        comparison = [{**entry, **setting.to_json()} for setting, one in self.comparisons for entry in one.to_json()]
        out: dict[str, Any] = {
            "environment": self.environment.to_json(),
            "trust": self.trust.to_json(),
            "models": [m.to_json() for m in self.models],
            "session": self.session,
            "seed": self.seed,
            "seconds": self.seconds,
            "results": [r.to_json(samples=samples) for r in self.results],
            "comparison": comparison,
            "warnings": list(self.warnings),
        }
        if self.tuning is not None:
            out["tuning"] = self.tuning.to_json()
        if samples:
            out["comparison_samples"] = [
                {**setting.to_json(), **one.samples_json()} for setting, one in self.comparisons
            ]
        cleaned: dict[str, Any] = finite(out)
        return cleaned


def finite(value: Any) -> Any:
    """The same JSON value with null for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
