"""The scenario 'placement': which share of the nodes and of the time each provider has, and which operators take it.

Before fusion from ORT's assignment of the model's nodes, after fusion from its profile. Latency comes from
a session of its own: the profiler slows a model of many small nodes by half.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import trim_mean

from onnxcomp import memory, worker
from onnxcomp.bench import kernels, latency, runner
from onnxcomp.bench.clock import clock_for
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.job import Job
from onnxcomp.bench.kernels import MEMCPY, Kernel, Profile
from onnxcomp.bench.placement import Placement, placement
from onnxcomp.bench.result import Setting
from onnxcomp.runtime import SessionSettings, profiled

_GPU = ("cuda", "tensorrt")

#: share of the time for the latency, which runs without the profiler
_LATENCY_SHARE = 0.4

#: runs that are profiled: warm-up, at least, at most; and events, each of which costs 0.8 kB and 35 us to read
_WARM, _FEWEST, _MOST, _EVENTS = 3, 5, 200, 150_000

_DRAWS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedResult:
    """One model under one setting.

    Attributes:
        model: path as given.
        setting: see `Setting`.
        latency: without the profiler.
        memory: after these runs.
        assigned: the model's own nodes; None where this ORT cannot tell.
        profile: what ran after fusion.
        feeds: what was fed.
        notes: what to know about the numbers.
    """

    model: str
    setting: Setting
    latency: latency.Latency
    memory: memory.Memory
    assigned: Placement | None
    profile: Profile
    feeds: Feeds
    notes: tuple[str, ...]

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
            "memory": self.memory.to_json(),
            "placement": {
                **({} if self.assigned is None else self.assigned.to_json()),
                "after_fusion": after_fusion(self.profile, self.setting.provider),
            },
            "feeds": self.feeds.to_json(),
            "notes": list(self.notes),
        }


def after_fusion(profile: Profile, asked: str) -> dict[str, Any]:
    """Nodes and time of a profile; shares sum to 1 over `providers` and `memcpy`, and over `ops`.

    Args:
        profile: see `kernels.read`.
        asked: short name of the provider that was asked for.
    """
    kinds = sorted(profile.nodes, key=lambda k: (-middle_mean(profile.ns[k]), k))
    nodes, times = profile.nodes, _Times([profile.ns[k] for k in kinds])

    def part(members: Sequence[Kernel]) -> dict[str, Any]:
        count, total = sum(nodes[k] for k in members), sum(nodes.values())
        return {
            "nodes": count,
            "share": count / total if total else 0.0,
            **times.of([kinds.index(k) for k in members]),
        }

    by_provider: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kind in kinds:
        if kind.op not in MEMCPY:
            by_provider[kind.provider].append(kind)
    run_ms = middle_mean(profile.run_ns) / 1e6 if len(profile.run_ns) else None
    return {
        "providers": {name: part(members) for name, members in by_provider.items()},
        "memcpy": part([k for k in kinds if k.op in MEMCPY]),
        "nodes": sum(nodes.values()),
        "ops": [{"op": k.op, "provider": k.provider, **part([k])} for k in kinds],
        "ops_on_cpu": {k.op: nodes[k] for k in by_provider.get("cpu", ()) if asked != "cpu"},
        "runs": len(profile.run_ns),
        "run_ms": run_ms,
        "kernel_share_of_run": times.total_ns / 1e6 / run_ms if run_ms else None,
    }


def middle_mean(values: np.ndarray) -> float:
    """Mean of the middle half: a run that was put aside for other work does not show, whole microseconds do less."""
    return float(trim_mean(values, 0.25)) if len(values) else 0.0


class _Times:
    """Time of each kind of node, as the mean of the middle half of the runs, and shares of it.

    Intervals come from drawing runs anew (bootstrap, percentiles), the kinds of a run together.
    """

    def __init__(self, ns: Sequence[np.ndarray]) -> None:
        self._drawn = np.empty((0, 0))
        self._ns = np.array([middle_mean(row) for row in ns])
        if ns and len(ns[0]) > 1:
            table = np.stack(ns).astype(np.float64)
            draws = np.random.default_rng(0).integers(table.shape[1], size=(_DRAWS, table.shape[1]))
            self._drawn = np.stack([trim_mean(table[:, draw], 0.25, axis=1) for draw in draws])

    @property
    def total_ns(self) -> float:
        """Of all kinds."""
        return float(self._ns.sum())

    def of(self, rows: Sequence[int]) -> dict[str, Any]:
        """`{ms_per_run, time_share, time_share_interval}` of these kinds together."""
        ns, total = float(self._ns[rows].sum()), self.total_ns
        share = ns / total if total else 0.0
        low = high = share
        if len(self._drawn):
            shares = self._drawn[:, rows].sum(axis=1) / np.maximum(self._drawn.sum(axis=1), 1.0)
            low, high = (float(q) for q in np.quantile(shares, [0.025, 0.975]))
        return {"ms_per_run": ns / 1e6, "time_share": share, "time_share_interval": {"low": low, "high": high}}


def measure(job: Job) -> tuple[list[PlacedResult], list[Any]]:
    """A result per model; nothing is compared. Raises what `open_session` raises."""
    feeds = job.feeds()
    return [_one(job, index, feeds) for index in range(len(job.paths))], []


def _one(job: Job, index: int, feeds: Feeds) -> PlacedResult:
    share = 1 / len(job.paths)
    clock = clock_for(job.provider, job.settings.threads)
    measured = latency.measure(
        runner.runs(job.open(index), feeds.arrays, bind=job.bind),
        clock,
        samples_per_run=feeds.samples,
        seconds=job.seconds * share * _LATENCY_SHARE,
        max_runs=job.max_runs,
        progress=lambda f: job.tell(job.names[index], (index + f * _LATENCY_SHARE) * share),
    )
    held = memory.measure()
    job.tell(f"profiling {job.names[index]}", (index + _LATENCY_SHARE) * share)
    usual = middle_mean(np.asarray(measured.wall_ns)) / 1e9
    trial = _profile(job, index, feeds, runs=1)
    affordable = job.seconds * share * (1 - _LATENCY_SHARE) / max(usual, 1e-9)
    runs = int(min(max(affordable, _FEWEST), _MOST, max(_EVENTS // max(trial.events, 1), _FEWEST)))
    profile = _profile(job, index, feeds, runs=runs)
    return PlacedResult(
        model=job.names[index],
        setting=job.setting(feeds),
        latency=measured,
        memory=held,
        assigned=placement(job.paths[index], provider=job.provider, settings=job.settings),
        profile=profile,
        feeds=feeds,
        notes=tuple(_notes(job, profile, runs, usual)),
    )


def _profile(job: Job, index: int, feeds: Feeds, *, runs: int) -> Profile:
    """So many runs after the warm-up; on a GPU in a process of its own, since CUDA asks once how it is to launch."""
    call = functools.partial(
        profile, job.paths[index], feeds.arrays, runs=runs, provider=job.provider, settings=job.settings, bind=job.bind
    )
    return call() if job.provider not in _GPU else worker.isolated(_blocking, call)


def _blocking(call: functools.partial[Profile]) -> Profile:
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    return call()


def profile(
    path: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    runs: int,
    provider: str = "cpu",
    settings: SessionSettings | None = None,
    bind: bool | None = None,
) -> Profile:
    """Run a model under ORT's profiler, whose file goes; three runs before do not count.

    Args:
        path: the model file.
        feeds: arrays by input name, cycled.
        runs: how many count.
        provider: see `open_session`.
        settings: see `open_session`.
        bind: see `runner.runs`.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp-profile-") as name:
        session = profiled(path, Path(name), provider=provider, settings=settings)
        calls = runner.runs(session, feeds, bind=bind)
        for turn in range(_WARM + runs):
            calls[turn % len(calls)]()
        return kernels.read(session.ort.end_profiling(), skip=_WARM)


def _notes(job: Job, profile: Profile, asked: int, usual: float) -> list[str]:
    notes = ["the profiler counts whole microseconds, and its own work is in the time of small nodes"]
    slower = middle_mean(profile.run_ns) / 1e9 / max(usual, 1e-9) if len(profile.run_ns) else 1.0
    if slower > 1.2:
        notes.append(f"runs took {slower:.1f} times as long under the profiler; latency was measured without it")
    if len(profile.run_ns) < asked:
        notes.append(f"the profiler holds a million events: {len(profile.run_ns)} of {asked} runs are complete")
    if job.provider in _GPU:
        notes.append("profiled in a process that waits for each kernel (CUDA_LAUNCH_BLOCKING), so nothing overlaps")
    return notes
