"""What the checks of the benchmark do to it: cores that others use, and runs that are slower by a known share."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from onnxcomp.bench import runner


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Processes that do nothing but compute."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=burn, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def burn() -> None:
    """Use all of a core."""
    number = 0
    while True:
        number = (number * 1103515245 + 12345) % 2**31


def slowed(shares: Mapping[Path, float]) -> contextlib.AbstractContextManager[object]:
    """Make every run of these files spin for a share of its own CPU time afterwards; 0 costs the clocks alone."""
    plain = runner.runs

    def runs(session: Any, feeds: Any, *, bind: bool | None = None) -> list[Callable[[], object]]:
        calls = plain(session, feeds, bind=bind)
        return [spinning(call, shares[session.path]) for call in calls] if session.path in shares else calls

    return mock.patch.object(runner, "runs", runs)


def spinning(call: Callable[[], object], share: float) -> Callable[[], object]:
    """The call, and then the spin."""

    def run() -> object:
        start = time.thread_time_ns()
        result = call()
        end = time.thread_time_ns()
        until = end + (end - start) * share
        while time.thread_time_ns() < until:
            pass
        return result

    return run
