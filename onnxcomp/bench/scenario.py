"""Measure models on this machine: one public function, one scenario so far ('latency')."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp import memory, worker
from onnxcomp.bench import compare as comparing
from onnxcomp.bench import latency, runner, statistics, trust
from onnxcomp.bench.clock import Clock, clock_for
from onnxcomp.bench.environment import capture
from onnxcomp.bench.feeds import Feeds, check_same_inputs, make_feeds
from onnxcomp.bench.placement import placement
from onnxcomp.bench.result import Benchmark, Result, Setting
from onnxcomp.errors import UsageError, nearest
from onnxcomp.model import fingerprint
from onnxcomp.runtime import Session, SessionSettings, open_session

ModelPath = str | os.PathLike[str]

SCENARIOS: tuple[str, ...] = ("latency",)

#: share of the time that a comparison gets; the rest goes to the closed loops of the single models
_COMPARE_SHARE = 0.7

#: share of the time for trying the feeds; what is not tried is not fed
_TRIAL_SHARE = 0.05


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
) -> Benchmark:
    """Measure one model, or compare several; the first is the reference.

    Args:
        models: paths of `.onnx` files with the same inputs.
        provider: short names of `onnxcomp.runtime.PROVIDERS`.
        scenario: 'latency': one caller, one run after the other.
        data: what `onnxcomp.data.open_source` takes; None: seeded noise.
        batch: samples per run.
        sizes: sizes of symbolic axes, for noise.
        threads: ORT's intra-op threads; 0 leaves it to ORT.
        seconds: time budget for each combination of provider, batch and threads. A comparison
            makes its first eight rounds in any case.
        seed: of all random orders; None draws one, which the result tells.
        settings: other session options; its `threads` is not used.
        delta: a smaller relative difference is none.
        max_runs: at most so many runs of a single model count.
        bind: use IO binding; None: on every provider but the CPU.

    Raises UsageError, and what `open_session` and `Batches` raise.
    """
    paths = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    providers = [provider] if isinstance(provider, str) else list(provider)
    batches = [batch] if isinstance(batch, int) else list(batch)
    counts = [threads] if isinstance(threads, int) else list(threads)
    _check(paths, scenario, seconds, delta, {"provider": providers, "batch": batches, "threads": counts})
    settings = settings or SessionSettings()
    seed = secrets.randbits(48) if seed is None else seed
    environment, before = capture(), trust.read_counters()
    results: list[Result] = []
    comparisons: list[tuple[Setting, comparing.Comparison]] = []
    every = list(itertools.product(providers, batches, counts))
    for index, (name, size, count) in enumerate(every):
        job = _Job(
            paths=tuple(Path(p) for p in paths),
            names=tuple(os.fspath(p) for p in paths),
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
        measured, compared = job.measure()
        results += measured
        if compared is not None:
            comparisons.append((measured[0].setting, compared))
    return Benchmark(
        environment=environment,
        trust=trust.judge(before, trust.read_counters(), environment, _contention(results, comparisons)),
        models=tuple(fingerprint(p) for p in paths),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """One combination of provider, batch and threads."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    provider: str
    scenario: str
    data: str | os.PathLike[str] | None
    batch: int
    sizes: Mapping[str, int] | None
    settings: SessionSettings
    seconds: float
    seed: int
    delta: float
    max_runs: int
    bind: bool | None
    done: float
    share: float

    def measure(self) -> tuple[list[Result], comparing.Comparison | None]:
        clock = clock_for(self.provider, self.settings.threads)
        feeds = self._feeds()
        results = [self._single(index, feeds, clock, index * self._single_share) for index in range(len(self.paths))]
        return results, self._compare(results, feeds, clock) if len(self.paths) > 1 else None

    def _feeds(self) -> Feeds:
        """Feeds that every model has run on once, so that nothing is refused while the clock runs."""
        self._tell(f"loading {self.names[0]}", 0.0)
        first = self._open(0)
        feeds = make_feeds(self.data, first.signature.inputs, batch=self.batch, sizes=self.sizes)
        deadline = time.monotonic() + _TRIAL_SHARE * self.seconds / len(self.paths)
        tried = 0
        for arrays in feeds.arrays:
            first.run(arrays)
            tried += 1
            if time.monotonic() > deadline:
                break
        feeds = dataclasses.replace(feeds, arrays=feeds.arrays[:tried])
        for index in range(1, len(self.paths)):
            other = self._open(index)
            check_same_inputs(first.signature, other.signature, names=(self.names[0], self.names[index]))
            for arrays in feeds.arrays:
                other.run(arrays)
        return feeds

    def _single(self, index: int, feeds: Feeds, clock: Clock, done: float) -> Result:
        """The closed loop of one model, in a session of its own."""
        placed = placement(self.paths[index], provider=self.provider, settings=self.settings)
        before = memory.measure()
        start = time.perf_counter()
        session = self._open(index)
        open_seconds = time.perf_counter() - start
        calls = runner.runs(session, feeds.arrays, bind=self.bind)
        measured = latency.measure(
            calls,
            clock,
            samples_per_run=feeds.samples,
            seconds=self.seconds * self._single_share,
            max_runs=self.max_runs,
            progress=lambda f: self._tell(self.names[index], done + f * self._single_share),
        )
        after = memory.measure()
        growth = None
        if before.pss_bytes is not None and after.pss_bytes is not None:
            growth = after.pss_bytes - before.pss_bytes
        setting = Setting(self.provider, self.scenario, feeds.samples, self.settings.threads)
        return Result(self.names[index], setting, measured, after, growth, placed, open_seconds, feeds)

    def _compare(self, results: Sequence[Result], feeds: Feeds, clock: Clock) -> comparing.Comparison:
        """All candidates against the reference, in rounds of fresh sessions."""
        usual = [float(np.mean(r.latency.wall_ns)) / 1e9 for r in results]
        opening = [r.open_seconds for r in results]
        budget = self.seconds * _COMPARE_SHARE
        return comparing.compare(
            self.names,
            [self._opener(index, feeds) for index in range(len(self.paths))],
            clock=clock,
            plan=comparing.plan([*usual, usual[0]], [*opening, opening[0]], budget),
            seconds=budget,
            seed=self.seed,
            delta=self.delta,
            progress=lambda f: self._tell("comparing", 1 - _COMPARE_SHARE * (1 - f)),
        )

    @property
    def _single_share(self) -> float:
        several = len(self.paths) > 1
        return (1 - _COMPARE_SHARE) / len(self.paths) if several else 1.0

    def _opener(self, index: int, feeds: Feeds) -> comparing.Opener:
        return lambda: runner.runs(self._open(index), feeds.arrays, bind=self.bind)

    def _open(self, index: int) -> Session:
        return open_session(self.paths[index], provider=self.provider, settings=self.settings)

    def _tell(self, text: str, fraction: float) -> None:
        where = f"{self.provider}, batch {self.batch}, {self.settings.threads} threads"
        worker.report(f"{text} ({where})", self.done + self.share * min(fraction, 1.0))


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


def _contention(results: Sequence[Result], comparisons: Sequence[tuple[Setting, comparing.Comparison]]) -> float | None:
    """The worst wall / CPU time of what ran on one thread of the CPU; None where nothing did."""
    found = [r.latency.contention for r in results if _one_thread(r.setting)]
    found += [c.contention() for s, c in comparisons if _one_thread(s)]
    return max(found, default=None)


def _one_thread(setting: Setting) -> bool:
    return setting.provider == "cpu" and setting.threads == 1
