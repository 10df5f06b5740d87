"""The scenario 'workers': N workers of a model as processes, as threads on one session, and on a pack.

The ways take turns in random order, each turn with fresh processes, and a round gives one number
per way: throughput, latency on both clocks, memory. Ratios carry the interval over rounds. A second
set of plain processes is the A/A control.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from onnxcomp import replicas
from onnxcomp.bench import room
from onnxcomp.bench.clock import clock_for
from onnxcomp.bench.contest import Contest, deciding, logs, ratios
from onnxcomp.bench.environment import usable_cores
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.job import Job
from onnxcomp.bench.packs import Served
from onnxcomp.bench.placement import placement
from onnxcomp.bench.turn import Turn, Variant, turn
from onnxcomp.bench.workers_result import WorkersResult
from onnxcomp.replicas import Replicas

#: rounds: at least, as planned, at most
_FEWEST, _USUAL, _MOST = 3, 8, 32

#: seconds of a turn in which the workers run, and a guess of what starting them takes
_SHORTEST, _LONGEST, _START = 0.5, 5.0, 1.0

_RUNS = 5  # of each worker in a turn, at least
_PROBE = 0.2  # seconds

_Round = Mapping[Variant, Turn]


def measure(job: Job, workers: int, models: Sequence[Served]) -> tuple[list[WorkersResult], list[Contest]]:
    """Every way to serve each model with so many workers.

    Args:
        job: options; `max_runs` and `bind` are not used.
        workers: processes, or threads.
        models: those of the job.

    Raises LimitError before more copies are made than fit into memory, and what `replicas.run` raises.
    """
    feeds = job.feeds().few()
    plain = [one.plain for one in models]
    variants = variants_of(plain, workers)
    seconds = _probe(job, feeds, variants)
    rounds = _rounds(job, feeds, variants, seconds)
    placed = [placement(path, provider=job.provider, settings=job.settings) for path in job.paths]
    results = []
    for variant in variants:
        if variant.clone:
            continue
        others = _plain(variant, plain, workers)
        turns = _turns(rounds, variant)
        results.append(
            WorkersResult(
                model=job.names[variant.model],
                setting=job.setting(feeds),
                variant=variant,
                turns=turns,
                feeds=feeds,
                placement=placed[variant.model],
                against={
                    role: ratios(turns, _turns(rounds, other), model=job.names[other.model], variant=other)
                    for role, other in others.items()
                    if other != variant
                },
                same_outputs=all(turns[0].outputs == rounds[0][other].outputs for other in others.values()),
                notes=(*_notes(job, workers), *models[variant.model].notes),
            )
        )
    return results, _contests(job, rounds, variants, plain, workers)


def variants_of(plain: Sequence[int | None], workers: int) -> list[Variant]:
    """What takes turns: of every model one process, N, and N threads; of a pack N processes; a clone.

    `plain` tells of each model which one it is compared with (`Served`).
    """
    found: list[Variant] = []
    for model, other in enumerate(plain):
        if other != model:
            found.append(Variant(model, "pack", workers))
            continue
        found.append(Variant(model, "processes", 1))
        if workers > 1:
            found += [Variant(model, "processes", workers), Variant(model, "threads", workers)]
        if not any(v.clone for v in found):
            found.append(Variant(model, "processes", workers, clone=True))
    return found


def _plain(variant: Variant, plain: Sequence[int | None], workers: int) -> dict[str, Variant]:
    """What a variant is held against: one plain process and N."""
    model = plain[variant.model]
    if model is None:
        return {}
    return {"one": Variant(model, "processes", 1), "processes": Variant(model, "processes", workers)}


def _probe(job: Job, feeds: Feeds, variants: Sequence[Variant]) -> float:
    """Try one process of each model, check that there is room for all, and choose the seconds of a turn."""
    seconds = min(max(job.seconds / (_USUAL * len(variants)) - _START, _SHORTEST), _LONGEST)
    crowd = max(v.workers for v in variants)
    slowed = max(crowd * max(job.settings.threads, 1) / usable_cores(), 1.0)
    for model in range(len(job.paths)):
        job.tell(f"trying {job.names[model]}", 0.0)
        one = turn(_run(job, feeds, Variant(model, "processes", 1), _PROBE))
        room.check(one.memory["ran"], crowd, name=job.names[model])
        seconds = max(seconds, _RUNS * slowed * one.wall_ns_median / 1e9)
    return seconds


def _rounds(job: Job, feeds: Feeds, variants: Sequence[Variant], seconds: float) -> list[_Round]:
    generator = np.random.default_rng(job.seed)
    rounds: list[_Round] = []
    start = time.monotonic()
    while len(rounds) < _MOST:
        elapsed = time.monotonic() - start
        if len(rounds) >= _FEWEST and elapsed * (1 + 1 / len(rounds)) > job.seconds:
            break
        one: dict[Variant, Turn] = {}
        for index in generator.permutation(len(variants)):
            variant = variants[int(index)]
            share = max((len(rounds) + len(one) / len(variants)) / _FEWEST, 0.0)
            job.tell(
                variant.label(job.names[variant.model]), min(share, max((time.monotonic() - start) / job.seconds, 0.0))
            )
            one[variant] = turn(_run(job, feeds, variant, seconds))
        rounds.append(one)
    return rounds


def _run(job: Job, feeds: Feeds, variant: Variant, seconds: float) -> Replicas:
    return replicas.run(
        job.paths[variant.model],
        variant.workers,
        feeds=feeds.arrays,
        seconds=seconds,
        provider=job.provider,
        settings=job.settings,
        kind="threads" if variant.kind == "threads" else "processes",
        trim=variant.kind == "pack",
    )


def _turns(rounds: Sequence[_Round], variant: Variant) -> tuple[Turn, ...]:
    return tuple(one[variant] for one in rounds)


def _contests(
    job: Job, rounds: Sequence[_Round], variants: Sequence[Variant], plain: Sequence[int | None], workers: int
) -> list[Contest]:
    """Per model: its threads, and the packs that are held against it, against its plain processes."""
    clock = "wall" if clock_for(job.provider, job.settings.threads).per_process else "thread"
    control = tuple(
        float(value)
        for variant in variants
        if variant.clone
        for value in logs(
            _turns(rounds, variant), _turns(rounds, _plain(variant, plain, workers)["processes"]), deciding(clock)
        )
    )
    contests = []
    for model in range(len(plain)):
        reference = Variant(model, "processes", workers)
        arms = [
            v for v in variants if v.kind != "processes" and _plain(v, plain, workers).get("processes") == reference
        ]
        if arms:
            contests.append(
                Contest(
                    names=tuple(v.label(job.names[v.model]) for v in [reference, *arms]),
                    turns=tuple(_turns(rounds, v) for v in [reference, *arms]),
                    control=control,
                    clock=clock,
                    seed=job.seed,
                    delta=job.delta,
                )
            )
    return contests


def _notes(job: Job, workers: int) -> tuple[str, ...]:
    notes = []
    cores, threads = usable_cores(), max(job.settings.threads, 1)
    if workers * threads > cores:
        notes.append(
            f"{workers} workers of {threads} threads share {cores} cores: they wait for each other, "
            "and only the CPU time of a run says what it costs"
        )
    if job.provider != "cpu":
        notes.append(f"the memory is the host's; what each worker holds on the device of '{job.provider}' is not in it")
    return tuple(notes)
