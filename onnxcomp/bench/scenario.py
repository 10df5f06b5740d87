"""Measure models on this machine: one public function, a module per scenario."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
from collections.abc import Mapping, Sequence

from onnxcomp.bench import latency, packs, single, statistics, trust
from onnxcomp.bench import workers as workers_scenario
from onnxcomp.bench.compare import Comparison
from onnxcomp.bench.contest import Contest
from onnxcomp.bench.environment import capture, usable_cores
from onnxcomp.bench.job import Job
from onnxcomp.bench.result import Benchmark, Result, Setting
from onnxcomp.bench.workers_result import WorkersResult
from onnxcomp.errors import UsageError, nearest
from onnxcomp.model import fingerprint
from onnxcomp.runtime import SessionSettings

ModelPath = str | os.PathLike[str]

SCENARIOS: tuple[str, ...] = ("latency", "workers")


def bench(
    models: ModelPath | Sequence[ModelPath],
    *,
    provider: str | Sequence[str] = "cpu",
    scenario: str = "latency",
    data: str | os.PathLike[str] | None = None,
    batch: int | Sequence[int] = 1,
    sizes: Mapping[str, int] | None = None,
    threads: int | Sequence[int] = 1,
    seconds: float = 20.0,
    seed: int | None = None,
    settings: SessionSettings | None = None,
    delta: float = statistics.DELTA,
    max_runs: int = latency.MAX_RUNS,
    bind: bool | None = None,
    workers: int | Sequence[int] | None = None,
    pack: bool = False,
) -> Benchmark:
    """Measure one model, or compare several; the first is the reference.

    Args:
        models: paths of `.onnx` files with the same inputs; for 'workers' folders of packs, too.
        provider: short names of `onnxcomp.runtime.PROVIDERS`.
        scenario: 'latency': one caller, one run after the other. 'workers': several callers at once, as
            processes, as threads on one session, and on a pack.
        data: what `onnxcomp.data.open_source` takes; None: seeded noise.
        batch: samples per run.
        sizes: sizes of symbolic axes, for noise.
        threads: ORT's intra-op threads; 0 leaves it to ORT.
        seconds: time budget for each combination of provider, batch, threads and workers. A comparison
            makes its first eight rounds in any case, 'workers' three.
        seed: of all random orders; None draws one, which the result tells.
        settings: other session options; its `threads` is not used.
        delta: a smaller relative difference is none.
        max_runs: at most so many runs of a single model count ('latency').
        bind: use IO binding; None: on every provider but the CPU ('latency').
        workers: how many ('workers'); None: one per core.
        pack: make a pack of each model for the occasion, and measure it, too ('workers').

    Raises UsageError, and what `open_session` and `Batches` raise.
    """
    paths = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    providers = [provider] if isinstance(provider, str) else list(provider)
    batches = [batch] if isinstance(batch, int) else list(batch)
    counts = [threads] if isinstance(threads, int) else list(threads)
    crowds = _crowds(workers, scenario, pack=pack)
    lists: dict[str, Sequence[object]] = {"provider": providers, "batch": batches, "threads": counts, "workers": crowds}
    _check(paths, scenario, seconds, delta, lists)
    given = packs.served(paths)
    packs.check(given, scenario, providers, made=pack)
    settings = settings or SessionSettings()
    seed = secrets.randbits(48) if seed is None else seed
    environment, before = capture(), trust.read_counters()
    results: list[Result | WorkersResult] = []
    comparisons: list[tuple[Setting, Comparison | Contest]] = []
    every = list(itertools.product(providers, batches, counts, crowds))
    with packs.made(given, workers=max(crowds), sizes=sizes) if pack else contextlib.nullcontext(given) as served:
        for index, (name, size, count, crowd) in enumerate(every):
            job = Job(
                paths=tuple(one.path for one in served),
                names=tuple(one.name for one in served),
                provider=name,
                scenario=scenario,
                data=data,
                batch=size,
                sizes=sizes,
                settings=dataclasses.replace(settings, threads=count),
                seconds=seconds,
                seed=seed + index,
                delta=delta,
                max_runs=max_runs,
                bind=bind,
                done=index / len(every),
                share=1 / len(every),
            )
            measured, compared = workers_scenario.measure(job, crowd, served) if crowd else single.measure(job)
            results += measured
            comparisons += [(measured[0].setting, one) for one in compared]
    return Benchmark(
        environment=environment,
        trust=trust.judge(before, trust.read_counters(), environment, _contention(results, comparisons)),
        models=tuple(fingerprint(one.path) for one in given),
        results=tuple(results),
        comparisons=tuple(comparisons),
        seed=seed,
        seconds=seconds,
        session={
            "optimization": settings.optimization,
            "config": dict(settings.config),
            "disabled_optimizers": list(settings.disabled_optimizers),
        },
    )


def _crowds(workers: int | Sequence[int] | None, scenario: str, *, pack: bool) -> list[int]:
    """The worker counts; a zero for a scenario without workers."""
    if scenario != "workers":
        if workers is not None or pack:
            raise UsageError("workers and packs are for the scenario 'workers'", where=f"scenario={scenario}")
        return [0]
    if workers is None:
        return [usable_cores()]
    crowds = [workers] if isinstance(workers, int) else list(workers)
    if any(crowd < 1 for crowd in crowds):
        raise UsageError("at least one worker is needed", where=f"workers={workers}")
    return crowds


def _check(
    paths: Sequence[ModelPath],
    scenario: str,
    seconds: float,
    delta: float,
    lists: Mapping[str, Sequence[object]],
) -> None:
    if scenario not in SCENARIOS:
        raise UsageError(
            f"unknown scenario '{scenario}'",
            hint=nearest(scenario, SCENARIOS) or f"there is: {', '.join(SCENARIOS)}",
        )
    if not paths:
        raise UsageError("no model to measure")
    for name, values in lists.items():
        if not values:
            raise UsageError(f"no {name} given")
    if not seconds > 0:
        raise UsageError("the time budget must be positive", where=f"seconds={seconds}")
    if not 0 < delta < 1:
        raise UsageError("delta is a relative difference between 0 and 1", where=f"delta={delta}")


def _contention(
    results: Sequence[Result | WorkersResult], comparisons: Sequence[tuple[Setting, Comparison | Contest]]
) -> float | None:
    """The worst wall / CPU time of what ran alone on one thread of the CPU; None where nothing did."""
    measured = [(r.setting, r.contention) for r in results] + [(s, c.contention()) for s, c in comparisons]
    return max((ratio for setting, ratio in measured if ratio is not None and _one_thread(setting)), default=None)


def _one_thread(setting: Setting) -> bool:
    return setting.provider == "cpu" and setting.threads == 1
