"""Who a model file is: SHA-256 and size, external data included."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from onnxcomp.errors import from_os_error
from onnxcomp.model import external
from onnxcomp.model.load import read_proto

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A model on disk.

    Attributes:
        path: as given by the caller.
        sha256: of the `.onnx` file.
        bytes: of the `.onnx` file and its external data together.
        external: (file name, sha256, bytes) of each external data file.
    """

    path: str
    sha256: str
    bytes: int
    external: tuple[tuple[str, str, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """`{path, sha256, bytes}`, and `external` where there is some."""
        out: dict[str, Any] = {"path": self.path, "sha256": self.sha256, "bytes": self.bytes}
        if self.external:
            out["external"] = [{"path": name, "sha256": digest, "bytes": size} for name, digest, size in self.external]
        return out


def fingerprint(path: str | os.PathLike[str]) -> ModelFile:
    """Hash a model file and every external data file it names.

    Raises InvalidModelError or UnsafeModelError as `load` does, OutputError when unreadable.
    """
    file = Path(path)
    proto = read_proto(file)
    digest, size = sha256_of(file)
    parts = []
    for location in sorted(external.locations(proto)):
        part_digest, part_size = sha256_of(file.parent / location)
        parts.append((location, part_digest, part_size))
    return ModelFile(str(path), digest, size + sum(p[2] for p in parts), tuple(parts))


def total_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a model file and its external data, without reading the data. Raises as `fingerprint` does."""
    try:
        return sum(place.stat().st_size for place in files(path))
    except OSError as error:
        raise from_os_error(error, path) from error


def files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The model file and its external data files. Raises as `fingerprint` does."""
    file = Path(path)
    return file, *(file.parent / name for name in sorted(external.locations(read_proto(file))))


def sha256_of(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise from_os_error(error, path) from error
    return digest.hexdigest(), size
