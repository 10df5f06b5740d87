"""Run a model over batches with inner tensors as outputs, and feed statistics with them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.activations.statistics import Statistic
from onnxcomp.activations.store import Store
from onnxcomp.data import Batch, Batches
from onnxcomp.errors import CalibrationError, UsageError

#: bytes of observed tensors that one run may give at a time
_BUDGET = 64 << 20

_FLOATS = ("float16", "float32", "float64")

Wanted = Mapping[str, Sequence[Statistic]]
Name = TypeVar("Name")


def observe(
    model: ir.Model,
    data: Batches,
    wanted: Wanted,
    *,
    workdir: Path,
    store: Path | None = None,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Update the statistics of each wanted tensor with every sample.

    Batches are cut so small, and where that is not enough the tensors are taken in so many turns, that the
    observed tensors of one run take at most 64 MiB. One tensor of one sample is never cut. Sizes are those of
    the sample with the largest inputs.

    Args:
        model: stays as it is.
        data: every sample is run once for each turn.
        wanted: {input of the model, or output of a node of the main graph: its statistics}; those of
            tensors other than float16, float32 and float64 stay as they are.
        workdir: a private folder.
        store: a folder that keeps the statistics by what they were made from: an interrupted
            observation goes on from there, a finished one is not repeated, and another one of the same model
            and data takes from it the tensors that both want. (These are then as the first one saw them: what
            else is observed decides what ORT fuses, and so the last digits.)
        part: (number, of how many) observations that are one task, for its progress.

    Raises CalibrationError for NaN or infinity (naming sample and tensor) and for no samples, DataError for
    feeds that the model refuses, UsageError for a name that is no such tensor.
    """
    if not wanted:
        return
    _check_names(model, wanted)
    with tempfile.TemporaryDirectory(dir=workdir) as name:
        folder = Path(name)
        kept = None
        if store is not None:
            kept = Store(store, _key(model, data, folder), wanted)
            wanted = kept.missing
        if wanted:
            _observe(model, data, wanted, kept, folder=folder, part=part)


def _observe(
    model: ir.Model, data: Batches, wanted: Wanted, kept: Store | None, *, folder: Path, part: tuple[int, int]
) -> None:
    """`observe` from where the store's file left off."""
    done = 0 if kept is None else kept.restore()
    whole = _session(model, list(wanted), folder)
    turns, step = _turns(_sizes(whole, data, list(wanted)), data.batch_size)
    ready = whole if len(turns) == 1 else None
    del whole  # its memory is for the sessions of the turns
    data = data.in_batches_of(step)
    run = 0
    for turn, names in enumerate(turns):
        session = ready
        seen = 0
        for batch in data:
            seen, run = seen + batch.samples, run + 1
            if run <= done:
                continue
            session = session or _session(model, names, folder)
            for tensor, array in _arrays(session, names, batch, data):
                if not _is_finite(array):
                    raise _not_finite(session, tensor, batch, data)
                for statistic in wanted[tensor]:
                    statistic.update(array)
            here = (turn + seen / data.samples) / len(turns)
            worker.report("calibrating", (part[0] + here) / part[1])
            if kept is not None:
                kept.keep(run)
    if kept is not None:
        kept.keep(run, finished=True)


def groups_within(sizes: Mapping[Name, int], budget: int) -> list[list[Name]]:
    """The names in groups, in order, that take at most `budget` together; one alone may take more."""
    groups: list[list[Name]] = []
    filled = 0
    for name, size in sizes.items():
        if not groups or filled + size > budget:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _check_names(model: ir.Model, wanted: Wanted) -> None:
    there = {spec.name for spec in models.signature(model).inputs}
    there.update(value.name or "" for node in model.graph for value in node.outputs)
    for name in wanted:
        if name not in there:
            raise UsageError("neither an input nor made by a node of the main graph", where=f"tensor {name}")


