"""The four files of Fashion-MNIST: found, checked, read."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import struct
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onnxcomp.errors import DataError, from_os_error
from onnxcomp.model import write_file

#: where the authors publish them, at a fixed commit
SOURCE = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion"
)

#: SHA-256 of each file
FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}

_IMAGES, _LABELS = 0x803, 0x801
_MAX_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Data:
    """Images (n, 1, 28, 28) float32 in [0, 1], labels (n,) int64, as the authors split them."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def data(folder: str | os.PathLike[str]) -> Data:
    """The data set in `folder`. Raises DataError: a file is missing or is not what it should be."""
    place = Path(folder)
    missing = [name for name in FILES if not (place / name).is_file()]
    if missing:
        raise DataError(
            f"Fashion-MNIST is not complete: {', '.join(missing)} missing",
            where=place,
            hint=f"download them from {SOURCE}, or add --download",
        )
    parts = []
    for split in ("train", "t10k"):
        images = _read(place / f"{split}-images-idx3-ubyte.gz", _IMAGES)
        labels = _read(place / f"{split}-labels-idx1-ubyte.gz", _LABELS)
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images, {len(labels)} labels", where=place / f"{split}-*")
        parts += [(images / np.float32(255))[:, np.newaxis], labels.astype(np.int64)]
    return Data(*parts)


def download(folder: str | os.PathLike[str], on_progress: Callable[[str, float], None] | None = None) -> None:
    """Fetch the files that `folder` lacks; each is written only when its SHA-256 is right.

    Raises DataError: no network, or other bytes than the authors'.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, place) from error
    for i, (name, digest) in enumerate(FILES.items()):
        if (place / name).is_file():
            continue
        if on_progress is not None:
            on_progress(f"downloading {name}", i / len(FILES))
        address = f"{SOURCE}/{name}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - the address is a constant
                content = answer.read(_MAX_BYTES)
        except OSError as error:
            raise DataError(
                f"the download failed: {error}", where=address, hint=f"put the file into {place} by hand"
            ) from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError("the download has another SHA-256 than the authors' file", where=address)
        write_file(place / name, content)


def _read(path: Path, magic: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: magic number, one size per axis (big-endian), then the values."""
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"not a gzip file: {error}", where=path) from error
    axes = magic & 0xFF
    start = 4 * (axes + 1)
    if len(content) < start or int.from_bytes(content[:4], "big") != magic:
        raise DataError(f"not an IDX file with the magic number 0x{magic:x}", where=path)
    shape = struct.unpack(f">{axes}I", content[4:start])
    values = np.frombuffer(content[start:], np.uint8)
    if axes == 3 and shape[1:] != (28, 28):
        raise DataError(f"images of {shape[1]} x {shape[2]} pixels, not 28 x 28", where=path)
    if values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{values.size} values, the header says {' x '.join(map(str, shape))}", where=path)
    return values.reshape(shape)
