"""Feeds on their way to the replicas: large arrays as files, which all of them map.

Copies would count as memory of each replica, which a server that reads requests does not hold; so
would the mapped pages, which `drop` gives back.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_SMALL = 1 << 16


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array whose bytes lie in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]


#: an array by input name, itself or stored
Parcel = Mapping[str, np.ndarray | Stored]


def wrap(feeds: Sequence[Mapping[str, np.ndarray]], folder: Path) -> list[Parcel]:
    """Write what is large into the folder; strings and small arrays stay as they are."""
    parcels: list[Parcel] = []
    for turn, feed in enumerate(feeds):
        parcel: dict[str, np.ndarray | Stored] = {}
        for index, (name, value) in enumerate(feed.items()):
            array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
            if array.nbytes < _SMALL or array.dtype.kind not in "biufc":
                parcel[name] = array
                continue
            path = folder / f"{turn}.{index}.bin"
            array.tofile(path)
            parcel[name] = Stored(path, array.dtype, array.shape)
        parcels.append(parcel)
    return parcels


class Feeds:
    """The feeds again, in `arrays`; files are mapped."""

    def __init__(self, parcels: Sequence[Parcel]) -> None:
        self._maps: list[mmap.mmap] = []
        self.arrays = [{name: self._array(value) for name, value in parcel.items()} for parcel in parcels]

    def drop(self) -> None:
        """Give the mapped pages back; they are read again when they are needed."""
        for one in self._maps:
            one.madvise(mmap.MADV_DONTNEED)

    def _array(self, value: np.ndarray | Stored) -> np.ndarray:
        if not isinstance(value, Stored):
            return value
        with value.path.open("rb") as file:
            self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return np.frombuffer(self._maps[-1], value.dtype).reshape(value.shape)
