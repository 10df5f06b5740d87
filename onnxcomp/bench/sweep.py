"""The scenario 'sweep': threads, spinning, batch, shape, provider, optimization: which settings nobody beats.

Two ends pull: a caller wants a short latency, a bill wants little CPU time for a sample. All
configurations are screened in a few rounds; those that nobody clearly beats in both share the rest of
the time.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence

from onnxcomp import worker
from onnxcomp.bench import statistics
from onnxcomp.bench import tune as tuning
from onnxcomp.bench.arms import Arm
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.field import Entry, Field
from onnxcomp.bench.job import Job
from onnxcomp.bench.result import Setting
from onnxcomp.bench.sweep_result import FEWEST_ROUNDS, SweepResult, dominating, tail_front
from onnxcomp.bench.tune_result import Tuning
from onnxcomp.errors import UsageError
from onnxcomp.settings import SessionSettings

SPINNING: Mapping[str, tuple[bool, ...]] = {"on": (True,), "off": (False,), "both": (True, False)}

#: seconds for all configurations together, where none are asked for
SECONDS = 120.0

#: share of the time in which all are screened, and rounds at most
_SCREENING, _SCREENED, _MOST = 0.4, 5, 32

#: share of the time for tuning
_TUNING = 0.6

#: seconds of a block, and runs that are fed in turn
_SHORTEST, _LONGEST, _FEEDS = 0.05, 1.0, 8

Sizes = Mapping[str, int | Sequence[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes:
    """What is varied beside provider, batch and threads.

    Attributes:
        spinning: 'on', 'off' or 'both', where there is more than one thread.
        optimization: ORT's levels.
        sizes: one size or several for each symbolic axis.
    """

    spinning: str = "both"
    optimization: tuple[str, ...] = ("all",)
    sizes: Sizes = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.spinning not in SPINNING:
            raise UsageError(f"unknown spinning '{self.spinning}'", hint=f"one of {', '.join(SPINNING)}")
        if not self.optimization:
            raise UsageError("no optimization given")

    def shapes(self) -> list[dict[str, int]]:
        """Every combination of sizes."""
        several = [[size] if isinstance(size, int) else list(size) for size in self.sizes.values()]
        return [dict(zip(self.sizes, one, strict=True)) for one in itertools.product(*several)]

    def settings(self, base: SessionSettings, provider: str) -> list[SessionSettings]:
        """Every combination of session settings."""
        pooled = provider == "cpu" and base.threads != 1
        return [
            dataclasses.replace(base, optimization=level).with_spinning(spinning)
            for level in self.optimization
            for spinning in (SPINNING[self.spinning] if pooled else (base.spinning,))
        ]


@dataclasses.dataclass(frozen=True)
class _Configuration:
    """One row to be."""

    model: str
    setting: Setting
    settings: SessionSettings
    shape: Mapping[str, int]
    feeds: Feeds
    entry: Entry

    @property
    def name(self) -> str:
        """With the model."""
        return f"{self.model}, {self.entry.arm.name}"


def measure(
    jobs: Sequence[Job], axes: Axes, *, seconds: float, tuned: bool = False
) -> tuple[list[SweepResult], Tuning | None]:
    """Every configuration of every model, and the search for better session settings of the first.

    Args:
        jobs: one per provider, batch and threads.
        axes: what else is varied.
        seconds: of all together; three rounds of all configurations are made in any case.
        tuned: search settings, with the threads of the jobs, the first batch and the first shape.

    Raises what `open_session` and `make_feeds` raise.
    """
    begun = time.monotonic()
    configurations = _configurations(jobs, axes)
    rows = _swept(configurations, seconds * (1 - _TUNING if tuned else 1), begun, jobs[0].seed)
    if not tuned:
        return rows, None
    found = tuning.tune(
        jobs[0].paths[0],
        configurations[0].feeds.arrays,
        threads=list(dict.fromkeys(job.settings.threads for job in jobs)),
        seconds=max(seconds - (time.monotonic() - begun), seconds * _TUNING),
        seed=jobs[0].seed,
        delta=jobs[0].delta,
    )
    return rows, found


def _swept(configurations: Sequence[_Configuration], seconds: float, begun: float, seed: int) -> list[SweepResult]:
    """Screen all, and refine those that nobody beats."""
    opening = (time.monotonic() - begun) / len(configurations)
    field = Field([*(one.entry for one in configurations), configurations[0].entry], seed=seed)
    everyone = range(len(configurations))
    clone = len(configurations)
    share = _SCREENING * seconds / (FEWEST_ROUNDS * len(field.entries))
    length = min(max(share - opening, _SHORTEST), _LONGEST)

    def progress() -> None:
        worker.report(f"sweep, {len(configurations)} configurations", min((time.monotonic() - begun) / seconds, 1.0))

    screened = begun + _SCREENING * seconds
    field.play(
        [*everyone, clone], rounds=_SCREENED, block_seconds=length, fewest=FEWEST_ROUNDS, until=screened,
        progress=progress,
    )  # fmt: skip
    beaten = _beaten(field, configurations)
    left = [index for index in everyone if beaten[index] is None]
    refined = sorted({0, *left})
    before = len(field.rounds)
    field.play([*refined, clone], rounds=_MOST - before, block_seconds=length, until=begun + seconds, progress=progress)
    beaten = _beaten(field, configurations)
    return _results(field, configurations, beaten, set(refined) if len(field.rounds) > before else set(), clone)


def _configurations(jobs: Sequence[Job], axes: Axes) -> list[_Configuration]:
    fed: dict[object, Feeds] = {}
    found = []
    for job, shape in itertools.product(jobs, axes.shapes()):
        key = (job.provider, job.batch, tuple(shape.items()))
        if key not in fed:
            feeds = dataclasses.replace(job, sizes=shape).feeds()
            fed[key] = dataclasses.replace(feeds, arrays=feeds.arrays[:_FEEDS])
        feeds = fed[key]
        for settings in axes.settings(job.settings, job.provider):
            for path, name in zip(job.paths, job.names, strict=True):
                words = _words(job, shape, settings)
                arm = Arm(name=words, path=path, settings=settings, provider=job.provider, bind=job.bind)
                entry = Entry(arm, feeds.arrays, feeds.samples)
                found.append(_Configuration(name, job.setting(feeds), settings, shape, feeds, entry))
    return found


def _words(job: Job, shape: Mapping[str, int], settings: SessionSettings) -> str:
    parts = [job.provider, f"batch {job.batch}", *(f"{axis}={size}" for axis, size in shape.items())]
    parts.append(f"threads {settings.threads}")
    if settings.threads != 1:
        parts.append("spinning" if settings.spinning else "no spinning")
    return ", ".join([*parts, settings.optimization])


def _beaten(field: Field, configurations: Sequence[_Configuration]) -> dict[int, int | None]:
    """By whom each is beaten among those of its provider and shape: others do other work, or on other cores."""
    found: dict[int, int | None] = {}
    for group in _groups(configurations):
        found.update(dominating(field, group))
    return found


def _groups(configurations: Sequence[_Configuration]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for index, one in enumerate(configurations):
        groups.setdefault((one.setting.provider, tuple(one.shape.items())), []).append(index)
    return list(groups.values())


def _results(
    field: Field,
    configurations: Sequence[_Configuration],
    beaten: Mapping[int, int | None],
    refined: set[int],
    clone: int,
) -> list[SweepResult]:
    tails: dict[int, bool | None] = {}
    for group in _groups(configurations):
        tails.update(tail_front({index: field.blocks(index) for index in group}))
    control = statistics.ratio_interval(field.logs(clone, 0, lambda b: b.latency_ns))
    aa = {
        "ratio": control.value, "low": control.low, "high": control.high,
        "ok": control.low <= 1 <= control.high,
    }  # fmt: skip
    return [
        SweepResult(
            model=one.model,
            setting=one.setting,
            settings=one.settings,
            shape=one.shape,
            feeds=one.feeds,
            blocks=tuple(field.blocks(index)),
            refined=index in refined,
            configuration=one.entry.arm.name,
            front=rival is None,
            dominated_by=None if rival is None else configurations[rival].name,
            front_p99=tails[index],
            aa=aa,
        )
        for index, one in enumerate(configurations)
        for rival in (beaten[index],)
    ]
