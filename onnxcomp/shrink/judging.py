"""What a candidate loses against the input, on one part of the samples: by labels, or by the input's own answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.errors import DataError
from onnxcomp.evaluate.fidelity import Answering, as_array, cosines, same_class
from onnxcomp.evaluate.intervals import CONFIDENCE, Interval, bootstrap_mean, paired_drop, wilson
from onnxcomp.evaluate.predictions import Predictions, predict
from onnxcomp.evaluate.recorded import Recorded
from onnxcomp.evaluate.score import Score, score

#: metrics that need no labels: the input's answers take their place
FIDELITY = ("agreement", "cosine")

_BATCH = 32
_ABOUT = "metric.json"


def record(reference: str | os.PathLike[str], data: Path, metric: str | None, folder: Path) -> Score:
    """Keep what the input answers to a part of the samples, so that it runs once; the score is the input's own.

    Args:
        reference: the input.
        data: the part.
        metric: as `evaluate` takes it, or 'agreement' or 'cosine'; None: 'accuracy' with labels, 'agreement' where
            an output holds class scores or labels, else 'cosine'.
        folder: made.

    Raises DataError for a metric that needs labels where there are none, and what `evaluate` raises.
    """
    session = runtime.open_session(reference)
    batches = Batches(data, session.signature.inputs, batch_size=_BATCH)
    if metric is not None and metric not in FIDELITY and not batches.labelled:
        raise DataError(
            f"{metric} needs labels, and the samples have none",
            where="--metric",
            hint=f"without labels there are: {', '.join(FIDELITY)}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if metric is None and batches.labelled:
        metric = "accuracy"
    if metric is None or metric in FIDELITY:
        Recorded.record(reference, batches, folder)
        if metric is None:
            own = _per_sample(Recorded(reference, folder), Recorded(reference, folder), batches, "agreement")
            metric = "cosine" if own is None else "agreement"
    else:
        ours = predict(session, batches, metric, None)
        score(metric, ours, None, str(data))  # an unknown metric, labels that do not fit: before anything is made
        np.savez(folder / "predictions.npz", chosen=ours.chosen, labels=ours.labels)
        np.savez(folder / "outputs.npz", **ours.outputs)  # type: ignore[arg-type]
    (folder / _ABOUT).write_text(json.dumps({"metric": metric}))
    return judge(reference, reference, data, folder)


def judge(
    candidate: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: Path,
    folder: Path,
    *,
    confidence: float = CONFIDENCE,
) -> Score:
    """What the candidate is worth, and its paired drop from what `record` has kept in `folder`.

    Without labels the score is the share of samples with the same class ('agreement'), or the mean over samples of
    the cosine of the output that is least alike ('cosine'); the input has 1. `confidence` is that of the drop.
    """
    metric = json.loads((folder / _ABOUT).read_text())["metric"]
    session = runtime.open_session(candidate)
    batches = Batches(data, session.signature.inputs, batch_size=_BATCH)
    if metric not in FIDELITY:
        ours = predict(session, batches, metric, None)
        return score(metric, ours, _kept(folder), str(data), confidence=confidence)
    found = _per_sample(Recorded(reference, folder), session, batches, metric)
    if found is None:
        raise DataError("no output can be compared", where=f"--metric {metric}")
    best = Interval(1.0, 1.0, 1.0)
    if metric == "agreement":
        drop = paired_drop(np.ones(len(found), bool), found, confidence=confidence)
        return Score(metric, wilson(int(found.sum()), len(found)), len(found), best, drop, True, str(data))
    drop = bootstrap_mean(1 - found, confidence=confidence)
    return Score(metric, bootstrap_mean(found), len(found), best, drop, True, str(data))


def _kept(folder: Path) -> Predictions:
    with np.load(folder / "predictions.npz", allow_pickle=False) as one, np.load(folder / "outputs.npz") as other:
        return Predictions(dict(other), one["chosen"], one["labels"])


def _per_sample(reference: Answering, candidate: Answering, batches: Batches, metric: str) -> np.ndarray | None:
    """(samples,): whether the class is the same, or the least cosine of all outputs; None where nothing compares."""
    found: list[np.ndarray] = []
    total, done = batches.samples, 0
    for batch in batches:
        worker.report(f"judging {candidate.path.name}", done / total)
        done += batch.samples
        ours, theirs = reference.run(batch.feeds), candidate.run(batch.feeds)
        pairs = [(as_array(ours[name]), as_array(theirs[name])) for name in ours]  # a pass keeps the names
        numbers = [(r, c) for r, c in pairs if r is not None and c is not None]
        if metric == "agreement":
            same = next((s for r, c in numbers if (s := same_class(r, c, batch.samples)) is not None), None)
            if same is None:
                return None
            found.append(same)
        else:
            alike = [cosines(r, c, batch.samples) for r, c in numbers if r.dtype.kind == "f"]
            if not alike:
                return None
            found.append(np.nan_to_num(np.min(np.broadcast_arrays(*alike), axis=0), nan=-1.0))
    return np.concatenate(found)
