"""Arrays that stay in their files: mapped, read where they are used, and given back to the system."""

from __future__ import annotations

import contextlib
import io
import mmap
import zipfile
from pathlib import Path

import numpy as np

#: smaller files are read whole, and their checksums looked at
_LARGE = 256 << 20

_LOCAL_HEADER = 30
_SIGNATURE = b"PK\x03\x04"

#: a .npy header is shorter
_NPY_HEADER = 1 << 16


def members(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """The arrays of a large .npz that lie in it uncompressed (`numpy.savez`), by name; the others are not there.

    They are read-only and may be unaligned. What is damaged or of no plain type is left to `numpy.load`.
    """
    if path.stat().st_size < _LARGE:
        return {}
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = {}
    for info in archive.infolist():
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 and info.filename.endswith(".npy"):
            with contextlib.suppress(ValueError, EOFError, OverflowError):
                found[info.filename.removesuffix(".npy")] = _member(whole, info)
    return found


def _member(whole: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
    """Raises ValueError for what is not mapped."""
    head = whole[info.header_offset : info.header_offset + _LOCAL_HEADER]
    if head[:4] != _SIGNATURE:
        raise ValueError("no member here")
    start = info.header_offset + _LOCAL_HEADER + sum(int.from_bytes(head[i : i + 2], "little") for i in (26, 28))
    text = io.BytesIO(whole[start : start + min(info.file_size, _NPY_HEADER)])
    if np.lib.format.read_magic(text) != (1, 0):
        raise ValueError("a header of another kind")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(text)
    count = int(np.prod(shape, dtype=object))
    if dtype.hasobject or fortran or text.tell() + count * dtype.itemsize != info.file_size:
        raise ValueError("not a plain array")
    return np.ndarray(shape, dtype, whole, start + text.tell())


def mapping_of(array: np.ndarray | None) -> mmap.mmap | None:
    """The map that an array is a view of; None where it is in memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None


def give_back(array: np.ndarray) -> None:
    """Tell the system that what was read of an array's file is not needed in memory; nothing is lost."""
    mapping = mapping_of(array)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
