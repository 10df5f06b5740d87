"""Which of the models are packs, what each is compared with, and packs made for the occasion."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnxcomp import worker
from onnxcomp.errors import GateError, UsageError
from onnxcomp.model import sha256_of
from onnxcomp.pack import make, manifest
from onnxcomp.settings import SessionSettings, host


@dataclasses.dataclass(frozen=True)
class Served:
    """A model file that workers open.

    Attributes:
        name: as given; of a pack made here, that of its source.
        path: the `.onnx` file.
        plain: index of the model that it is compared with: its own, or for a pack that of its source, of
            the first that is no pack where that is not there, None where all are packs.
        notes: what speaks against its numbers.
    """

    name: str
    path: Path
    plain: int | None
    notes: tuple[str, ...] = ()


def served(paths: Sequence[str | os.PathLike[str]]) -> list[Served]:
    """The models as given, folders of packs among them. Raises what reading a manifest raises."""
    first = next((index for index, path in enumerate(paths) if not Path(path).is_dir()), None)
    found = []
    for index, path in enumerate(paths):
        if not Path(path).is_dir():
            found.append(Served(os.fspath(path), Path(path), index))
            continue
        description = manifest.read(Path(path))
        source = next((i for i, other in enumerate(paths) if _is_source(description, Path(other))), first)
        wrong = "; ".join(host.current().differences(description.host))
        notes = [f"the pack {os.fspath(path)} does not fit this host, and shares nothing: {wrong}"] if wrong else []
        if dataclasses.replace(description.settings, threads=1) != SessionSettings():
            notes.append(f"the pack {os.fspath(path)} has settings of its own: give them with --settings")
        found.append(Served(os.fspath(path), Path(path) / description.model, source, tuple(notes)))
    return found


@contextlib.contextmanager
def made(plain: Sequence[Served], *, workers: int, sizes: Mapping[str, int] | None) -> Iterator[list[Served]]:
    """The models, and after them a pack of each that is none; the packs are gone at the end.

    A model whose pack would not share gets a note in its place.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp-packs-") as name:
        every = list(plain)
        for index, one in enumerate(plain):
            if one.plain != index:
                continue
            worker.report(f"packing {one.name}")
            folder = Path(name, str(index))
            try:
                packed = make.pack(one.path, folder, workers=max(workers, 2), sizes=sizes, portable=False)
            except GateError as error:
                note = f"{one.name} has no pack: {error.message}"
                every[index] = dataclasses.replace(one, notes=(*one.notes, note))
                continue
            every.append(Served(one.name, folder / packed.manifest.model, index))
        yield every


def check(models: Sequence[Served], scenario: str, providers: Sequence[str], *, made: bool) -> None:
    """Raise UsageError for packs where they are of no use."""
    packed = [one.name for index, one in enumerate(models) if one.plain != index]
    if packed and scenario != "workers":
        raise UsageError(f"a pack is measured in the scenario 'workers', not '{scenario}'", where=packed[0])
    if (packed or made) and set(providers) != {"cpu"}:
        raise UsageError("a pack is for the provider 'cpu'", where=", ".join(providers))


def _is_source(description: manifest.Manifest, path: Path) -> bool:
    return path.is_file() and sha256_of(path)[0] == description.source.get("sha256")
