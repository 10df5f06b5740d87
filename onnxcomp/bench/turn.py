"""How a model is served by several workers, and what one turn of fresh workers measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onnxcomp.memory import Memory
from onnxcomp.replicas import POINTS, Replicas

#: single runs that are kept of one turn, evenly spread
_KEPT = 1000


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to serve one model.

    Attributes:
        model: which of the benchmark's models.
        kind: 'processes', 'threads' (on one session), or 'pack' (processes on a pack).
        workers: how many.
        clone: whether it is the A/A control.
    """

    model: int
    kind: str
    workers: int
    clone: bool = False

    def label(self, name: str) -> str:
        """'model.onnx (4 threads)'."""
        noun = {"processes": "process" if self.workers == 1 else "processes", "pack": "on a pack"}
        return f"{name} ({self.workers} {noun.get(self.kind, self.kind)})"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of fresh workers.

    Attributes:
        runs: of all workers.
        runs_per_second: of all workers together.
        wall_ns: single runs of all workers, a thousand at most.
        cpu_ns: median CPU time of the calling thread.
        cpu_ns_per_run: CPU time of all threads of all processes, by runs.
        load_seconds, start_seconds: of the slowest process.
        memory: sums over the processes, see `onnxcomp.replicas.POINTS`.
        outputs: digests, one per feed.
        outputs_equal: whether all workers gave the same bytes.
    """

    runs: int
    runs_per_second: float
    wall_ns: np.ndarray
    cpu_ns: float
    cpu_ns_per_run: float
    load_seconds: float
    start_seconds: float
    memory: dict[str, Memory]
    outputs: tuple[str, ...]
    outputs_equal: bool

    @property
    def wall_ns_median(self) -> float:
        """Over all workers."""
        return float(np.median(self.wall_ns))

    def to_json(self) -> dict[str, Any]:
        """One round's numbers of one variant; no single runs."""
        return {
            "runs": self.runs,
            "runs_per_second": self.runs_per_second,
            "wall_ms_p50": self.wall_ns_median / 1e6,
            "cpu_ms_p50": self.cpu_ns / 1e6,
            "cpu_ms_per_run": self.cpu_ns_per_run / 1e6,
            "load_seconds": self.load_seconds,
            "start_seconds": self.start_seconds,
            "memory": self.memory["ran"].to_json(),
        }


def turn(found: Replicas) -> Turn:
    """What is kept of replicas that were timed."""
    wall = np.concatenate([np.asarray(c.wall_ns, dtype=np.int64) for c in found.callers])
    cpu = np.concatenate([np.asarray(c.cpu_ns, dtype=np.int64) for c in found.callers])
    return Turn(
        runs=sum(c.runs for c in found.callers),
        runs_per_second=found.runs_per_second or 0.0,
        wall_ns=wall[:: -(-len(wall) // _KEPT)],
        cpu_ns=float(np.median(cpu)),
        cpu_ns_per_run=(found.cpu_seconds_per_run or 0.0) * 1e9,
        load_seconds=found.load_seconds,
        start_seconds=found.start_seconds,
        memory={point: found.memory(point) for point in POINTS},
        outputs=found.outputs,
        outputs_equal=found.outputs_equal,
    )
