"""A gate at which processes wait without a clock tick: a file that the keeper has locked.

The system wakes all who wait at the same moment, and opens the gate itself if the keeper dies.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class Gate:
    """A closed gate; `path` is what those who wait must know."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._file.close()


@contextlib.contextmanager
def gates(folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, Gate]]:
    """One closed gate per name; all are open at the end."""
    made = {name: Gate(folder / f"{name}.gate") for name in names}
    try:
        yield made
    finally:
        for gate in made.values():
            gate.open()


def wait(path: Path) -> None:
    """Return when the gate is open."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
