"""Run passes on a copy of a model, prove the effect, and publish the result with its record."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp import __version__, documents, runtime, worker
from onnxcomp import model as models
from onnxcomp.check import Check, tolerance
from onnxcomp.data import Batches
from onnxcomp.errors import (
    DataError,
    GateError,
    InvalidModelError,
    NoEffectError,
    OnnxcompError,
    UsageError,
)
from onnxcomp.evaluate.fidelity import Fidelity
from onnxcomp.model import ModelFile
from onnxcomp.passes.base import Context, Note, Pass, drop_unused_initializers, temporary_context
from onnxcomp.speed import Speed

#: share of the samples that judges and does not calibrate
_HELD_OUT = 0.2
_FEWEST_TO_SPLIT = 5


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        peak_rss_bytes: the process's peak resident memory while the pass ran; None where unknown.
    """

    name: str
    options: Mapping[str, Any]
    seconds: float
    peak_rss_bytes: int | None
    effect: Mapping[str, Any]
    notes: tuple[Note, ...]

    def to_json(self) -> dict[str, Any]:
        """One entry of `passes`."""
        return {
            "name": self.name,
            "options": dict(self.options),
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "effect": dict(self.effect),
            "notes": [note.to_json() for note in self.notes],
        }


@dataclasses.dataclass(frozen=True)
class Record:
    """What happened between an input file and an output file.

    Attributes:
        fidelity: candidate against reference on samples that did not calibrate; None without data.
        equivalence: for exact and near passes, largest relative difference of the outputs; None if not run.
        speed: candidate against reference; None where it was not asked for.
        data: where samples came from, and how many calibrated and judged.
    """

    input: ModelFile
    output: ModelFile
    passes: tuple[PassRecord, ...]
    fidelity: Fidelity | None
    equivalence: float | None
    speed: Speed | None
    data: Mapping[str, Any] | None
    warnings: tuple[str, ...]

    @property
    def size_ratio(self) -> float:
        """Candidate bytes / reference bytes."""
        return self.output.bytes / self.input.bytes

    def to_json(self) -> dict[str, Any]:
        """The keys that every pass verb prints."""
        return {
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "size_ratio": self.size_ratio,
            "passes": [p.to_json() for p in self.passes],
            "fidelity": None if self.fidelity is None else self.fidelity.to_json(),
            "equivalence": self.equivalence,
            "speed": None if self.speed is None else self.speed.to_json(),
            "data": None if self.data is None else dict(self.data),
            "warnings": list(self.warnings),
            "versions": versions(),
        }


@dataclasses.dataclass(frozen=True)
class Optimized:
    """A changed model and what the passes did."""

    model: ir.Model
    passes: tuple[PassRecord, ...]


def optimize(
    model: ir.Model | str | os.PathLike[str],
    passes: Sequence[Pass],
    *,
    data: Batches | None = None,
    store: Path | None = None,
    allow_no_effect: bool | Collection[str] = False,
) -> Optimized:
    """Run passes on a copy of a model in memory; the input stays as it is.

    Args:
        model: an `onnx_ir.Model`, or a path to load.
        passes: in this order.
        data: samples for passes that calibrate.
        store: a folder that keeps statistics of activations: what was interrupted goes on, what is done is
            not repeated.
        allow_no_effect: keep going when a pass changes nothing; or the names of the passes that may.

    Raises NoEffectError when a pass changed nothing, GateError when the inputs or outputs changed.
    """
    source = model if isinstance(model, ir.Model) else models.load(model)
    result = source.clone()
    before = models.signature(source)
    records = []
    with temporary_context(data, store) as context:
        for i, step in enumerate(passes):
            worker.report(f"pass {step.name}", i / len(passes))
            may_idle = allow_no_effect if isinstance(allow_no_effect, bool) else step.name in allow_no_effect
            records.append(_run(step, result, context, allow_no_effect=may_idle))
    common.RemoveUnusedNodesPass()(result)
    drop_unused_initializers(result)
    _same_signature(before, models.signature(result))
    return Optimized(result, tuple(records))


def optimize_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    passes: Sequence[Pass],
    *,
    data: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None,
    batch_size: int = 32,
    force: bool = False,
    allow_no_effect: bool | Collection[str] = False,
    allow_larger: bool = False,
    measure: bool = False,
    store: str | os.PathLike[str] | None = None,
    schema: str = "onnxcomp/run/1",
) -> Record:
    """Run passes on a file and publish the result atomically, with `OUTPUT.record.json` beside it.

    With `data`, four fifths calibrate and one fifth judges the fidelity; passes that need no data
    leave all of it to the judge. Exact passes are proven: both models run on the data, or on
    seeded noise, and must agree. For near ones the difference is only reported. `measure` compares the speed
    of both files on one sample, and warns when the result is slower. `store`: see `optimize`.

    Raises what the passes raise; NoEffectError for a larger file; AccuracyGateError for outputs
    that are not finite or, after exact passes, not equal; OutputError. The input is never written.
    """
    source, output = Path(source), Path(output)
    if not passes:
        raise UsageError("no pass to run")
    models.refuse_target(output, force=force, inputs=(source,))
    reference = models.load(source)
    before = models.fingerprint(source)
    # what ORT cannot load can never be verified: better to know before hours of work
    runtime.check_loads(source)
    calibration, judging, about = _divide(data, reference, passes, batch_size)
    kept = None if store is None else Path(store)
    done = optimize(reference, passes, data=calibration, store=kept, allow_no_effect=allow_no_effect)
    check = Check(
        source,
        before,
        passes,
        judging,
        allow_larger=allow_larger,
        tolerance=tolerance(reference),
        measure=measure,
    )
    del reference
    record: dict[str, Record] = {}

    def describe(made: ModelFile) -> bytes:
        warnings = (*check.warnings, *about.get("warnings", ()))
        facts = {k: v for k, v in about.items() if k != "warnings"} or None
        record["it"] = Record(
            before, made, done.passes, check.fidelity, check.equivalence, check.speed, facts, tuple(warnings)
        )
        return documents.to_text({"schema": schema, **record["it"].to_json()}).encode()

    models.publish(done.model, output, verify=check, force=force, inputs=(source,), record=describe)
    return record["it"]


