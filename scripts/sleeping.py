"""A server of known speed under the real load generator: it sleeps until its work would be done."""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Callable

from onnxcomp import replicas
from onnxcomp.bench import traffic


class Sleeper:
    """A server that sleeps until its work would be done; what it oversleeps is taken off the next time.

    On a busy machine a sleep ends late, by 0.4 ms on average where this was written: without the
    correction the server would be slower than it says, and p99 two to four percent above what is expected.
    """

    def __init__(self, until: Callable[[float], float]) -> None:
        self.until, self.late = until, 0.0

    def __call__(self, _: object) -> None:
        until = self.until(time.perf_counter() - self.late)
        time.sleep(max(until - time.perf_counter(), 0))
        self.late = time.perf_counter() - until


def serve(run: Callable[[object], None], rate: float, seconds: float, seed: int) -> tuple[traffic.Traffic, int]:
    """The real load generator; and when it started, in ns."""
    due = traffic.poisson(rate, seconds, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = replicas.Line.make(pathlib.Path(folder) / "line")
        served = replicas.serve(run, [{}], replicas.Arrivals(due_ns=due, patience_ns=10**11, line=path))
        _, start = replicas.Line(path).take()
    return traffic.gather([served], rate=rate, workers=1, due_ns=due), start
