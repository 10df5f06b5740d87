"""Feeds on their way to the replicas: large arrays as files, which all of them map.

Copies would count as memory of each replica, which a server that reads requests does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_SMALL = 1 << 16

#: an array, or the file that holds it
Parcel = Mapping[str, np.ndarray | Path]


def wrap(feeds: Sequence[Mapping[str, np.ndarray]], folder: Path) -> list[Parcel]:
    """Write what is large into the folder; strings and small arrays stay as they are."""
    parcels: list[Parcel] = []
    for turn, feed in enumerate(feeds):
        parcel: dict[str, np.ndarray | Path] = {}
        for index, (name, value) in enumerate(feed.items()):
            array = np.asarray(value)
            if array.nbytes < _SMALL or array.dtype.kind not in "biufc":
                parcel[name] = array
                continue
            path = folder / f"{turn}.{index}.npy"
            np.save(path, array, allow_pickle=False)
            parcel[name] = path
        parcels.append(parcel)
    return parcels


def unwrap(parcels: Sequence[Parcel]) -> list[dict[str, np.ndarray]]:
    """The feeds again; files are mapped."""
    return [{name: _array(value) for name, value in parcel.items()} for parcel in parcels]


def _array(value: np.ndarray | Path) -> np.ndarray:
    if isinstance(value, Path):
        return np.asarray(np.load(value, mmap_mode="r", allow_pickle=False))
    return value