def _session(model: ir.Model, names: Sequence[str], folder: Path) -> runtime.Session:
    """A session on the model with these values as outputs."""
    augmented = model.clone()
    values = {v.name: v for node in augmented.graph for v in node.outputs}
    there = {v.name for v in augmented.graph.outputs} | {v.name for v in augmented.graph.inputs}
    for name in names:
        if name not in there:
            augmented.graph.outputs.append(values[name])
    path = models.write_to(augmented, folder, "observed")
    del augmented
    # the runs are short and numpy's work stands between them: threads that spin in wait of the next one burn as
    # much processor time as the runs
    config = {"session.intra_op.allow_spinning": "0"}
    if runtime.is_large(path):
        # the weights' packed copies cost more memory than they save time here
        config["session.disable_prepacking"] = "1"
    session = runtime.open_session(path, settings=runtime.SessionSettings(threads=0, config=config))
    path.unlink()
    return session


def _arrays(
    session: runtime.Session, names: Sequence[str], batch: Batch, data: Batches
) -> Iterator[tuple[str, np.ndarray]]:
    """Those of the tensors that are floats."""
    floats = {spec.name for spec in session.signature.outputs if spec.dtype in _FLOATS}
    fetched = [name for name in names if name in floats and name not in batch.feeds]
    try:
        arrays = session.ort.run(fetched, dict(batch.feeds)) if fetched else []
    except Exception as error:
        raise runtime.translate(error, Path(data.source.name), running=True) from error
    found = {**batch.feeds, **dict(zip(fetched, arrays, strict=True))}
    del arrays
    for name in names:
        array = found.pop(name, None)
        if array is not None and array.dtype in _FLOATS:
            yield name, array


def _is_finite(array: np.ndarray) -> bool:
    # min and max carry a NaN on, and need no array of truth values
    return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _not_finite(session: runtime.Session, name: str, batch: Batch, data: Batches) -> CalibrationError:
    """The error, with the sample: the batch is run again one by one, since its axis may be any or none."""
    places = [data.index_in_source(batch.start + i) for i in range(batch.samples)]
    where = f"sample {places[0]}" if len(places) == 1 else f"one of the samples {places[0]} to {places[-1]}"
    for single in data.in_batches_of(1):
        offset = single.start - batch.start
        if single.samples > 1 or not 0 <= offset < batch.samples:
            continue
        if not all(_is_finite(array) for _, array in _arrays(session, [name], single, data)):
            where = f"sample {places[offset]}"
            break
    if name in batch.feeds:
        return CalibrationError(
            "the calibration data holds NaN or infinity",
            where=f"{data.source.name}: {where}, input {name}",
            hint="remove or repair it",
        )
    return CalibrationError(
        "an activation is NaN or infinite on the calibration data",
        where=f"{data.source.name}: {where}, tensor {name}",
        hint="look at the sample, or at the layer that makes the tensor",
    )


def _sizes(session: runtime.Session, data: Batches, names: Sequence[str]) -> dict[str, int]:
    """Bytes of each tensor in the smallest batch there can be: one sample, or the model's own batch."""
    smallest = data.in_batches_of(1)
    largest = max(smallest, key=lambda batch: sum(a.nbytes for a in batch.feeds.values()), default=None)
    if largest is None:
        raise CalibrationError(
            "the calibration data holds no samples, or fewer than the model's batch", where=data.source.name
        )
    return {name: array.nbytes for name, array in _arrays(session, names, largest, smallest)}


def _turns(sizes: Mapping[str, int], batch_size: int) -> tuple[list[list[str]], int]:
    """(names of each turn, samples of a batch): several turns only if not even the smallest batch fits."""
    step = max(min(batch_size, _BUDGET // max(sum(sizes.values()), 1)), 1)
    return groups_within(sizes, _BUDGET), step


def _key(model: ir.Model, data: Batches, folder: Path) -> str:
    """What the statistics of any tensor follow from."""
    with tempfile.TemporaryDirectory(dir=folder) as private:
        made = models.fingerprint(models.write_to(model, Path(private), "keyed"))
    parts = [made.sha256, *(digest for _, digest, _ in made.external)]
    parts += [data.fingerprint(), str(data.batch_size), str(_BUDGET)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
