"""The scenario 'throughput': samples per second over batch sizes, threads and callers, and which is best.

Callers are threads on one session, or processes, each in a closed loop. All settings of all models
take turns in random order, each turn with fresh processes, so that none has the quiet minute for
itself; a round gives one number per setting.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp import replicas, worker
from onnxcomp.bench import room, statistics
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.job import Job
from onnxcomp.bench.paired import Paired
from onnxcomp.bench.placement import placement
from onnxcomp.bench.result import Setting
from onnxcomp.bench.turn import Turn, Variant, turn
from onnxcomp.bench.workers_result import WorkersResult

#: rounds: at least, as planned, at most
_FEWEST, _USUAL, _MOST = 3, 6, 32

#: seconds of a turn in which the callers run, a guess of what starting them takes, and of the trial
_SHORTEST, _LONGEST, _START, _PROBE = 0.3, 5.0, 1.0, 0.1


@dataclasses.dataclass(frozen=True)
class ThroughputResult:
    """One setting of one model.

    Attributes:
        found: what all rounds say.
        best: whether no setting of this model and provider gave more samples per second.
        of_best: its samples per second by those of the best, with the interval over rounds.
    """

    found: WorkersResult
    best: bool
    of_best: statistics.Estimate

    @property
    def model(self) -> str:
        """Path as given."""
        return self.found.model

    @property
    def contention(self) -> float | None:
        """See `WorkersResult`."""
        return self.found.contention

    @property
    def setting(self) -> Setting:
        """See `Setting`."""
        return self.found.setting

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The object under `results`."""
        return {**self.found.to_json(samples=samples), "best": self.best, "of_best": self.of_best.to_json()}


@dataclasses.dataclass(frozen=True)
class _Arm:
    """A model under a job's setting with so many callers."""

    job: int
    variant: Variant


def measure(
    jobs: Sequence[Job], callers: Sequence[int], *, processes: bool = False
) -> tuple[list[ThroughputResult], list[tuple[Setting, Paired]]]:
    """Every setting of every model, and with several models the best settings of each against the first's.

    Args:
        jobs: one per setting; their time budgets add up.
        callers: of each job.
        processes: callers are processes; otherwise threads on one session.

    Raises what `replicas.run` raises, and LimitError where so many processes do not fit into memory.
    """
    feeds = [job.feeds().few() for job in jobs]
    kind = "processes" if processes else "threads"
    models = range(len(jobs[0].paths))
    arms = [_Arm(index, Variant(model, kind, callers[index])) for index in range(len(jobs)) for model in models]
    if len(models) > 1:
        arms += [_Arm(index, Variant(0, kind, callers[index], clone=True)) for index in range(len(jobs))]
    rounds = _rounds(jobs, feeds, arms)
    results: list[ThroughputResult] = []
    compared: list[tuple[Setting, Paired]] = []
    for provider in dict.fromkeys(job.provider for job in jobs):
        mine = [arm for arm in arms if jobs[arm.job].provider == provider and not arm.variant.clone]
        best = [
            max((arm for arm in mine if arm.variant.model == model), key=lambda arm: _rate(rounds[arm], feeds[arm.job]))
            for model in models
        ]
        results += [_result(jobs[arm.job], feeds, rounds, arm, best[arm.variant.model]) for arm in mine]
        if len(best) > 1:
            setting = jobs[best[0].job].setting(feeds[best[0].job])
            compared.append((setting, _paired(jobs[best[0].job], feeds, rounds, best)))
    return results, compared


def _rounds(jobs: Sequence[Job], feeds: Sequence[Feeds], arms: Sequence[_Arm]) -> dict[_Arm, list[Turn]]:
    budget = sum(job.seconds for job in jobs)
    seconds = min(max(budget / (_USUAL * len(arms)) - _START, _SHORTEST), _LONGEST)
    for arm in arms:
        if arm.variant.kind == "processes" and arm.variant.workers > 1:
            one = _run(jobs[arm.job], feeds[arm.job], dataclasses.replace(arm.variant, workers=1), _PROBE)
            room.check(one.memory["ran"], arm.variant.workers, name=jobs[arm.job].names[arm.variant.model])
    generator = np.random.default_rng(jobs[0].seed)
    found: dict[_Arm, list[Turn]] = {arm: [] for arm in arms}
    begun = time.monotonic()
    for count in range(_MOST):
        if count >= _FEWEST and (time.monotonic() - begun) * (1 + 1 / count) > budget:
            break
        for place, index in enumerate(generator.permutation(len(arms))):
            arm = arms[int(index)]
            job = jobs[arm.job]
            share = max((count + place / len(arms)) / _MOST, (time.monotonic() - begun) / budget)
            worker.report(arm.variant.label(job.names[arm.variant.model]), min(share, 1.0))
            found[arm].append(_run(job, feeds[arm.job], arm.variant, seconds))
    return found


def _run(job: Job, feeds: Feeds, variant: Variant, seconds: float) -> Turn:
    return turn(
        replicas.run(
            job.paths[variant.model],
            variant.workers,
            feeds=feeds.arrays,
            seconds=seconds,
            provider=job.provider,
            settings=job.settings,
            kind=variant.kind,
        )
    )


def _rate(turns: Sequence[Turn], feeds: Feeds) -> float:
    return feeds.samples * float(np.mean([t.runs_per_second for t in turns]))


def _seconds(turns: Sequence[Turn], feeds: Feeds) -> tuple[float, ...]:
    return tuple(1 / (feeds.samples * t.runs_per_second) for t in turns)


def _result(
    job: Job, feeds: Sequence[Feeds], rounds: Mapping[_Arm, Sequence[Turn]], arm: _Arm, best: _Arm
) -> ThroughputResult:
    logs = np.log(np.asarray(_seconds(rounds[best], feeds[best.job])) / _seconds(rounds[arm], feeds[arm.job]))
    return ThroughputResult(
        WorkersResult(
            model=job.names[arm.variant.model],
            setting=job.setting(feeds[arm.job]),
            variant=arm.variant,
            turns=tuple(rounds[arm]),
            feeds=feeds[arm.job],
            placement=placement(job.paths[arm.variant.model], provider=job.provider, settings=job.settings),
            against={},
            same_outputs=True,
            notes=(),
        ),
        best=arm == best,
        of_best=statistics.ratio_interval(logs),
    )


def _paired(job: Job, feeds: Sequence[Feeds], rounds: Mapping[_Arm, Sequence[Turn]], best: Sequence[_Arm]) -> Paired:
    """The best setting of each model; the control is a second set of the reference at its best."""
    clone = _Arm(best[0].job, dataclasses.replace(best[0].variant, clone=True))
    return Paired(
        names=tuple(
            f"{arm.variant.label(job.names[arm.variant.model])}, batch {feeds[arm.job].samples}" for arm in best
        ),
        values=tuple(_seconds(rounds[arm], feeds[arm.job]) for arm in best),
        control=_seconds(rounds[clone], feeds[clone.job]),
        what="seconds per sample",
        seed=job.seed,
        delta=job.delta,
    )
