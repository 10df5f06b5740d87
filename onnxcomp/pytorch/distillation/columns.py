"""Samples that are more than memory holds: parts of mapped files, and of a temporary one for what is in no file."""

from __future__ import annotations

import dataclasses
import mmap
import tempfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from onnxcomp.data import mapped
from onnxcomp.errors import DataError, from_os_error

#: bytes of samples that are held in memory
IN_MEMORY = 1 << 30

#: files that are mapped at a time; each holds a descriptor
_MAPS = 256

_ALIGNED = 64


class Column:
    """One input of many samples, or their labels, in parts; indexed by row numbers as an array is.

    Args:
        parts: arrays, (samples, ...), mapped or not.
        dtype: of what comes out; integers may be of another type in the files.

    Raises DataError for parts of different shapes.
    """

    def __init__(self, parts: Sequence[np.ndarray], dtype: np.dtype[Any]) -> None:
        self.parts, self.dtype = tuple(part for part in parts if len(part)), dtype
        if len({part.shape[1:] for part in self.parts}) != 1:
            shapes = " and ".join(sorted({str(part.shape[1:]) for part in self.parts}))
            raise DataError(f"shards of different shapes: {shapes}")
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Axes, with that of the samples."""
        return len(self.shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(rows, ...), a copy; pages that were read for it are given back."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of):
            here, part = of == number, self.parts[number]
            found[here] = part[rows[here] - self._starts[number]]
            mapped.give_back(part)
        return found


@dataclasses.dataclass(frozen=True)
class _Spilled:
    """A part in the temporary file."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Keeper:
    """Takes parts one after the other, and gives arrays or columns of them in the end.

    What is a view of a mapped file stays there. Of the rest, `limit` bytes stay in memory, and what comes then goes
    into a temporary file (where TMPDIR says), which is gone with the process. When all fits in the limit,
    it is read into memory.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._total = limit, 0, 0
        self._maps: set[int] = set()
        self._parts: dict[str, list[np.ndarray | _Spilled]] = {}
        self._file: IO[bytes] | None = None

    def keep(self, name: str, part: np.ndarray) -> None:
        """Add a part to a column. Raises OutputError: the disk is full."""
        self._total += part.nbytes
        parts = self._parts.setdefault(name, [])
        mapping = mapped.mapping_of(part)
        if mapping is not None and (id(mapping) in self._maps or len(self._maps) < _MAPS):
            self._maps.add(id(mapping))
            parts.append(part)
        elif self._held + part.nbytes <= self._limit or part.dtype.hasobject:
            self._held += part.nbytes
            parts.append(part if mapping is None else part.copy())
        else:
            parts.append(self._spill(part))

    def _spill(self, part: np.ndarray) -> _Spilled:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="onnxcomp-samples-")  # noqa: SIM115 - the maps outlive it
            start = -(-self._file.tell() // _ALIGNED) * _ALIGNED
            self._file.seek(start)
            self._file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise from_os_error(error, tempfile.gettempdir()) from error
        return _Spilled(start, part.shape, part.dtype)

    def columns(self, dtypes: dict[str, np.dtype[Any]]) -> dict[str, np.ndarray | Column]:
        """All columns by name, in these types, or in their own. Raises DataError for shards of different shapes."""
        whole = None
        if self._file is not None:
            self._file.flush()
            whole = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file.close()
        found: dict[str, np.ndarray | Column] = {}
        for name, parts in self._parts.items():
            arrays = [
                np.ndarray(part.shape, part.dtype, whole, part.start) if isinstance(part, _Spilled) else part
                for part in parts
            ]
            column = Column(arrays, dtypes.get(name, arrays[0].dtype))
            small = self._total <= self._limit
            found[name] = np.concatenate(arrays).astype(column.dtype, copy=False) if small else column
        return found
