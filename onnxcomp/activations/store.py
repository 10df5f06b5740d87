"""Statistics on disk: an interrupted observation goes on, a finished one is not repeated."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import model as models
from onnxcomp.activations.statistics import State, Statistic
from onnxcomp.errors import from_os_error

#: seconds between two writings; and between two that take more than a tenth of it, for each tenth
_EVERY = 1.0

_DIGEST = hashlib.sha256().digest_size

#: bytes of a head; a line that is longer belongs to no file of ours
_LONGEST = 1 << 26

Wanted = Mapping[str, Sequence[Statistic]]


class Store:
    """Files `KEY-SET.activations` in a folder; SET tells the statistics, so that others of the same KEY reuse them.

    The file of an observation is written every second and in the end, each time whole or not at all; a large one
    is written less often, for at most a tenth of the time. It holds the SHA-256 of what follows, a line of JSON
    `{runs, finished, names}`, and an .npz with the arrays of each statistic.

    Args:
        folder: made if it is not there.
        key: what the statistics were made from: model and data.
        wanted: {tensor: its statistics}, as they are before the first batch. Those that finished files hold
            are filled with it.

    Attributes:
        missing: {tensor: its statistics} that no finished file holds.
    """

    def __init__(self, folder: Path, key: str, wanted: Wanted) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, folder) from error
        self.missing = wanted
        for path in sorted(folder.glob(f"{key[:32]}-*.activations")):
            self.missing = _filled(self.missing, path)
        chosen = hashlib.sha256("\n".join(name for name, _, _ in _each(self.missing)).encode()).hexdigest()
        self._path = folder / f"{key[:32]}-{chosen[:16]}.activations"
        self._next = time.monotonic() + _EVERY

    def restore(self) -> int:
        """Fill what is missing from its unfinished file; how many runs it holds, 0 for one that is not there."""
        head, held = _head(self._path), _read(self._path)
        if head is None or held is None:
            return 0  # it is made anew; nothing was lost but time
        for number, (_, _, statistic) in enumerate(_each(self.missing)):
            statistic.restore(_under(held, number))
        return int(head["runs"])

    def keep(self, runs: int, *, finished: bool = False) -> None:
        """Write what is there after so many runs, unless that was done a moment ago and more are to come."""
        if not finished and time.monotonic() < self._next:
            return
        started = time.monotonic()
        each = list(_each(self.missing))
        head = {"runs": runs, "finished": finished, "names": [name for name, _, _ in each]}
        arrays = {f"{i}/{k}": v for i, (_, _, statistic) in enumerate(each) for k, v in statistic.state().items()}
        buffer = io.BytesIO()
        buffer.write(json.dumps(head).encode() + b"\n")
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
        models.write_file(self._path, hashlib.sha256(content).digest() + content, force=True)
        ended = time.monotonic()
        self._next = ended + _EVERY * max(1.0, 10 * (ended - started))


def _filled(wanted: Wanted, path: Path) -> Wanted:
    """Take from a finished file what it has; what is then left."""
    head = _head(path)
    if head is None or not head["finished"]:
        return wanted
    numbers = {name: number for number, name in enumerate(head["names"])}
    if all(name not in numbers for name, _, _ in _each(wanted)):
        return wanted
    held = _read(path)
    if held is None:
        return wanted
    left: dict[str, list[Statistic]] = {}
    for name, tensor, statistic in _each(wanted):
        if name in numbers:
            statistic.restore(_under(held, numbers[name]))
        else:
            left.setdefault(tensor, []).append(statistic)
    return left


def _each(wanted: Wanted) -> Iterator[tuple[str, str, Statistic]]:
    for tensor, statistics in wanted.items():
        for statistic in statistics:
            yield f"{tensor}: {statistic.name}", tensor, statistic


def _head(path: Path) -> dict[str, Any] | None:
    """The line of JSON; None for no file or a damaged one. Statistics may be large and are not read."""
    try:
        with path.open("rb") as file:
            file.seek(_DIGEST)
            found = json.loads(file.readline(_LONGEST))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"runs", "finished", "names"} <= found.keys() else None


def _read(path: Path) -> State | None:
    """All arrays; None for no file or a damaged one."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    digest, content = held[:_DIGEST], held[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        return None
    file = io.BytesIO(content)
    file.readline()
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _under(held: State, number: int) -> State:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): array for name, array in held.items() if name.startswith(prefix)}
