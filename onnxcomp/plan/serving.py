"""A configuration and all that it takes to start it, and what turns of it measured."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from onnxcomp import replicas
from onnxcomp.bench import server
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.traffic import Traffic
from onnxcomp.bench.turn import Turn, turn
from onnxcomp.plan.configuration import Configuration
from onnxcomp.settings import SessionSettings

#: CPU times that are kept of one turn, as many as of wall times
_KEPT = 1000

#: runs that take so many times their CPU time tell about other work on the machine, not about the model
BUSY = 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Lap:
    """One turn, and the CPU times of single runs in ms."""

    turn: Turn
    cpu_ms: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Serving:
    """What is started.

    Attributes:
        configuration: see there.
        name: the model as given.
        path: the file that workers open.
        feeds: what they are fed.
        settings: session options, threads and spinning included.
        at_once: workers that this host runs at once, the configuration's or fewer.
    """

    configuration: Configuration
    name: str
    path: Path
    feeds: Feeds
    settings: SessionSettings
    at_once: int

    def closed_loop(self, seconds: float) -> Lap:
        """Fresh workers, each in a closed loop: what a run takes while all of them run."""
        found = self._run(self.at_once, seconds=seconds)
        cpu = np.concatenate([np.asarray(one.cpu_ns, dtype=np.float64) for one in found.callers])
        return Lap(turn(found), cpu[:: -(-len(cpu) // _KEPT)] / 1e6)

    def first_runs(self) -> replicas.Replicas:
        """One fresh worker: its memory, and how long its first runs took."""
        return self._run(1)

    def open_loop(self, rate: float, seconds: float, *, workers: int, seed: int, slo_p99_ms: float) -> Traffic:
        """Fresh workers behind one line, at so many runs a second."""
        run = functools.partial(self._run, workers)
        return server.open_loop(run, rate, seconds, workers=workers, seed=seed, slo_p99_ms=slo_p99_ms)

    def _run(
        self, workers: int, *, seconds: float = 0.0, due_ns: np.ndarray | None = None, patience: float = 10.0
    ) -> replicas.Replicas:
        return replicas.run(
            self.path,
            workers,
            feeds=self.feeds.arrays,
            seconds=seconds,
            due_ns=due_ns,
            patience=patience,
            settings=self.settings,
            kind="threads" if self.configuration.kind == "threads" else "processes",
            trim=self.configuration.kind == "pack",
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What turns of one configuration say.

    Attributes:
        serving: the configuration.
        laps: one per round.
        clock: 'wall', or 'cpu' where other work held the cores: what runs would take without it.
    """

    serving: Serving
    laps: tuple[Lap, ...]
    clock: str = "wall"

    @property
    def turns(self) -> list[Turn]:
        """One per round."""
        return [one.turn for one in self.laps]

    @property
    def rounds_ms(self) -> list[np.ndarray]:
        """Times of single runs while all workers ran, by round."""
        if self.clock == "cpu":
            return [one.cpu_ms for one in self.laps]
        return [np.asarray(one.wall_ns, dtype=np.float64) / 1e6 for one in self.turns]

    @property
    def services_ms(self) -> np.ndarray:
        """Those of all rounds."""
        return np.concatenate(self.rounds_ms)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all threads for one request: the median over rounds."""
        per_run = float(np.median([one.cpu_ns_per_run for one in self.turns])) / 1e9
        return per_run / self.serving.configuration.requests

    @property
    def contention(self) -> float | None:
        """Wall by CPU time of runs on one thread: 1 where each worker had a core for itself; None for more threads."""
        if self.serving.settings.threads != 1:
            return None
        return sum(t.wall_ns_median for t in self.turns) / max(sum(t.cpu_ns for t in self.turns), 1.0)

    def pss_bytes(self, workers: int) -> int | None:
        """Memory that so many workers hold together; an estimate where not so many were measured.

        A process more or less adds what it holds for itself, a thread what its runs have taken.
        """
        found = [self._pss(one, workers) for one in self.turns]
        known = [value for value in found if value is not None]
        return int(np.median(known)) if known else None

    def _pss(self, one: Turn, workers: int) -> float | None:
        ran, count = one.memory["ran"], self.serving.at_once
        each = ran.uss_bytes
        if self.serving.configuration.kind == "threads":
            loaded = one.memory["loaded"].pss_bytes
            each = None if loaded is None or ran.pss_bytes is None else max(ran.pss_bytes - loaded, 0)
        if ran.pss_bytes is None or each is None:
            return None
        return ran.pss_bytes + (workers - count) * each / count
