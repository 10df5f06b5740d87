"""Open a pack where it fits, the portable model where it does not; verify one again."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

from onnxcomp import memory, runtime
from onnxcomp import model as models
from onnxcomp.errors import DataError, GateError, InvalidModelError, OnnxcompError, UnsupportedError
from onnxcomp.pack import feeds, manifest, proof
from onnxcomp.pack.manifest import Manifest
from onnxcomp.pack.proof import Proof
from onnxcomp.runtime import Session
from onnxcomp.settings import SessionSettings, host

_AGAIN = "make the pack again on this host, with 'onnxcomp pack'"


class PackWarning(UserWarning):
    """A pack is not used, so that nothing is shared; the text says why."""


def open_pack(folder: str | os.PathLike[str], *, settings: SessionSettings | None = None) -> Session:
    """A session on a pack; on its portable model, with a PackWarning, where the pack does not fit.

    The runtime's version, the CPU's features and the files are checked against `pack.json`: every
    file's size, and the SHA-256 of those that were written after it. ONNX Runtime itself compares the
    packed weights with what it would have made of the plain ones. Without `settings`, those hold that the
    pack was made with.

    Raises OutputError and DataError (no pack), InvalidModelError (it does not fit, and has no portable
    model), and what `open_session` raises for the portable model.
    """
    place = Path(folder)
    found = manifest.read(place)
    settings = settings or found.settings
    reason = "; ".join(host.current().differences(found.host)) or _changed(place, found, thorough=False)
    if reason is None:
        try:
            session = runtime.open_session(place / found.model, settings=settings)
            memory.give_back()
            return session
        except OnnxcompError as error:
            reason = error.message
    if found.portable is None:
        raise InvalidModelError(f"the pack does not fit: {reason}", where=place, hint=_AGAIN)
    warnings.warn(
        f"{place}: the pack does not fit ({reason}); its portable model is used, and nothing is shared: {_AGAIN}",
        PackWarning,
        stacklevel=2,
    )
    return runtime.open_session(place / found.portable, settings=settings)


@dataclasses.dataclass(frozen=True)
class Verified:
    """What `verify` found of a pack.

    Attributes:
        path: the folder.
        manifest: its `pack.json`.
        checks: what was looked at, and found in order.
        proof: what was proven again, on `data`; None: there is no portable model, or no made-up input
            runs on it.
    """

    path: str
    manifest: Manifest
    checks: tuple[str, ...]
    proof: Proof | None = None
    data: str = ""

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp verify --json`, and what was proven again."""
        model = next(
            {"path": p, "sha256": d, "bytes": s} for p, d, s in self.manifest.files if p == self.manifest.model
        )
        out = {
            "model": model,
            "record": str(Path(self.path) / manifest.NAME),
            "checks": list(self.checks),
            "ok": True,
        }
        return out if self.proof is None else {**out, **self.proof.to_json(self.data)}


def verify(folder: str | os.PathLike[str], *, workers: int = 2) -> Verified:
    """Hash every file of a pack again, open it, and prove it again against its portable model.

    Raises InvalidModelError (a file is not what it was, or cannot be opened), UnsupportedError (made for
    another host), AccuracyGateError (other outputs), GateError (weights are not shared any more).
    """
    place = Path(folder)
    found = manifest.read(place)
    if changed := _changed(place, found, thorough=True):
        raise InvalidModelError(changed, where=place, hint="it was changed or damaged; " + _AGAIN)
    if differences := host.current().differences(found.host):
        raise UnsupportedError(
            f"the pack was made for another host: {'; '.join(differences)}", where=place, hint=_AGAIN
        )
    served = place / found.model
    checks = ["sha256", "host", "loads"]
    runtime.open_session(served, settings=found.settings)
    if found.portable is None:
        return Verified(os.fspath(folder), found, tuple(checks))
    try:
        fed, _ = feeds.make(place / found.portable, None, {})
    except DataError:
        return Verified(os.fspath(folder), found, tuple(checks))
    again = proof.prove(place / found.portable, served, fed.runs, workers=workers, settings=found.settings)
    if found.proof.get("sharing_effective") and not again.sharing.effective:
        raise GateError("sharing is not effective any more: " + again.warnings[-1], where=place, hint=_AGAIN)
    if again.identical:
        checks.append("outputs")
    if again.sharing.effective:
        checks.append("sharing")
    return Verified(os.fspath(folder), found, tuple(checks), again, fed.source)


def _changed(folder: Path, found: Manifest, *, thorough: bool) -> str | None:
    """What is wrong with the files, in words."""
    written = (folder / manifest.NAME).stat().st_mtime_ns
    for name, digest, size in found.files:
        path = folder / name
        try:
            there = path.stat()
        except OSError:
            return f"the file {name} is missing"
        if there.st_size != size:
            return f"the file {name} has {there.st_size} bytes instead of {size}"
        if (thorough or there.st_mtime_ns > written) and models.sha256_of(path)[0] != digest:
            return f"the file {name} is not what it was when the pack was made"
    return None
