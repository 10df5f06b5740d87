"""Start replicas of a model, lead them from gate to gate, and read their memory while all stand still."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp import memory, worker
from onnxcomp.errors import UsageError, from_os_error, nearest
from onnxcomp.memory import Memory
from onnxcomp.replicas import feeding, gate, open_loop, replica
from onnxcomp.replicas.result import POINTS, Replica, Replicas
from onnxcomp.settings import SessionSettings
from onnxcomp.worker import WorkerLimits

KINDS: tuple[str, ...] = ("processes", "threads")

#: where replicas wait for each other; 'warm' is the start of the timed phase
_GATES = ("imported", "loaded", "warm", "ran")


def run(
    model: str | os.PathLike[str],
    count: int,
    *,
    feeds: Sequence[Mapping[str, np.ndarray]],
    seconds: float = 0.0,
    due_ns: np.ndarray | None = None,
    patience: float = 10.0,
    provider: str = "cpu",
    settings: SessionSettings | None = None,
    kind: str = "processes",
    trim: bool = False,
    limits: WorkerLimits | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Replicas:
    """Start replicas of a model as a server does, run them at the same time, and end them.

    Args:
        model: path of the `.onnx` file; it is synced first (`sync`).
        count: processes, each with a session of its own; or threads of one process, on one session.
        feeds: arrays by input name; each caller runs every one of them once, more where they are timed.
        seconds: how long all of them run one after the other; 0: not at all.
        due_ns: int64, ascending: when requests are due, from the start, whether or not a caller is free for
            them (`open_loop`), instead of one after the other.
        patience: seconds that a due request may wait before the run is ended for all.
        provider: short name of `onnxcomp.runtime.PROVIDERS`.
        settings: session options; one intra-op thread by default.
        kind: one of `KINDS`.
        trim: give free memory back once the model is open, as `onnxcomp.pack.open` does.
        limits: what all processes together may use.
        on_progress: called with the name of each point that all have reached.

    Raises UsageError; what `open_session` and `Session.run` raise in a replica; WorkerCrashError,
    WorkerTimeoutError and LimitError (`onnxcomp.worker`). No process is left behind.
    """
    from onnxcomp.runtime import ort_provider_options, ort_providers  # see `sync`

    _check(count, feeds, seconds, kind)
    settings = settings or SessionSettings()
    providers = tuple(ort_providers(provider, settings))
    sync(model)
    processes, threads = (count, 1) if kind == "processes" else (1, count)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-replicas-") as name:
        folder = Path(name)
        parcels = feeding.wrap(feeds, folder)
        arrivals = None
        if due_ns is not None:
            line = open_loop.Line.make(folder / "line")
            arrivals = open_loop.Arrivals(due_ns=due_ns, patience_ns=int(patience * 1e9), line=line)
        with gate.gates(folder, _GATES) as closed:
            job = replica.Job(
                model=Path(model).absolute(),
                providers=providers,
                provider_options=tuple(ort_provider_options(providers, settings)),
                settings=settings,
                feeds=parcels,
                seconds=seconds,
                arrivals=arrivals,
                threads=threads,
                gates={point: one.path for point, one in closed.items()},
                trim=trim,
            )
            keeper = _Keeper(processes, closed, on_progress)
            calls = [functools.partial(replica.live, job)] * processes
            answers = worker.side_by_side(calls, limits=limits, on_progress=keeper.hear)
    return Replicas(
        model=os.fspath(model),
        kind=kind,
        count=count,
        provider=provider,
        settings=job.settings,
        replicas=tuple(
            Replica(
                start_seconds=keeper.started[index],
                load_seconds=answer.load_seconds,
                memory={point: keeper.read[point][index] for point in POINTS},
                cpu_seconds=answer.cpu_seconds,
                callers=answer.callers,
            )
            for index, answer in enumerate(answers)
        ),
    )


def sync(model: str | os.PathLike[str]) -> None:
    """Write the model's files to the disk: until then their mapped pages count as private to who maps them.

    Reads the file as `onnxcomp.model.load` does, and raises what that raises.
    """
    from onnxcomp.model import files  # a replica imports this package, and must stay small

    for file in files(model):
        try:
            fd = os.open(file, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise from_os_error(error, file) from error


@dataclasses.dataclass
class _Keeper:
    """Counts who has reached which point, reads the memory of all when the last has, and opens the gate."""

    processes: int
    closed: Mapping[str, gate.Gate]
    on_progress: Callable[[str], None] | None
    arrived: dict[str, dict[int, int]] = dataclasses.field(default_factory=dict)
    started: dict[int, float] = dataclasses.field(default_factory=dict)
    read: dict[str, dict[int, Memory]] = dataclasses.field(default_factory=dict)
    begun: float = dataclasses.field(default_factory=time.monotonic)

    def hear(self, index: int, text: str, _fraction: float | None) -> None:
        point, pid = text.split()
        there = self.arrived.setdefault(point, {})
        there[index] = int(pid)
        if point == _GATES[0]:
            self.started[index] = time.monotonic() - self.begun
        if len(there) < self.processes:
            return
        if point in POINTS:
            self.read[point] = {i: memory.measure(Path("/proc", str(p))) for i, p in there.items()}
        if self.on_progress is not None:
            self.on_progress(point)
        self.closed[point].open()


def _check(count: int, feeds: Sequence[Mapping[str, np.ndarray]], seconds: float, kind: str) -> None:
    if kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}'", hint=nearest(kind, KINDS) or f"one of {', '.join(KINDS)}")
    if count < 1:
        raise UsageError("at least one worker is needed", where=f"count={count}")
    if not feeds:
        raise UsageError("nothing to feed")
    if not seconds >= 0:
        raise UsageError("the time must not be negative", where=f"seconds={seconds}")
