"""Statistics on disk: an interrupted observation goes on, a finished one is not repeated."""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp import model as models
from onnxcomp.activations.statistics import State, Statistic
from onnxcomp.errors import from_os_error

#: seconds between two writings
_EVERY = 10.0


class Store:
    """One file `KEY.npz` in a folder, written anew every ten seconds and in the end, each time whole or not at all.

    Args:
        folder: made if it is not there.
        key: what the statistics were made from: model, data and what is wanted.
        wanted: {tensor: its statistics}.
    """

    def __init__(self, folder: Path, key: str, wanted: Mapping[str, Sequence[Statistic]]) -> None:
        self._path = folder / f"{key[:32]}.npz"
        self._wanted = wanted
        self._next = time.monotonic() + _EVERY
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, folder) from error

    def restore(self) -> int:
        """Fill the statistics from the file; how many runs they hold, 0 without a file that can be read."""
        try:
            with np.load(self._path, allow_pickle=False) as file:
                held = dict(file)
            states = {prefix: _under(held, prefix) for prefix, _ in self._each()}
            runs = int(held["runs"])
            for prefix, statistic in self._each():
                statistic.restore(states[prefix])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            # a damaged file is made anew; nothing was lost but time
            with contextlib.suppress(OSError):
                self._path.unlink()
            return 0
        return runs

    def keep(self, runs: int, *, at_once: bool = False) -> None:
        """Write what is there after so many runs, unless that was done a moment ago."""
        if not at_once and time.monotonic() < self._next:
            return
        buffer = io.BytesIO()
        arrays = {f"{prefix}/{k}": v for prefix, s in self._each() for k, v in s.state().items()}
        np.savez(buffer, runs=np.array(runs), **arrays)  # type: ignore[arg-type]
        models.write_file(self._path, buffer.getvalue(), force=True)
        self._next = time.monotonic() + _EVERY

    def _each(self) -> Iterator[tuple[str, Statistic]]:
        for number, statistics in enumerate(self._wanted.values()):
            for i, statistic in enumerate(statistics):
                yield f"{number}.{i}", statistic


def _under(held: Mapping[str, np.ndarray], prefix: str) -> State:
    return {name.split("/")[1]: array for name, array in held.items() if name.startswith(f"{prefix}/")}
