"""Run passes on a copy of a model, prove the effect, and publish the result with its record."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp import documents, memory, runtime, worker
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
from onnxcomp.model import ModelFile
from onnxcomp.passes.base import Context, Pass, drop_unused_initializers, temporary_context
from onnxcomp.record import PassRecord, Record
from onnxcomp.stages import EvalData, Stages

#: share of the samples that judges and does not calibrate
_HELD_OUT = 0.2
_FEWEST_TO_SPLIT = 5


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
    calibration: int | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    stages: Stages | None = None,
) -> Optimized:
    """Run passes on a copy of a model in memory; the input stays as it is.

    Args:
        model: an `onnx_ir.Model`, or a path to load.
        passes: in this order.
        data: samples for passes that calibrate.
        store: a folder that keeps statistics of activations: what was interrupted goes on, what is done is
            not repeated.
        allow_no_effect: keep going when a pass changes nothing; or the names of the passes that may.
        calibration: samples of `data` that passes see which do not train, spread over all; None: all.
        checkpoint: a folder that keeps an unfinished training, one folder in it for each pass that trains.
        resume: go on from what `checkpoint` holds; the passes before run again.
        stages: judges the model after every pass.

    Raises NoEffectError when a pass changed nothing, GateError when the inputs or outputs changed.
    """
    source = model if isinstance(model, ir.Model) else models.load(model)
    result = source.clone()
    before = models.signature(source)
    records = []
    with temporary_context(_part(data, calibration), store) as context:
        for i, step in enumerate(passes):
            worker.report(f"pass {step.name}", i / len(passes))
            may_idle = allow_no_effect if isinstance(allow_no_effect, bool) else step.name in allow_no_effect
            if step.trains:
                kept = None if checkpoint is None else checkpoint / f"{i + 1}-{step.name}"
                own = dataclasses.replace(
                    context, data=data, reference=_file_of(model, context), checkpoint=kept, resume=resume
                )
            else:
                own = context
            done = _run(step, result, own, allow_no_effect=may_idle)
            if stages is not None:
                done = dataclasses.replace(done, stage=stages.judge(_cleaned(result.clone()), context.workdir))
            records.append(done)
    _cleaned(result)
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
    eval: EvalData | None = None,  # noqa: A002 - the option's name
    metric: str = "accuracy",
    calibration: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    store: str | os.PathLike[str] | None = None,
    schema: str = "onnxcomp/run/1",
) -> Record:
    """Run passes on a file and publish the result atomically, with `OUTPUT.record.json` beside it.

    With `data`, four fifths calibrate and one fifth judges the fidelity; passes that need no data
    leave all of it to the judge. Exact passes are proven: both models run on the data, or on
    seeded noise, and must agree. For near ones the difference is only reported. `measure` compares the speed
    of both files on one sample, and warns when the result is slower. With `eval`, samples with labels that no
    pass sees, the record holds the input's `metric`, and for each pass what the model was worth then: `score`,
    `bytes`, `speed`. `calibration`, `checkpoint`, `resume` and `store`: see `optimize`.

    Raises what the passes raise; NoEffectError for a larger file; AccuracyGateError for outputs
    that are not finite or, after exact passes, not equal; OutputError. The input is never written.
    """
    source, output = Path(source), Path(output)
    if not passes:
        raise UsageError("no pass to run")
    if resume and checkpoint is None:
        raise UsageError("--resume needs --checkpoint", hint="name the folder of the interrupted run")
    models.refuse_target(output, force=force, inputs=(source,))
    reference = models.load(source)
    before = models.fingerprint(source)
    # what ORT cannot load can never be verified: better to know before hours of work
    runtime.check_loads(source)
    training, judging, about = _divide(data, reference, passes, batch_size)
    rounding = tolerance(reference)
    del reference
    stages = None if eval is None else Stages(source, eval, metric=metric, batch_size=batch_size)
    done = optimize(
        source,
        passes,
        data=training,
        store=None if store is None else Path(store),
        allow_no_effect=allow_no_effect,
        calibration=calibration,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        resume=resume,
        stages=stages,
    )
    check = Check(
        source,
        before,
        passes,
        judging,
        allow_larger=allow_larger,
        tolerance=rounding,
        measure=measure,
    )
    record: dict[str, Record] = {}

    def describe(made: ModelFile) -> bytes:
        warnings = (*check.warnings, *about.get("warnings", ()))
        facts = {k: v for k, v in about.items() if k != "warnings"} or None
        record["it"] = Record(
            before, made, done.passes, check.fidelity, check.equivalence, check.speed, facts, tuple(warnings),
            None if stages is None else stages.score,
        )  # fmt: skip
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


def _run(step: Pass, model: ir.Model, context: Context, *, allow_no_effect: bool) -> PassRecord:
    if step.needs_data and context.data is None:
        raise DataError(f"{step.name} needs data", where="data", hint="give --data with real samples")
    start, noted = time.perf_counter(), len(context.notes)
    memory.reset_peak()
    try:
        effect = step.apply(model, context)
    except OnnxcompError as error:
        where = step.name if error.where is None else f"{step.name}: {error.where}"
        raise type(error)(error.message, where=where, hint=error.hint) from error
    if not effect.changed and not allow_no_effect:
        why = "".join(f": {note.reason}" for note in context.notes[noted:] if not note.node)
        raise NoEffectError(
            f"the pass changed nothing{why}",
            where=step.name,
            hint="leave it out, or allow it with --allow-no-effect",
        )
    return PassRecord(
        step.name,
        step.options(),
        time.perf_counter() - start,
        memory.measure().peak_bytes,
        effect.details,
        tuple(context.notes[noted:]),
    )


def _cleaned(model: ir.Model) -> ir.Model:
    """The model without what nothing uses."""
    common.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(model)
    return model


def _part(data: Batches | None, count: int | None) -> Batches | None:
    """So many samples, spread over all."""
    if data is None or count is None or count >= data.samples:
        return data
    return data.split(count / data.samples)[0]


def _file_of(model: ir.Model | str | os.PathLike[str], context: Context) -> Path:
    """The model as it came, as a file."""
    if not isinstance(model, ir.Model):
        return Path(model)
    path = context.workdir / "reference.onnx"
    return path if path.exists() else models.write_to(model, context.workdir, path.stem)


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
