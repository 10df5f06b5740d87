"""The scenario 'cold': how long a new process takes from its start to its first output, and its parts.

Each number is of a fresh process; all models take turns in random order. The model's files are in
the page cache, as after a restart of the server; and where the system lets us drop them, a second
series finds them on the disk, as after a restart of the machine. Libraries stay cached in both.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import model, replicas
from onnxcomp.bench import statistics
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.job import Job
from onnxcomp.bench.latency import PERCENTILES
from onnxcomp.bench.paired import Paired
from onnxcomp.bench.placement import Placement, placement
from onnxcomp.bench.result import Setting
from onnxcomp.memory import Memory

#: processes of each model and cache: at least, at most
_FEWEST, _MOST = 3, 50

CACHES = ("warm", "dropped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColdStart:
    """One process, in seconds.

    Attributes:
        start: the interpreter, and importing numpy and ONNX Runtime.
        load: creating the session.
        first, second: the first run, and the next with the same input.
        memory: after the runs.
    """

    start: float
    load: float
    first: float
    second: float
    memory: Memory

    @property
    def total(self) -> float:
        """From the start of the process to its first output."""
        return self.start + self.load + self.first


PHASES: tuple[str, ...] = ("total", "start", "load", "first", "second")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColdResult:
    """Cold starts of one model.

    Attributes:
        model: path as given.
        setting: see `Setting`.
        cache: where the model's files were, one of `CACHES`.
        starts: one per process.
        feeds: what was fed.
        placement: None where this ORT cannot tell.
        notes: what to know about the numbers.
    """

    model: str
    setting: Setting
    cache: str
    starts: tuple[ColdStart, ...]
    feeds: Feeds
    placement: Placement | None
    notes: tuple[str, ...]

    @property
    def contention(self) -> None:
        """Not known: a start reads files."""
        return

    def to_json(self, *, samples: bool = True) -> dict[str, Any]:
        """The object under `results`; `samples` adds every process. `latency_ms` is that of the total."""
        total = self._ms("total")
        out: dict[str, Any] = {
            "model": self.model,
            **self.setting.to_json(),
            "page_cache": self.cache,
            "processes": len(self.starts),
            "latency_ms": {name: statistics.percentile(total, share).to_json() for name, share in PERCENTILES},
            "throughput": None,
            "cold_ms": {phase: statistics.percentile(self._ms(phase), 0.5).to_json() for phase in PHASES},
            "memory": self._memory(),
            "placement": None if self.placement is None else self.placement.to_json(),
            "feeds": self.feeds.to_json(),
            "notes": list(self.notes),
        }
        if samples:
            out["starts"] = [{phase: 1e3 * getattr(s, phase) for phase in PHASES} for s in self.starts]
        return out

    def _ms(self, phase: str) -> np.ndarray:
        return 1e3 * np.asarray([getattr(s, phase) for s in self.starts])

    def _memory(self) -> Mapping[str, int | None]:
        """The median over processes of each field."""
        columns = [s.memory.to_json() for s in self.starts]
        return {
            key: None if any(c[key] is None for c in columns) else int(np.median([c[key] for c in columns]))
            for key in columns[0]
        }


def measure(job: Job) -> tuple[list[ColdResult], list[Paired]]:
    """Cold starts of each model; with several, the first is the reference of the others. Raises as `replicas.run`."""
    feeds = job.feeds()
    feeds = dataclasses.replace(feeds, arrays=feeds.arrays[:1])
    caches = CACHES if all(drop(path) for path in job.paths) else CACHES[:1]
    arms = [(index, cache, False) for index in range(len(job.paths)) for cache in caches]
    if len(job.paths) > 1:
        arms += [(0, cache, True) for cache in caches]
    found = _rounds(job, feeds, arms)
    placed = [placement(path, provider=job.provider, settings=job.settings) for path in job.paths]
    notes = ["the interpreter's and the libraries' files are in the page cache"]
    if len(caches) == 1:
        notes.append("the system does not let the model's files be dropped from the page cache")
    results = [
        ColdResult(
            model=job.names[index],
            setting=job.setting(feeds),
            cache=cache,
            starts=tuple(found[index, cache, clone]),
            feeds=feeds,
            placement=placed[index],
            notes=tuple(notes),
        )
        for index, cache, clone in arms
        if not clone
    ]
    if len(job.paths) < 2:
        return results, []
    return results, [
        Paired(
            names=tuple(f"{name} ({cache} page cache)" for name in job.names),
            values=tuple(tuple(s.total for s in found[index, cache, False]) for index in range(len(job.paths))),
            control=tuple(s.total for s in found[0, cache, True]),
            what="seconds to the first output",
            seed=job.seed,
            delta=job.delta,
        )
        for cache in caches
    ]


def drop(path: str | os.PathLike[str]) -> bool:
    """Drop the model's files from the page cache; whether they are gone from it."""
    replicas.sync(path)
    gone = [_drop(file) for file in model.files(path)]
    return all(gone)


def _drop(path: Path) -> bool:
    """Ask, then look: a file that somebody maps, or that is no file of a disk, stays."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(fd, [bytearray(1)], max(os.fstat(fd).st_size // 2, 0), os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN  # it would have to wait for the disk
    finally:
        os.close(fd)
    return False


def warm(path: str | os.PathLike[str]) -> None:
    """Read the model's files, so that they are in the page cache."""
    for file in model.files(path):
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


_Arm = tuple[int, str, bool]


def _rounds(job: Job, feeds: Feeds, arms: Sequence[_Arm]) -> dict[_Arm, list[ColdStart]]:
    generator = np.random.default_rng(job.seed)
    found: dict[_Arm, list[ColdStart]] = {arm: [] for arm in arms}
    begun = time.monotonic()
    for count in range(_MOST):
        elapsed = time.monotonic() - begun
        if count >= _FEWEST and elapsed * (1 + 1 / count) > job.seconds:
            break
        job.tell("cold starts", min(count / _FEWEST, max(elapsed / job.seconds, count / _MOST)))
        for place in generator.permutation(len(arms)):
            arm = arms[int(place)]
            found[arm].append(_one(job, feeds, arm[0], drop if arm[1] == "dropped" else warm))
    return found


def _one(job: Job, feeds: Feeds, index: int, prepare: Callable[[Path], object]) -> ColdStart:
    def reached(point: str) -> None:
        if point == "imported":  # not before: starting a replica reads the model
            prepare(job.paths[index])

    ran = replicas.run(
        job.paths[index],
        1,
        feeds=feeds.arrays,
        provider=job.provider,
        settings=job.settings,
        on_progress=reached,
    )
    first, second, *_ = ran.callers[0].first_wall_ns
    return ColdStart(
        start=ran.start_seconds,
        load=ran.load_seconds,
        first=first / 1e9,
        second=second / 1e9,
        memory=ran.memory(),
    )
