"""What one replica does, in its own process: import, open, run, and wait at a gate between these.

It tells its keeper where it stands (`onnxcomp.worker.report`), who reads its memory while it waits.
Like a server it imports numpy and onnxruntime, not the libraries that change models: those would
add 40 MB to each replica. The keeper has scanned the file.
"""

from __future__ import annotations

import array
import concurrent.futures
import dataclasses
import gc
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxcomp import memory, worker
from onnxcomp.errors import OnnxcompError, ProviderError
from onnxcomp.replicas import feeding, gate, open_loop
from onnxcomp.replicas.result import Caller
from onnxcomp.settings import SessionSettings, session_options
from onnxcomp.settings.libraries import preload

#: single runs that are kept of one caller; beyond, every second one is dropped
MAX_SAMPLES = 10_000

_MIN_RUNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all replicas of one model do.

    Attributes:
        model: path.
        providers: ORT's names, the wanted one first.
        provider_options: of each.
        settings: session options.
        feeds: see `feeding`.
        seconds: of the timed phase, a closed loop; 0: none.
        arrivals: of the timed phase as an open loop, instead.
        threads: callers on the session.
        gates: the gates after 'imported', 'loaded', 'warm' and 'ran'.
        trim: give free memory back once the model is open, as `onnxcomp.pack.open` does.
    """

    model: Path
    providers: tuple[str, ...]
    provider_options: tuple[Mapping[str, str], ...]
    settings: SessionSettings
    feeds: Sequence[feeding.Parcel]
    seconds: float
    arrivals: open_loop.Arrivals | None
    threads: int
    gates: Mapping[str, Path]
    trim: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a replica knows of itself: see `Replica`."""

    load_seconds: float
    cpu_seconds: float
    callers: tuple[Caller, ...]


def live(job: Job) -> Answer:
    """The life of a replica. Raises what `open_session` and `Session.run` of `onnxcomp.runtime` raise."""
    _stand(job, "imported")
    start = time.perf_counter()
    session = _Session(job)
    if job.trim:
        memory.give_back()
    load_seconds = time.perf_counter() - start
    feeds = feeding.Feeds(job.feeds)
    _stand(job, "loaded")
    with concurrent.futures.ThreadPoolExecutor(job.threads) as pool:
        seen = _by_each(pool, job.threads, lambda _: _first_runs(session, feeds.arrays))
        _stand(job, "warm")
        cpu = time.process_time()
        timed = _by_each(pool, job.threads, lambda index: _timed(job, session, feeds.arrays, index))
        cpu = time.process_time() - cpu
    feeds.drop()
    _stand(job, "ran")
    callers = tuple(Caller(**first, **loop) for first, loop in zip(seen, timed, strict=True))
    return Answer(load_seconds, cpu, callers)


class _Session:
    """A session that raises our errors; ORT gets the file as it stands."""

    def __init__(self, job: Job) -> None:
        self._path = job.model
        preload(job.providers)
        try:
            self._session = ort.InferenceSession(
                str(job.model),
                session_options(job.settings),
                providers=list(job.providers),
                provider_options=[dict(options) for options in job.provider_options],
                enable_fallback=0,  # ORT would print, and go on on the CPU
            )
        except Exception as error:
            raise self._translated(error, running=False) from error
        used = self._session.get_providers()[0]
        if used != job.providers[0]:
            raise ProviderError(f"ORT did not use {job.providers[0]}, it fell back to {used}", where=job.model)
        self.names = [output.name for output in self._session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray]) -> list[Any]:
        """The outputs, in the order of `names`."""
        try:
            outputs: list[Any] = self._session.run(self.names, feed)
        except Exception as error:
            raise self._translated(error, running=True) from error
        return outputs

    def _translated(self, error: Exception, *, running: bool) -> OnnxcompError:
        from onnxcomp.runtime import translate  # heavy, and needed only now

        return translate(error, self._path, running=running)


def _stand(job: Job, point: str) -> None:
    """Tell that this point is reached, and wait until all may go on."""
    gc.collect()
    worker.report(f"{point} {os.getpid()}")
    gate.wait(job.gates[point])


def _by_each(pool: concurrent.futures.ThreadPoolExecutor, threads: int, do: Callable[[int], Any]) -> list[Any]:
    """What each caller returns; a single one is the main thread, as in a server of processes."""
    if threads == 1:
        return [do(0)]
    return list(pool.map(do, range(threads)))


def _first_runs(session: _Session, feeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    digests, size, walls = [], 0, []
    for turn in range(max(len(feeds), _MIN_RUNS)):
        start = time.perf_counter_ns()
        values = session.run(feeds[turn % len(feeds)])
        walls.append(time.perf_counter_ns() - start)
        if turn >= len(feeds):
            continue
        digest = hashlib.sha256()
        for name, value in zip(session.names, values, strict=True):
            digest.update(name.encode())
            size += _digest(digest, value)
        digests.append(digest.hexdigest())
    return {"outputs": tuple(digests), "output_bytes": size, "first_wall_ns": tuple(walls)}


def _digest(digest: Any, value: Any) -> int:
    """Add an output to the digest; its size in bytes."""
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
        return value.nbytes
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value).encode()
    digest.update(text)
    return len(text)


def _timed(job: Job, session: _Session, feeds: Sequence[Mapping[str, np.ndarray]], index: int) -> dict[str, Any]:
    if job.arrivals is None:
        return _loop(session, feeds, job.seconds, index)
    gc.disable()
    served = open_loop.serve(session.run, feeds, job.arrivals)
    gc.enable()
    return {
        "runs": len(served.number),
        "elapsed_ns": int(served.ended_ns.max(initial=0)),
        "wall_ns": (),
        "cpu_ns": (),
        "served": served,
    }


def _loop(session: _Session, feeds: Sequence[Mapping[str, np.ndarray]], seconds: float, first: int) -> dict[str, Any]:
    """One run after the other until the time is over; each caller starts with another feed."""
    walls, cpus = array.array("q"), array.array("q")
    turn, stride, end = 0, 1, 0
    gc.disable()
    start = time.perf_counter_ns()
    while seconds > 0 and end < start + seconds * 1e9:
        feed = feeds[(first + turn) % len(feeds)]
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        session.run(feed)
        end, cpu = time.perf_counter_ns(), time.thread_time_ns() - cpu
        if turn % stride == 0:
            walls.append(end - wall)
            cpus.append(cpu)
            if len(walls) == MAX_SAMPLES:
                del walls[1::2], cpus[1::2]
                stride *= 2
        turn += 1
    gc.enable()
    return {
        "runs": turn,
        "elapsed_ns": end - start if turn else 0,
        "wall_ns": tuple(walls),
        "cpu_ns": tuple(cpus),
    }
