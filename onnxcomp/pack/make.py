"""Make a pack: an optimized model whose weights, packed for this CPU's kernels, lie in one file to be mapped.

ONNX Runtime packs the weights of matrix products again in every session, so that N workers hold N
private copies even of a mapped file. Saved beside the plain weights, the packed ones are mapped too:
all workers of a host read the same pages.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxcomp import documents, runtime, worker
from onnxcomp import model as models
from onnxcomp.errors import OnnxcompError, OutputError, UnsupportedError, UsageError, nearest
from onnxcomp.model import walk
from onnxcomp.pack import feeds, manifest, proof, triton
from onnxcomp.pack.manifest import Manifest
from onnxcomp.settings import SessionSettings, host, taken

LAYOUTS: tuple[str, ...] = ("plain", "triton")

#: workers that are measured, and that a serving system is told to start
WORKERS = 4

#: where the copy of the source lies; serving systems ignore the name
_PORTABLE = "portable"

#: what is removed again before the folder is published
_SCRATCH = "scratch"


@dataclasses.dataclass(frozen=True)
class Pack:
    """A pack that was published: where, and what its `pack.json` says."""

    path: str
    manifest: Manifest

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp pack --json`: `output`, `bytes`, and those of `pack.json`."""
        described = self.manifest.to_json()
        del described["schema"]
        return {"output": self.path, "bytes": sum(size for _, _, size in self.manifest.files), **described}


def pack(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: str = "plain",
    workers: int = WORKERS,
    data: str | os.PathLike[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    plan: str | os.PathLike[str] | None = None,
    settings: SessionSettings | str | os.PathLike[str] | None = None,
    portable: bool = True,
    force: bool = False,
) -> Pack:
    """Make a serving pack of a model for this host, proven by real worker processes.

    Args:
        model: an `.onnx` file; it is not changed.
        output: the folder to be. Any `onnxruntime.InferenceSession(output/model.onnx)` shares its
            weights with the others of this host; `onnxcomp.pack.open` also sees whether the pack fits.
        layout: 'plain', or 'triton': the folder of one model in a Triton model repository.
        workers: processes that are measured, and instances that Triton is told to start.
        data: real samples (see `onnxcomp.data.open_source`); None: seeded noise.
        sizes: sizes of symbolic axes, for noise.
        plan: a JSON object that may name `workers`, `threads`, `batch` and `queue_delay_ms`; for Triton.
        settings: session settings, or the path of a settings file; the pack is optimized with them, and
            `onnxcomp.pack.open` opens it with them. With the layout 'plain'.
        portable: keep a copy of the model in the pack, to fall back to where the pack does not fit.
        force: replace an earlier pack.

    Raises UsageError, OutputError; what `open_session` raises (UnsupportedError for operators that this
    build does not have); AccuracyGateError (outputs not bit-identical), GateError (more memory than
    before). Nothing is left behind then.
    """
    source, target = Path(model), Path(output)
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout '{layout}'", hint=nearest(layout, LAYOUTS) or f"one of {', '.join(LAYOUTS)}")
    if workers < 2:
        raise UsageError("sharing takes two workers at least", where=f"workers={workers}")
    if plan is not None and layout != "triton":
        raise UsageError("a plan goes with --layout triton", where=plan)
    if settings is not None and layout == "triton":
        raise UsageError("settings go with --layout plain: Triton's own configuration knows only some of them")
    inputs = models.files(source)
    models.refuse_folder(target, owned=manifest.is_pack, force=force, inputs=inputs)
    before = models.fingerprint(source)
    chosen, doubts = taken(settings, [before.sha256])
    worker.report("opening the model")
    fed, signature = feeds.make(source, data, sizes or {})
    configuration = None
    if layout == "triton":
        planned = triton.read_plan(plan, workers)
        configuration = triton.config(target.absolute().name, signature, planned, host.current())
        workers = max(planned.workers, 2)
    with models.stage_folder(target, owned=manifest.is_pack, force=force, inputs=inputs) as folder:
        _enough_room(folder, before.bytes, portable=portable)
        served = folder / ("1" if layout == "triton" else "") / "model.onnx"
        served.parent.mkdir(exist_ok=True)
        plain = _as_ort_reads(source, folder)
        _write(plain, served, chosen)
        kept = _keep(inputs, folder / _PORTABLE) if portable else None
        if configuration is not None:
            (folder / "config.pbtxt").write_text(configuration)
        found = proof.prove(plain, served, fed.runs, workers=workers, settings=chosen)
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        proven = found.to_json(fed.source)
        made = Manifest(
            source={**before.to_json(), "path": source.name},
            layout=layout,
            model=served.relative_to(folder).as_posix(),
            portable=None if kept is None else kept.relative_to(folder).as_posix(),
            host=host.current(),
            session=chosen.to_json(),
            files=tuple(_listed(folder)),
            proof={**proven, "warnings": [*proven["warnings"], *doubts], "weights": _weights(served)},
        )
        (folder / manifest.NAME).write_text(documents.to_text(made.to_json()))
    return Pack(os.fspath(output), made)


def _write(source: Path, served: Path, settings: SessionSettings) -> None:
    """The optimized model at its place, its data beside it."""
    worker.report("packing the weights")
    scratch = served.parent / "writing"
    scratch.mkdir()
    written = runtime.optimized(source, scratch, settings=settings, packed=True)
    models.settle(written, served)
    shutil.rmtree(scratch)
    try:
        runtime.open_session(served, settings=runtime.frugal(served))
    except OnnxcompError as error:
        # seen with ORT 1.32: an optimizer that gives two values of a Scan's body one name
        raise UnsupportedError(
            f"ONNX Runtime cannot open the optimized model that it has written: {error.message.split('failed:')[-1]}",
            where=source.name,
            hint="nothing was written; serve the model as it is",
        ) from error


def _as_ort_reads(source: Path, folder: Path) -> Path:
    """The source, or a copy without what ORT 1.32 crashes on or cannot pack: empty and sparse inputs."""
    proto = models.read_proto(source)
    if models.is_normal(proto) and not any(graph.sparse_initializer for graph in walk.graphs(proto)):
        return source
    scratch = folder / _SCRATCH
    scratch.mkdir()
    return models.write_to(models.load(source), scratch, "plain")


def _keep(files: tuple[Path, ...], folder: Path) -> Path:
    """Copies of the model and its data, byte by byte."""
    base = files[0].absolute().parent
    for file in files:
        copy = folder / file.absolute().relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return folder / files[0].name


def _enough_room(folder: Path, size: int, *, portable: bool) -> None:
    """Weights stand there twice, plain and packed, and a third time in the copy."""
    needed = size * (3 if portable else 2)
    if shutil.disk_usage(folder).free < needed:
        raise OutputError(
            f"the disk is full: about {needed} bytes are needed",
            where=folder.parent.parent,
            hint="free some space, write to another disk with -o, or leave the copy out with --no-portable",
        )


def _listed(folder: Path) -> list[tuple[str, str, int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), *models.sha256_of(path)) for path in found]


def _weights(served: Path) -> dict[str, int]:
    plain, packed = models.packed_bytes(served)
    return {"bytes": plain, "packed_bytes": packed}
