"""What replicas report, as plain records."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxcomp.memory import Memory
from onnxcomp.replicas.open_loop import Served
from onnxcomp.settings import SessionSettings

#: the moments at which memory is read: before the model is opened, after it, and after all runs
POINTS: tuple[str, ...] = ("imported", "loaded", "ran")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caller:
    """One caller in a closed loop; a process has one, the threads of a shared session are one each.

    Attributes:
        outputs: SHA-256 (hex) of what each feed gave: names, dtypes, shapes and bytes.
        output_bytes: of all feeds together.
        runs: how many runs the timed phase had; 0 where there was none.
        elapsed_ns: how long they took, from the common start to the end of the last.
        wall_ns, cpu_ns: single runs, CPU time of the calling thread: all, or every 2nd, 4th ... where
            there are more than `MAX_SAMPLES`; none in an open loop.
        first_wall_ns: the runs before the timed phase, from the very first on.
        served: what it did in an open loop; None in a closed one.
    """

    outputs: tuple[str, ...]
    output_bytes: int
    runs: int
    elapsed_ns: int
    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    first_wall_ns: tuple[int, ...] = ()
    served: Served | None = None

    @property
    def runs_per_second(self) -> float | None:
        """None where nothing was timed."""
        return self.runs * 1e9 / self.elapsed_ns if self.elapsed_ns else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replica:
    """One process that opened the model.

    Attributes:
        start_seconds: from its start until all libraries were imported.
        load_seconds: creating the ORT session, while the others did the same.
        memory: see `POINTS`, read from outside while every replica was idle.
        cpu_seconds: CPU time of all its threads in the timed phase.
        callers: one, or one per thread.
    """

    start_seconds: float
    load_seconds: float
    memory: dict[str, Memory]
    cpu_seconds: float
    callers: tuple[Caller, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields; of the callers what is not a sample."""
        return {
            "start_seconds": self.start_seconds,
            "load_seconds": self.load_seconds,
            "memory": {point: found.to_json() for point, found in self.memory.items()},
            "cpu_seconds": self.cpu_seconds,
            "callers": [
                {"runs": c.runs, "runs_per_second": c.runs_per_second, "output_bytes": c.output_bytes}
                for c in self.callers
            ],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replicas:
    """What all replicas of one model reported.

    Attributes:
        model: path as given.
        kind: 'processes' or 'threads' (of one process, on one session).
        count: processes, or threads.
        provider: short name.
        settings: session options.
        replicas: one per process.
    """

    model: str
    kind: str
    count: int
    provider: str
    settings: SessionSettings
    replicas: tuple[Replica, ...]

    @property
    def callers(self) -> tuple[Caller, ...]:
        """Of all processes."""
        return tuple(caller for replica in self.replicas for caller in replica.callers)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The digests that the first caller got, one per feed."""
        return self.callers[0].outputs

    @property
    def outputs_equal(self) -> bool:
        """Whether every caller got the same bytes."""
        return all(caller.outputs == self.outputs for caller in self.callers)

    @property
    def runs_per_second(self) -> float | None:
        """Of all callers together; None where nothing was timed."""
        found = [caller.runs_per_second for caller in self.callers]
        return None if None in found else sum(f for f in found if f is not None)

    @property
    def cpu_seconds_per_run(self) -> float | None:
        """CPU time of all processes by runs: what a run costs, whoever else has the cores."""
        runs = sum(caller.runs for caller in self.callers)
        return sum(r.cpu_seconds for r in self.replicas) / runs if runs else None

    @property
    def load_seconds(self) -> float:
        """Of the slowest replica."""
        return max(replica.load_seconds for replica in self.replicas)

    @property
    def start_seconds(self) -> float:
        """Of the slowest replica."""
        return max(replica.start_seconds for replica in self.replicas)

    def memory(self, point: str = "ran") -> Memory:
        """The sum over the processes at one of `POINTS`; the peaks need not have been at the same time."""
        found = [dataclasses.astuple(replica.memory[point]) for replica in self.replicas]
        return Memory(*(None if None in column else sum(column) for column in zip(*found, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Sums, and each process; no single samples."""
        return {
            "model": self.model,
            "kind": self.kind,
            "count": self.count,
            "provider": self.provider,
            "threads": self.settings.threads,
            "runs_per_second": self.runs_per_second,
            "cpu_seconds_per_run": self.cpu_seconds_per_run,
            "start_seconds": self.start_seconds,
            "load_seconds": self.load_seconds,
            "memory": {point: self.memory(point).to_json() for point in POINTS},
            "outputs": list(self.outputs),
            "outputs_equal": self.outputs_equal,
            "replicas": [replica.to_json() for replica in self.replicas],
        }
