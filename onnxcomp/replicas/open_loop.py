"""Requests that arrive whether or not anybody is free (an open loop), first come, first served.

When each is due is decided before the start. A worker that is free takes the number of the next
request, waits until that is due if it is early, and runs it: just what a line with one entry and
many workers does, without a thread between them that could lag. What waits in line is known
afterwards: all that were due and not begun. Time counts from when a request was due, not from when
somebody got round to it, so a worker that stalls lengthens what waits behind it (Tene's
'coordinated omission' is the mistake of not counting that).
"""

from __future__ import annotations

import dataclasses
import fcntl
import mmap
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.errors import OnnxcompError

#: ns before the due time at which sleeping ends, and asking the clock begins
_SPIN = 100_000

#: ns between the first look at the line and the start, so that all workers are there
_LEAD = 20_000_000

_STATE = struct.Struct("<qq")
_CLOSED = 1 << 62

Feed = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrivals:
    """What is due when.

    Attributes:
        due_ns: int64, ascending, from the start.
        patience_ns: a request that has waited longer than this ends the run: the line grows for ever.
        line: the file that all workers share, see `Line`.
    """

    due_ns: np.ndarray
    patience_ns: int
    line: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What one worker did: one entry per request that it took, int64 ns from the start.

    Attributes:
        number: which requests.
        taken_ns: when it was free for it.
        started_ns, ended_ns: of the run.
        cpu_ns: CPU time of its thread in the run.
        failed: bool, whether the run raised an error.
        error: the first of these; '' where there is none.
        gave_up_ns: when it ended the run for all; None where it did not.
    """

    number: np.ndarray
    taken_ns: np.ndarray
    started_ns: np.ndarray
    ended_ns: np.ndarray
    cpu_ns: np.ndarray
    failed: np.ndarray
    error: str
    gave_up_ns: int | None


class Line:
    """The number of the next request and the time of the start, in a file that workers map.

    Threads and processes alike: each opens it itself, since a lock belongs to who opened the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), _STATE.size)

    @staticmethod
    def make(path: Path) -> Path:
        """A line in which nobody has taken anything."""
        path.write_bytes(bytes(_STATE.size))
        return path

    def take(self) -> tuple[int, int]:
        """The next number, and the start on the clock of `time.perf_counter_ns`, which the first to come sets."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        number, start = _STATE.unpack(self._map)
        start = start or time.perf_counter_ns() + _LEAD
        _STATE.pack_into(self._map, 0, number + 1, start)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return number, start

    def shut(self) -> None:
        """Let nobody take anything any more."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        _STATE.pack_into(self._map, 0, _CLOSED, _STATE.unpack(self._map)[1])
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the file."""
        self._map.close()
        self._file.close()


def serve(run: Callable[[Feed], Any], feeds: Sequence[Feed], arrivals: Arrivals) -> Served:
    """Work as one of the workers until nothing is left. An OnnxcompError of `run` is counted, not raised."""
    rows: list[tuple[int, int, int, int, int, bool]] = []
    due_ns, last = arrivals.due_ns, len(arrivals.due_ns)
    now, cpu_now = time.perf_counter_ns, time.thread_time_ns
    error = ""
    gave_up: int | None = None
    line = Line(arrivals.line)
    while True:
        number, start = line.take()
        if number >= last:
            break
        taken, due = now(), start + int(due_ns[number])
        if taken - due > arrivals.patience_ns and gave_up is None:
            line.shut()  # this one is still served: the numbers of what was served have no gap
            gave_up = taken - start
        _wait(due)
        failed, cpu, began = False, cpu_now(), now()
        try:
            run(feeds[number % len(feeds)])
        except OnnxcompError as raised:
            failed, error = True, error or str(raised)
        ended = now()
        rows.append((number, taken - start, began - start, ended - start, cpu_now() - cpu, failed))
    line.close()
    columns = np.asarray(rows, dtype=np.int64).reshape(-1, 6).T
    return Served(
        number=columns[0],
        taken_ns=columns[1],
        started_ns=columns[2],
        ended_ns=columns[3],
        cpu_ns=columns[4],
        failed=columns[5].astype(bool),
        error=error,
        gave_up_ns=gave_up,
    )


def _wait(until: int) -> None:
    """Sleep most of it; then ask the clock, and let other threads have the interpreter in between."""
    while (left := until - time.perf_counter_ns()) > _SPIN:
        time.sleep((left - _SPIN) / 1e9)
    while time.perf_counter_ns() < until:
        time.sleep(0)
