"""The plan as a whole: which option to start, and how models compare."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from onnxcomp.bench.environment import Environment
from onnxcomp.bench.result import finite
from onnxcomp.bench.slo import Judgement
from onnxcomp.bench.trust import Trust
from onnxcomp.model import ModelFile
from onnxcomp.plan.result import Objective, Option
from onnxcomp.plan.verify import rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Everything about one model.

    Attributes:
        name: as given.
        options: one per configuration.
        notes: what was tried or left out on the way to the best.
        judgement: of the best, or why there is none.
        nearest: what would be possible where nothing is; None where it was not measured.
    """

    name: str
    options: tuple[Option, ...]
    notes: tuple[str, ...]
    judgement: Judgement
    nearest: Mapping[str, Any] | None

    @property
    def best(self) -> Option | None:
        """The first by `rank` whose trial has this model's verdict, or the first of all; None where nothing holds."""
        if self.judgement.verdict == "missed":
            return None
        ranked = rank(self.options)
        judged = [one for one in ranked if one.verdict == self.judgement.verdict]
        return next(iter([*judged, *ranked]), None)

    def to_json(self) -> dict[str, Any]:
        """One entry of `plans`."""
        best = self.best
        return {
            "model": self.name,
            "verdict": self.judgement.verdict,
            "reason": self.judgement.reason or None,
            "best": None if best is None else self.options.index(best),
            "nearest": None if best is not None or self.nearest is None else dict(self.nearest),
            "options": [one.to_json() for one in self.options],
            "notes": list(self.notes),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How to serve models at a rate.

    Attributes:
        objective: what was asked for.
        environment, trust: where it was measured, and how far to believe it.
        models: fingerprint of each, reference first.
        plans: of each.
        notes: on models, for example why one has no pack.
        seed: of all random orders.
        seconds: time budget of each model.
    """

    objective: Objective
    environment: Environment
    trust: Trust
    models: tuple[ModelFile, ...]
    plans: tuple[ModelPlan, ...]
    notes: tuple[str, ...]
    seed: int
    seconds: float

    @property
    def verdict(self) -> str:
        """'met' where one of the models has an option that was; otherwise 'undecided' before 'missed'."""
        found = {one.judgement.verdict for one in self.plans}
        return next(verdict for verdict in ("met", "undecided", "missed") if verdict in found)

    @property
    def best(self) -> Option | None:
        """The option to start, of all models; None where nothing holds the objective.

        On as many machines and cores, that of the model whose requests take least of them.
        """
        found = [one.best for one in self.plans if one.judgement.verdict == self.verdict]
        return min((one for one in found if one is not None), key=_taken, default=None)

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp plan --json`, schema onnxcomp/plan/1."""
        out = {
            "environment": self.environment.to_json(),
            "trust": self.trust.to_json(),
            "models": [one.to_json() for one in self.models],
            "objective": self.objective.to_json(),
            "verdict": self.verdict,
            "best": None if self.best is None else start(self.best),
            "plans": [one.to_json() for one in self.plans],
            "comparison": [compared(self.plans[0], one) for one in self.plans[1:]],
            "notes": list(self.notes),
            "seed": self.seed,
            "seconds": self.seconds,
        }
        cleaned: dict[str, Any] = finite(out)
        return cleaned


def start(option: Option) -> dict[str, Any]:
    """What to start on each machine; `onnxcomp pack --plan` reads workers, threads and batch of it."""
    configuration, need = option.serving.configuration, option.need
    workers = configuration.workers if need is None else need.workers
    name = PurePath(option.serving.name)
    made = configuration.kind == "pack" and name.suffix == ".onnx"
    return {
        "model": os.fspath(name),
        "kind": configuration.kind,
        "workers": workers,
        "threads": configuration.threads,
        "batch": configuration.batch,
        "queue_delay_ms": 0.0,
        "machines": 1 if need is None else need.machines,
        "session": option.serving.settings.to_json(),
        "pack_command": f"onnxcomp pack {name} -o packs/{name.stem} --workers {max(workers, 2)}" if made else None,
        "verdict": option.verdict or "undecided",
        "cost_per_million": None if option.cost is None else option.cost.to_json(),
    }


def _taken(option: Option) -> tuple[float, ...]:
    """Machines, cores, and CPU time of a request."""
    machines = math.inf if option.need is None else option.need.machines
    return machines, option.cores, math.inf if option.measured is None else option.measured.cpu_seconds


def compared(reference: ModelPlan, candidate: ModelPlan) -> dict[str, Any]:
    """Workers that each needs, and a sentence on it."""
    one, other = candidate.best, reference.best
    return {
        "candidate": candidate.name,
        "reference": reference.name,
        "workers": {"candidate": _workers(one), "reference": _workers(other)},
        "cores": {"candidate": one and one.cores, "reference": other and other.cores},
        "statement": _statement(reference, candidate),
    }


def _workers(option: Option | None) -> int | None:
    return None if option is None else option.workers


def _statement(reference: ModelPlan, candidate: ModelPlan) -> str:
    names = PurePath(candidate.name).name, PurePath(reference.name).name
    one, other = candidate.best, reference.best
    if one is None or other is None:
        without = [name for name, best in zip(names, (one, other), strict=True) if best is None]
        return f"nothing that was measured of {' and '.join(without)} holds the objective"
    threaded = {one.serving.configuration.threads, other.serving.configuration.threads} != {1}
    counts, noun = ((one.cores, other.cores), "core") if threaded else ((one.workers, other.workers), "worker")
    words = f"{names[0]} needs {counts[0]} {noun}{'' if counts[0] == 1 else 's'} where {names[1]} needs {counts[1]}"
    doubts = []
    if {one.verdict, other.verdict} != {"met"}:
        doubts.append("not all confirmed")
    if one.extrapolated or other.extrapolated:
        doubts.append("more than run at once here, assumed independent of each other")
    return words + (f" ({'; '.join(doubts)})" if doubts else "")
