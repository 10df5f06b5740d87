"""Run a model over batches with inner tensors as outputs, and feed statistics with them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.activations.statistics import Statistic
from onnxcomp.activations.store import Store
from onnxcomp.data import Batch, Batches
from onnxcomp.errors import CalibrationError

#: bytes of observed tensors that one run may give at a time
_BUDGET = 64 << 20

Wanted = Mapping[str, Sequence[Statistic]]


def observe(model: ir.Model, data: Batches, wanted: Wanted, *, workdir: Path, store: Path | None = None) -> None:
    """Update the statistics of each wanted tensor with every sample.

    Batches are cut so small, and where that is not enough the tensors are taken in so many turns, that the
    observed tensors of one run take at most 64 MiB (one tensor of one sample is never cut).

    Args:
        model: stays as it is.
        data: every sample is run once for each turn.
        wanted: {value of the main graph: its statistics}; floats.
        workdir: a private folder.
        store: a folder that keeps the statistics by what they were made from: an interrupted
            observation goes on from there, a finished one is not repeated.

    Raises CalibrationError for NaN or infinity (naming sample and tensor) and for no samples, DataError for
    feeds that the model refuses.
    """
    if not wanted:
        return
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        turns, step = _turns(_sizes(model, data, list(wanted), Path(folder)), data.batch_size)
        data = data.in_batches_of(step)
        kept = None if store is None else Store(store, _key(model, data, wanted, Path(folder)), wanted)
        done = 0 if kept is None else kept.restore()
        run = 0
        for turn, names in enumerate(turns):
            session = None
            seen = 0
            for batch in data:
                seen, run = seen + batch.samples, run + 1
                if run <= done:
                    continue
                session = session or _session(model, names, Path(folder))
                for name, array in _arrays(session, names, batch, data):
                    _finite(name, array, batch, data)
                    for statistic in wanted[name]:
                        statistic.update(array)
                worker.report("calibrating", (turn + seen / data.samples) / len(turns))
                if kept is not None:
                    kept.keep(run)
        if kept is not None and run > done:
            kept.keep(run, at_once=True)


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
    # the weights' packed copies cost more memory than they save time here
    config = {"session.disable_prepacking": "1"} if runtime.is_large(path) else {}
    session = runtime.open_session(path, settings=runtime.SessionSettings(threads=0, config=config))
    path.unlink()
    return session


def _arrays(
    session: runtime.Session, names: Sequence[str], batch: Batch, data: Batches
) -> Iterator[tuple[str, np.ndarray]]:
    fetched = [name for name in names if name not in batch.feeds]
    try:
        arrays = session.ort.run(fetched, dict(batch.feeds)) if fetched else []
    except Exception as error:
        raise runtime.translate(error, Path(data.source.name), running=True) from error
    found = {**batch.feeds, **dict(zip(fetched, arrays, strict=True))}
    del arrays
    for name in names:
        array = found.pop(name)
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size:
            yield name, array


def _finite(name: str, array: np.ndarray, batch: Batch, data: Batches) -> None:
    # min and max carry a NaN on, and need no array of truth values
    if np.isfinite(array.min()) and np.isfinite(array.max()):
        return
    where = f"{data.source.name}: sample {batch.start}"
    if array.ndim and len(array) == batch.samples:
        row = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
        where = f"{data.source.name}: sample {batch.start + row}"
    elif batch.samples > 1:
        where += f" to {batch.start + batch.samples - 1}"
    if name in batch.feeds:
        raise CalibrationError(
            "the calibration data holds NaN or infinity", where=f"{where}, input {name}", hint="remove or repair it"
        )
    raise CalibrationError(
        "an activation is NaN or infinite on the calibration data",
        where=f"{where}, tensor {name}",
        hint="look at the sample, or at the layer that makes the tensor",
    )


def _sizes(model: ir.Model, data: Batches, names: Sequence[str], folder: Path) -> dict[str, int]:
    """Bytes of each tensor for one sample, from a run on the first one."""
    session = _session(model, names, folder)
    single = data.in_batches_of(1)
    for batch in single:
        return {name: array.nbytes // max(batch.samples, 1) for name, array in _arrays(session, names, batch, single)}
    raise CalibrationError("the calibration data holds no samples", where=data.source.name)


def _turns(sizes: Mapping[str, int], batch_size: int) -> tuple[list[list[str]], int]:
    """(names of each turn, samples of a batch)."""
    step = max(min(batch_size, _BUDGET // max(sum(sizes.values()), 1)), 1)
    turns: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if turns[-1] and filled + size * step > _BUDGET:
            turns.append([])
            filled = 0
        turns[-1].append(name)
        filled += size * step
    return turns, step


def _key(model: ir.Model, data: Batches, wanted: Wanted, folder: Path) -> str:
    made = models.fingerprint(models.write_to(model, folder, "keyed"))
    digest = hashlib.sha256(repr(made.to_json() | {"path": ""}).encode())
    digest.update(f"{data.fingerprint()} {data.batch_size}".encode())
    for name, statistics in wanted.items():
        digest.update(f"{name} {[type(s).__name__ for s in statistics]}".encode())
    return digest.hexdigest()
