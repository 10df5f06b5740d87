"""`pack.json`: what a pack holds, what it was made from, where it may run and what was proven."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from onnxcomp import documents
from onnxcomp.errors import DataError, OnnxcompError
from onnxcomp.settings import SessionSettings
from onnxcomp.settings.host import Host

NAME = "pack.json"
SCHEMA = "onnxcomp/pack/1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A pack's own description.

    Attributes:
        source: {path (the name only), sha256, bytes, external} of the model it was made from.
        layout: 'plain' or 'triton'.
        model: path of the model that is served, relative to the pack.
        portable: path of the copy of the source, or None.
        host: where it may run.
        session: settings it was made with, and is opened with (see `SessionSettings.to_json`).
        files: (relative path, sha256, bytes) of every file but this one.
        proof: what was verified when it was made (see `onnxcomp.pack.proof`).
    """

    source: Mapping[str, Any]
    layout: str
    model: str
    portable: str | None
    host: Host
    session: Mapping[str, Any]
    files: tuple[tuple[str, str, int], ...]
    proof: Mapping[str, Any]

    @property
    def settings(self) -> SessionSettings:
        """How its sessions run. Raises DataError, UsageError for settings that no session has."""
        return SessionSettings.from_json(self.session, where=NAME)

    @property
    def key(self) -> str:
        """SHA-256 of all that the packed files depend on: same key, same files."""
        made_of = [self.source["sha256"], self.source.get("external", []), self.host.to_json(), dict(self.session)]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What `pack.json` holds."""
        return {
            "schema": SCHEMA,
            "key": self.key,
            "source": dict(self.source),
            "layout": self.layout,
            "model": self.model,
            "portable": self.portable,
            "host": self.host.to_json(),
            "session": dict(self.session),
            "files": [{"path": path, "sha256": digest, "bytes": size} for path, digest, size in self.files],
            **self.proof,
        }


def is_pack(folder: Path) -> bool:
    """Whether a folder holds a pack that was finished."""
    try:
        return documents.read(folder / NAME).get("schema") == SCHEMA
    except OnnxcompError:
        return False  # whatever lies there is not ours


def read(folder: Path) -> Manifest:
    """The manifest of a pack. Raises OutputError (no such file), DataError (not a manifest, or of another kind)."""
    path = folder / NAME
    found = documents.read(path)
    if found.get("schema") != SCHEMA:
        raise DataError(f"not a pack's manifest: its schema is {found.get('schema')!r}", where=path)
    try:
        host = Host.from_json(found["host"])
        named = {"key", "schema", "source", "layout", "model", "portable", "host", "session", "files"}
        manifest = Manifest(
            source=dict(found["source"]),
            layout=str(found["layout"]),
            model=_inside(found["model"]),
            portable=None if found["portable"] is None else _inside(found["portable"]),
            host=host,
            session=dict(found["session"]),
            files=tuple((_inside(f["path"]), str(f["sha256"]), int(f["bytes"])) for f in found["files"]),
            proof={key: value for key, value in found.items() if key not in named},
        )
        manifest.to_json()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("the pack's manifest is damaged", where=path, hint="make the pack again") from error
    return manifest


def _inside(path: Any) -> str:
    """A relative path that stays in the pack. Raises ValueError."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ValueError(path)
    return str(parts)