def save(model: ir.Model, path: str | os.PathLike[str], *, force: bool = False) -> ModelFile:
    """Publish a model atomically: staged, synced, loaded in ORT, renamed.

    Raises OutputError (exists, disk full), InvalidModelError when ORT cannot load it.
    """
    return models.publish(model, path, verify=runtime.check_loads, force=force)


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` checked."""

    file: ModelFile
    record: Path
    checks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp verify --json`."""
        return {
            "model": self.file.to_json(),
            "record": str(self.record),
            "checks": list(self.checks),
            "ok": True,
        }


def verify(path: str | os.PathLike[str]) -> Verification:
    """Re-hash, re-load and re-run an output, and compare with its record.

    Raises InvalidModelError when a byte differs from what was recorded, DataError for a record
    that cannot be read, OutputError when a file is missing.
    """
    path = Path(path)
    note = models.record_path(path)
    record = documents.read(note)
    try:
        wanted = record["output"]
        digest, parts = wanted["sha256"], {p["path"]: p["sha256"] for p in wanted.get("external", ())}
    except (KeyError, TypeError) as error:
        raise DataError("the record names no output", where=note) from error
    if models.sha256_of(path)[0] != digest:
        raise InvalidModelError(
            "the file is not the one that was recorded: its SHA-256 differs",
            where=path,
            hint="it was changed, damaged or replaced; make it again",
        )
    made = models.fingerprint(path)
    for name, part, _ in made.external:
        if parts.get(name) != part:
            raise InvalidModelError("external data is not what was recorded", where=path.parent / name)
    runtime.check_loads(path)
    return Verification(made, note, ("sha256", "external data", "loads", "runs"))


def versions() -> dict[str, str]:
    """Versions of what shaped a result: onnxcomp, its libraries, Python, and the CPU's int8 features."""
    names = ("numpy", "onnx", "onnx-ir", "onnxscript")
    found = {name: metadata.version(name) for name in names}
    for distribution in runtime.ort_distributions():
        name, version = distribution.split(" ")
        found[name] = version
    found["python"] = platform.python_version()
    found["cpu"] = " ".join(sorted(runtime.cpu_features()))
    return {"onnxcomp": __version__, **found}


def _run(step: Pass, model: ir.Model, context: Context, *, allow_no_effect: bool) -> PassRecord:
    if step.needs_data and context.data is None:
        raise DataError(f"{step.name} needs data", where="data", hint="give --data with real samples")
    start, noted = time.perf_counter(), len(context.notes)
    _reset_peak()
    try:
        effect = step.apply(model, context)
    except OnnxcompError as error:
        where = step.name if error.where is None else f"{step.name}: {error.where}"
        raise type(error)(error.message, where=where, hint=error.hint) from error
    if not effect.changed and not allow_no_effect:
        raise NoEffectError(
            "the pass changed nothing",
            where=step.name,
            hint="leave it out, or allow it with --allow-no-effect",
        )
    return PassRecord(
        step.name,
        step.options(),
        time.perf_counter() - start,
        _peak_bytes(),
        effect.details,
        tuple(context.notes[noted:]),
    )


def _same_signature(before: models.Signature, after: models.Signature) -> None:
    for old, new in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        if [(s.name, s.dtype) for s in old] != [(s.name, s.dtype) for s in new]:
            raise GateError(
                "the passes changed the model's inputs or outputs",
                where=", ".join(s.name for s in new),
                hint="this is a bug of a pass; nothing was written",
            )


def _divide(
    data: str | os.PathLike[str] | Mapping[str, np.ndarray] | None,
    model: ir.Model,
    passes: Sequence[Pass],
    batch_size: int,
) -> tuple[Batches | None, Batches | None, dict[str, Any]]:
    """(samples that calibrate, samples that judge, what to record)."""
    if data is None:
        return None, None, {}
    batches = Batches(data, models.signature(model).inputs, batch_size=batch_size)
    batches.require_real("calibration and fidelity")
    count = batches.samples
    about: dict[str, Any] = batches.to_json()
    if not any(step.needs_data or step.wants_data for step in passes):
        return None, batches, {**about, "calibration": 0, "judged": count}
    if count < _FEWEST_TO_SPLIT:
        warning = f"only {count} samples: fidelity was measured on the calibration samples themselves"
        return batches, batches, {**about, "calibration": count, "judged": count, "warnings": (warning,)}
    calibration, judging = batches.split(1 - _HELD_OUT)
    about.update(calibration=calibration.samples, judged=judging.samples)
    return calibration, judging, about


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak then counts from the start of the process


def _peak_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None
