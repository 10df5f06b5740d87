"""A settings file: how sessions of a model are to run on a host, and what was measured that says so."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onnxcomp import documents
from onnxcomp.errors import DataError, nearest
from onnxcomp.settings import host as hosts
from onnxcomp.settings.host import Host
from onnxcomp.settings.session import SessionSettings

SCHEMA = "onnxcomp/settings/1"

_ABOUT = ("schema", "host", "model", "measured", "notes")


class SettingsWarning(UserWarning):
    """Settings were tuned on another CPU or with another ONNX Runtime; the text says which."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """Settings with their origin; a file written by hand may say nothing of it.

    Attributes:
        settings: how a session runs.
        host: where they were tuned.
        model: {path (the name only), sha256, bytes} of the model that they were tuned for.
        measured: what speaks for them: {speedup: {value, low, high}, verdict, ...}, see `onnxcomp.bench.tune`.
        notes: what a reader should know.
    """

    settings: SessionSettings
    host: Host | None = None
    model: Mapping[str, Any] | None = None
    measured: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "schema": SCHEMA,
            **self.settings.to_json(),
            "host": None if self.host is None else self.host.to_json(),
            "model": None if self.model is None else dict(self.model),
            "measured": None if self.measured is None else dict(self.measured),
            "notes": list(self.notes),
        }

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SettingsFile:
        """Read a file.

        Raises OutputError (no such file), DataError (not a settings file, an unknown field, a wrong
        type), UsageError (a value that no session can have).
        """
        found = documents.read(Path(path))
        if found.get("schema") != SCHEMA:
            raise DataError(f"not a settings file: its schema is {found.get('schema')!r}", where=path)
        fields = {field.name for field in dataclasses.fields(SessionSettings)}
        for name in found:
            if name not in _ABOUT and name not in fields:
                raise DataError(f"unknown setting '{name}'", where=path, hint=nearest(name, {*fields, *_ABOUT}))
        try:
            host = None if found.get("host") is None else Host.from_json(found["host"])
            about = {name: None if found.get(name) is None else dict(found[name]) for name in ("model", "measured")}
            notes = tuple(map(str, found.get("notes") or ()))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("what the settings file says of its origin is damaged", where=path) from error
        values = {name: value for name, value in found.items() if name in fields}
        return cls(settings=SessionSettings.from_json(values, where=path), host=host, notes=notes, **about)

    def warnings(self, digests: Collection[str] = ()) -> list[str]:
        """What speaks against these settings here: another runtime, CPU, or none of these models."""
        found = [] if self.host is None else hosts.current().differences(self.host)
        out = [f"the settings were tuned on another host: {'; '.join(found)}"] if found else []
        if digests and self.model is not None and self.model.get("sha256") not in digests:
            out.append(f"the settings were tuned for another model: {self.model.get('path')}")
        return out


def read_settings(path: str | os.PathLike[str]) -> SessionSettings:
    """The settings of a file, for `open_session(path, settings=read_settings(file))`.

    Warns with a SettingsWarning where the file was made on another CPU or with another ONNX Runtime.
    Raises what `SettingsFile.read` raises.
    """
    file = SettingsFile.read(path)
    for text in file.warnings():
        warnings.warn(f"{os.fspath(path)}: {text}", SettingsWarning, stacklevel=2)
    return file.settings


def taken(
    settings: SessionSettings | str | os.PathLike[str] | None, digests: Collection[str] = ()
) -> tuple[SessionSettings, list[str]]:
    """Settings as given or from a file, the defaults for None; and what speaks against them for these models here."""
    if settings is None or isinstance(settings, SessionSettings):
        return settings or SessionSettings(), []
    file = SettingsFile.read(settings)
    return file.settings, file.warnings(digests)
