"""Statistics on disk: an interrupted observation goes on, a finished one is not repeated."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp import model as models
from onnxcomp.activations.statistics import State, Statistic
from onnxcomp.errors import from_os_error

#: seconds between two writings; and between two that take more than a second each, for each second of it
_EVERY = 10.0

_DIGEST = hashlib.sha256().digest_size


class Store:
    """One file `KEY.activations` in a folder, written every ten seconds and in the end, each time whole or not at all.

    A large one is written less often, for at most a tenth of the time.

    It holds the SHA-256 of what follows, and an .npz: `runs`, `finished`, and the arrays of each statistic.

    Args:
        folder: made if it is not there.
        key: what the statistics were made from: model, data and what is wanted.
        wanted: {tensor: its statistics}, as they are before the first batch.

    Attributes:
        finished: whether the file holds all runs.
    """

    def __init__(self, folder: Path, key: str, wanted: Mapping[str, Sequence[Statistic]]) -> None:
        self._path = folder / f"{key[:32]}.activations"
        self._wanted = wanted
        self._next = time.monotonic() + _EVERY
        self.finished = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, folder) from error

    def restore(self) -> int:
        """Fill the statistics from the file; how many runs they hold, 0 for one that is missing or damaged."""
        try:
            held = self._path.read_bytes()
        except OSError:
            return 0
        digest, content = held[:_DIGEST], held[_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            return 0  # it is made anew; nothing was lost but time
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        for prefix, statistic in self._each():
            statistic.restore(_under(arrays, prefix))
        self.finished = bool(arrays["finished"])
        return int(arrays["runs"])

    def keep(self, runs: int, *, finished: bool = False) -> None:
        """Write what is there after so many runs, unless that was done a moment ago and more are to come."""
        if not finished and time.monotonic() < self._next:
            return
        started = time.monotonic()
        arrays = {f"{prefix}/{k}": v for prefix, s in self._each() for k, v in s.state().items()}
        buffer = io.BytesIO()
        np.savez(buffer, runs=np.array(runs), finished=np.array(finished), **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
        models.write_file(self._path, hashlib.sha256(content).digest() + content, force=True)
        ended = time.monotonic()
        self._next = ended + _EVERY * max(1.0, ended - started)

    def _each(self) -> Iterator[tuple[str, Statistic]]:
        for number, statistics in enumerate(self._wanted.values()):
            for i, statistic in enumerate(statistics):
                yield f"{number}.{i}", statistic


def _under(held: Mapping[str, np.ndarray], prefix: str) -> State:
    return {name.split("/")[1]: array for name, array in held.items() if name.startswith(f"{prefix}/")}
