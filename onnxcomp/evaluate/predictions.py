"""What a model answers to labelled samples, reduced to what a metric needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.errors import DataError, UsageError, nearest
from onnxcomp.evaluate.fidelity import as_array


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Outputs (samples, ...) by name, the chosen one, and labels (samples, ...)."""

    outputs: Mapping[str, np.ndarray]
    chosen: np.ndarray
    labels: np.ndarray


def predict(session: runtime.Session, batches: Batches, metric: str, output: str | None) -> Predictions:
    """Only what the metric needs is kept: class scores become one label, or five, per sample."""
    names = [spec.name for spec in session.signature.outputs]
    if output is not None and output not in names:
        raise UsageError(f"the model has no output '{output}'", hint=nearest(output, names))
    keep_all = ":" in metric
    kept: dict[str, list[np.ndarray]] = {}
    labels = []
    total, done = batches.samples, 0
    for batch in batches:
        worker.report(f"evaluating {session.path.name}", done / total)
        done += batch.samples
        if batch.labels is None:
            raise DataError("some samples have no labels", where=batches.source.name)
        labels.append(np.asarray(batch.labels))
        arrays = {n: a for n, v in session.run(batch.feeds).items() if (a := as_array(v)) is not None}
        if not keep_all:
            name = output or _choose(arrays, metric, batch.samples)
            arrays = {name: _reduce(arrays[name], metric, batch.samples)}
        for name, array in arrays.items():
            kept.setdefault(name, []).append(array)
    outputs = {name: np.concatenate(parts) for name, parts in kept.items()}
    return Predictions(outputs, next(iter(outputs.values())), np.concatenate(labels))


def _choose(arrays: Mapping[str, np.ndarray], metric: str, samples: int) -> str:
    """The first output with one row per sample; class scores before anything else."""
    rows = {n: a for n, a in arrays.items() if a.ndim and a.shape[0] == samples}
    if metric in ("accuracy", "top5", "f1"):
        for name, array in rows.items():
            if array.dtype.kind == "f" and array.ndim >= 2 and array[0].size >= 2:
                return name
    if not rows:
        raise DataError("no output has one row per sample", hint="choose one with --output")
    return next(iter(rows))


def _reduce(array: np.ndarray, metric: str, samples: int) -> np.ndarray:
    flat = array.reshape(samples, -1)
    if metric == "top5":
        return np.argsort(-flat, axis=1, kind="stable")[:, :5]
    if metric in ("accuracy", "f1"):
        is_label = flat.shape[1] == 1 and array.dtype.kind in "iu"
        if flat.shape[1] == 1 and not is_label:
            raise UsageError(
                f"{metric} needs one score per class, and the output has one number per sample",
                hint="say what counts as right with --metric FILE.py:fn, or choose another output with --output",
            )
        return flat[:, 0] if is_label else np.argmax(flat, axis=1)
    return flat[:, 0] if flat.shape[1] == 1 else flat
