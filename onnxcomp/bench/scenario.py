"""Measure models on this machine: one public function, a module per scenario."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
from collections.abc import Mapping, Sequence

from onnxcomp.bench import cold, latency, packs, placed, server, single, statistics, sweep, throughput, trust
from onnxcomp.bench import workers as workers_scenario
from onnxcomp.bench.environment import capture, usable_cores
from onnxcomp.bench.job import Job
from onnxcomp.bench.result import Benchmark, Compared, Measured, Setting
from onnxcomp.bench.server_result import Load
from onnxcomp.bench.sweep import Axes
from onnxcomp.bench.tune_result import Tuning
from onnxcomp.errors import UsageError, nearest
from onnxcomp.model import fingerprint
from onnxcomp.runtime import SessionSettings
from onnxcomp.settings import taken

ModelPath = str | os.PathLike[str]

SCENARIOS: tuple[str, ...] = ("latency", "cold", "throughput", "server", "workers", "sweep", "placement")

#: seconds of one setting, where none are asked for
_SECONDS = 20.0


def bench(
    models: ModelPath | Sequence[ModelPath],
    *,
    provider: str | Sequence[str] = "cpu",
    scenario: str = "latency",
    data: str | os.PathLike[str] | None = None,
    batch: int | Sequence[int] = 1,
    sizes: Mapping[str, int | Sequence[int]] | None = None,
    threads: int | Sequence[int] | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    settings: SessionSettings | str | os.PathLike[str] | None = None,
    delta: float = statistics.DELTA,
    max_runs: int = latency.MAX_RUNS,
    sessions: int = 1,
    bind: bool | None = None,
    cuda_graph: bool = False,
    workers: int | Sequence[int] | None = None,
    pack: bool = False,
    rate: float | None = None,
    slo_p99_ms: float | None = None,
    processes: bool = False,
    spinning: str | None = None,
    optimization: str | Sequence[str] | None = None,
    tune: bool = False,
) -> Benchmark:
    """Measure one model, or compare several; the first is the reference.

    Args:
        models: paths of `.onnx` files with the same inputs; for 'workers' folders of packs, too.
        provider: short names of `onnxcomp.runtime.PROVIDERS`.
        scenario: 'latency': one caller, one run after the other. 'cold': from the start of a process to its
            first output. 'throughput': most samples per second. 'server': requests that arrive at a rate,
            whether or not a worker is free. 'workers': several callers at once, as processes, as threads on
            one session, and on a pack. 'sweep': which combinations of everything here that takes several values,
            and of spinning, nobody beats in latency and CPU time a sample. 'placement': which provider has which
            share of nodes and time.
        data: what `onnxcomp.data.open_source` takes; None: seeded noise.
        batch: samples per run.
        sizes: sizes of symbolic axes, for noise; several for an axis in a 'sweep'.
        threads: ORT's intra-op threads; 0 leaves it to ORT; None: those of `settings`.
        seconds: time budget for each combination of provider, batch, threads and workers (None: 20); of each
            model for 'server', where a single run takes 600 at most; of everything for 'sweep' (None: 120). A
            comparison makes its first eight rounds in any case, 'workers', 'cold', 'throughput' and 'sweep' three.
        seed: of all random orders; None draws one, which the result tells.
        settings: other session options, or the path of a settings file.
        delta: a smaller relative difference is none.
        max_runs: at most so many runs of a single model count ('latency').
        sessions: fresh sessions that share these runs, one after the other ('latency'): two sessions of the same
            bytes differ by two or three percent, and only several say by how much.
        bind: put inputs on the device once and leave outputs there; None: on every provider but the CPU. False
            counts the copies of every run, as a server pays them ('latency', 'placement').
        cuda_graph: record CUDA's kernels once and replay them ('latency', 'placement').
        workers: how many ('workers', 'server'; None: one per core), or callers ('throughput'; None: one).
        pack: make a pack of each model for the occasion, and measure it, too ('workers').
        rate: requests per second ('server'); None: the highest at which `slo_p99_ms` holds is sought.
        slo_p99_ms: 99 of 100 requests are to be answered within so many ms ('server').
        processes: workers and callers are processes, not threads on one session ('server', 'throughput').
        spinning: 'on', 'off' or 'both' (None: both): whether idle threads of a pool spin ('sweep').
        optimization: ORT's optimization, several to compare; None: that of `settings` ('sweep').
        tune: also search session settings that beat ORT's defaults, for one model on the CPU ('sweep').

    Raises UsageError, and what `open_session` and `Batches` raise.
    """
    paths = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    providers = [provider] if isinstance(provider, str) else list(provider)
    batches = [batch] if isinstance(batch, int) else list(batch)
    if seconds is None:
        seconds = sweep.SECONDS if scenario == "sweep" else _SECONDS
    counts = [threads] if isinstance(threads, int | None) else list(threads)
    crowds = _crowds(workers, scenario, pack=pack)
    load = _load(scenario, rate, slo_p99_ms, processes=processes)
    lists: dict[str, Sequence[object]] = {"provider": providers, "batch": batches, "threads": counts, "workers": crowds}
    _check(paths, scenario, seconds, delta, lists)
    if sessions < 1:
        raise UsageError("at least one session is needed", where=f"sessions={sessions}")
    given = packs.served(paths)
    packs.check(given, scenario, providers, made=pack)
    prints = [fingerprint(one.path) for one in given]
    base, warnings = taken(settings, [one.sha256 for one in prints])
    if cuda_graph:
        base = _with_cuda_graph(base, scenario, providers)
    axes = _axes(scenario, sizes, spinning, optimization, base)
    if tune:
        _check_tuning(scenario, given, providers, settings)
    seed = secrets.randbits(48) if seed is None else seed
    environment, before = capture(), trust.read_counters()
    results: list[Measured] = []
    comparisons: list[tuple[Setting, Compared]] = []
    tuned: Tuning | None = None
    plain = None if axes is not None else _plain(sizes)
    every = list(itertools.product(providers, batches, [base.threads if c is None else c for c in counts], crowds))
    with packs.made(given, workers=max(crowds), sizes=plain) if pack else contextlib.nullcontext(given) as served:
        jobs = [
            Job(
                paths=tuple(one.path for one in served),
                names=tuple(one.name for one in served),
                provider=name,
                scenario=scenario,
                data=data,
                batch=size,
                sizes=plain,
                settings=dataclasses.replace(base, threads=count),
                seconds=seconds,
                seed=seed + index,
                delta=delta,
                max_runs=max_runs,
                sessions=sessions,
                bind=bind,
                done=index / len(every),
                share=1 / len(every),
            )
            for index, (name, size, count, _) in enumerate(every)
        ]
        if scenario == "throughput":
            most, matched = throughput.measure(jobs, [crowd for *_, crowd in every], processes=processes)
            results += most
            comparisons += matched
        elif axes is not None:
            rows, tuned = sweep.measure(jobs, axes, seconds=seconds, tuned=tune)
            results += rows
        else:
            for job, (*_, crowd) in zip(jobs, every, strict=True):
                measured, compared = _measure(job, crowd, served, load)
                results += measured
                comparisons += [(measured[0].setting, one) for one in compared]
    judged = trust.judge(before, trust.read_counters(), environment, _contention(results, comparisons))
    return Benchmark(
        environment=environment,
        trust=judged,
        models=tuple(prints),
        results=tuple(results),
        comparisons=tuple(comparisons),
        seed=seed,
        seconds=seconds,
        session={key: value for key, value in base.to_json().items() if key != "threads"},
        warnings=tuple(warnings),
        tuning=None if tuned is None else tuned.doubted(judged),
    )


def _with_cuda_graph(settings: SessionSettings, scenario: str, providers: Sequence[str]) -> SessionSettings:
    if "cuda" not in providers:
        raise UsageError("a CUDA graph is for the provider 'cuda'", where=f"provider={', '.join(providers)}")
    if scenario not in ("latency", "placement"):
        raise UsageError("a CUDA graph is for the scenarios 'latency' and 'placement'", where=f"scenario={scenario}")
    options = dict(settings.provider_options)
    options["cuda"] = {**options.get("cuda", {}), "enable_cuda_graph": "1"}
    return dataclasses.replace(settings, provider_options=options)


def _measure(
    job: Job, crowd: int, served: Sequence[packs.Served], load: Load | None
) -> tuple[Sequence[Measured], Sequence[Compared]]:
    """One setting of a scenario that takes its settings one after the other."""
    if job.scenario == "cold":
        return cold.measure(job)
    if job.scenario == "placement":
        return placed.measure(job)
    if load is not None:
        return server.measure(job, crowd, load)
    return workers_scenario.measure(job, crowd, served) if crowd else single.measure(job)


def _crowds(workers: int | Sequence[int] | None, scenario: str, *, pack: bool) -> list[int]:
    """The worker counts; a zero for a scenario without workers."""
    if pack and scenario != "workers":
        raise UsageError("packs are for the scenario 'workers'", where=f"scenario={scenario}")
    if scenario not in ("workers", "server", "throughput"):
        if workers is not None:
            raise UsageError(
                "workers are for the scenarios 'workers', 'server' and 'throughput'", where=f"scenario={scenario}"
            )
        return [0]
    if workers is None:
        return [1 if scenario == "throughput" else usable_cores()]
    crowds = [workers] if isinstance(workers, int) else list(workers)
    if any(crowd < 1 for crowd in crowds):
        raise UsageError("at least one worker is needed", where=f"workers={workers}")
    return crowds


def _load(scenario: str, rate: float | None, slo_p99_ms: float | None, *, processes: bool) -> Load | None:
    """What the server is asked for; None for the other scenarios."""
    if scenario == "server":
        return Load(rate=rate, slo_p99_ms=slo_p99_ms, processes=processes)
    if rate is not None or slo_p99_ms is not None:
        raise UsageError("a rate and an objective for p99 are for the scenario 'server'", where=f"scenario={scenario}")
    if processes and scenario != "throughput":
        raise UsageError(
            "processes are a choice in the scenarios 'server' and 'throughput'", where=f"scenario={scenario}"
        )
    return None


def _axes(
    scenario: str,
    sizes: sweep.Sizes | None,
    spinning: str | None,
    optimization: str | Sequence[str] | None,
    settings: SessionSettings,
) -> Axes | None:
    """What a sweep varies; None for the other scenarios."""
    if scenario != "sweep":
        if spinning is not None or optimization is not None:
            raise UsageError("spinning and optimization are for the scenario 'sweep'", where=f"scenario={scenario}")
        return None
    levels = settings.optimization if optimization is None else optimization
    return Axes(
        spinning="both" if spinning is None else spinning,
        optimization=(levels,) if isinstance(levels, str) else tuple(levels),
        sizes=sizes or {},
    )


def _plain(sizes: sweep.Sizes | None) -> dict[str, int] | None:
    """One size for each axis."""
    for name, size in (sizes or {}).items():
        if not isinstance(size, int):
            raise UsageError("several sizes of an axis are for the scenario 'sweep'", where=f"{name}={size}")
    return None if sizes is None else {name: size for name, size in sizes.items() if isinstance(size, int)}


def _check_tuning(
    scenario: str, given: Sequence[packs.Served], providers: Sequence[str], settings: object | None
) -> None:
    if scenario != "sweep":
        raise UsageError("tuning is a part of the scenario 'sweep'", where=f"scenario={scenario}")
    if len(given) > 1:
        raise UsageError("settings are tuned for one model", where=", ".join(one.name for one in given))
    if list(providers) != ["cpu"]:
        raise UsageError("settings are tuned on the CPU", where=f"provider={', '.join(providers)}")
    if settings is not None:
        raise UsageError("tuning starts from ORT's default settings: give none")


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


def _contention(results: Sequence[Measured], comparisons: Sequence[tuple[Setting, Compared]]) -> float | None:
    """The worst wall / CPU time of what ran alone on one thread of the CPU; None where nothing did."""
    measured = [(r.setting, r.contention) for r in results] + [(s, c.contention()) for s, c in comparisons]
    return max((ratio for setting, ratio in measured if ratio is not None and _one_thread(setting)), default=None)


def _one_thread(setting: Setting) -> bool:
    return setting.provider == "cpu" and setting.threads == 1
