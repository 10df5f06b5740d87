"""Metrics against labels, with the paired drop from a reference."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy import stats

from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.data.sources import load_attribute
from onnxcomp.errors import DataError, UsageError, nearest
from onnxcomp.evaluate.fidelity import as_array
from onnxcomp.evaluate.intervals import CONFIDENCE, Interval, paired_drop, wilson

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric against labels, and the drop from a reference where one was given.

    Attributes:
        metric: the metric's name.
        value: with its interval, in the metric's own unit.
        samples: how many labelled samples.
        reference: the reference's value.
        drop: reference minus candidate, paired, in the metric's unit; read it with `higher_is_better`.
        higher_is_better: the metric's direction.
        data: where the samples came from.
    """

    metric: str
    value: Interval
    samples: int
    reference: Interval | None
    drop: Interval | None
    higher_is_better: bool
    data: str

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp evaluate --json`."""
        return {
            "metric": self.metric,
            **self.value.to_json(),
            "samples": self.samples,
            "reference": None if self.reference is None else self.reference.to_json(),
            "drop": None if self.drop is None else self.drop.to_json(),
            "higher_is_better": self.higher_is_better,
            "data": self.data,
        }


def evaluate(
    model: str | os.PathLike[str],
    data: Batches | str | os.PathLike[str],
    *,
    metric: str = "accuracy",
    against: str | os.PathLike[str] | None = None,
    output: str | None = None,
    batch_size: int = 32,
    provider: str = "cpu",
) -> Score:
    """Judge a model against labels, and optionally against a reference on the same samples.

    Args:
        model: path of the candidate.
        data: samples with `labels`.
        metric: 'accuracy', 'top5', 'f1' (macro), 'mse', 'spearman', or `FILE.py:fn`. `fn` gets
            (outputs: {name: array}, labels) and returns one score per sample, higher is better.
        against: path of the reference, for a paired drop.
        output: which output is scored; by default the first that fits the metric.
        batch_size: samples per run where the model leaves it open.
        provider: execution provider.

    Raises DataError without labels or with random data, UsageError for an unknown metric.
    """
    fn, higher = _metric(metric)
    session = runtime.open_session(model, provider=provider)
    batches = data if isinstance(data, Batches) else Batches(data, session.signature.inputs, batch_size=batch_size)
    batches.require_real("accuracy")
    if not batches.labelled:
        raise DataError(
            "the data has no 'labels'",
            where=batches.source.name,
            hint="add an array named labels, or use 'onnxcomp compare'",
        )
    ours = _predictions(session, batches, metric, output)
    reference = drop = None
    if against is None:
        value = fn(ours, None)[0]
    else:
        other = runtime.open_session(against, provider=provider)
        theirs = _predictions(other, batches, metric, output)
        value, reference, drop = fn(ours, theirs)
    return Score(metric, value, len(ours.labels), reference, drop, higher, batches.source.name)


@dataclasses.dataclass(frozen=True)
class _Predictions:
    """Outputs (samples, ...) by name, the chosen one, and labels (samples, ...)."""

    outputs: Mapping[str, np.ndarray]
    chosen: np.ndarray
    labels: np.ndarray


_Judged = tuple[Interval, Interval | None, Interval | None]
_Metric = Callable[[_Predictions, _Predictions | None], _Judged]


def _predictions(session: runtime.Session, batches: Batches, metric: str, output: str | None) -> _Predictions:
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
    return _Predictions(outputs, next(iter(outputs.values())), np.concatenate(labels))


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


def _metric(name: str) -> tuple[_Metric, bool]:
    if name in _METRICS:
        return _METRICS[name]
    if ":" in name:
        return functools.partial(_user_metric, load_attribute(name), name), True
    raise UsageError(
        f"unknown metric '{name}'",
        hint=nearest(name, _METRICS) or f"one of {', '.join(_METRICS)}, or FILE.py:fn",
    )


def _proportion(correct: Callable[[_Predictions], np.ndarray]) -> _Metric:
    def judge(ours: _Predictions, theirs: _Predictions | None) -> _Judged:
        hit = correct(ours)
        value = wilson(int(hit.sum()), len(hit))
        if theirs is None:
            return value, None, None
        other = correct(theirs)
        return value, wilson(int(other.sum()), len(other)), paired_drop(other, hit)

    return judge


def _bootstrap(score: Callable[[_Predictions, np.ndarray], float]) -> _Metric:
    """Percentile bootstrap over samples, the same resamples for both models (so it is paired)."""

    def judge(ours: _Predictions, theirs: _Predictions | None) -> _Judged:
        count = len(ours.labels)
        everything = np.arange(count)
        rows = [everything, *_resamples(count)]
        mine = np.array([score(ours, r) for r in rows])
        value = _percentiles(mine)
        if theirs is None:
            return value, None, None
        other = np.array([score(theirs, r) for r in rows])
        return value, _percentiles(other), _percentiles(other - mine)

    return judge


def _resamples(count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        yield generator.integers(0, count, count)


def _percentiles(values: np.ndarray) -> Interval:
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.nanpercentile(values[1:], [tail, 100 - tail])
    return Interval(float(values[0]), float(low), float(high))


def _user_metric(fn: Callable[..., Any], name: str, ours: _Predictions, theirs: _Predictions | None) -> _Judged:
    def scores(p: _Predictions) -> np.ndarray:
        found = np.asarray(fn(p.outputs, p.labels), np.float64)
        if found.shape != (len(p.labels),):
            raise DataError(
                f"the metric gave shape {found.shape}, not one score per sample ({len(p.labels)},)",
                where=name,
            )
        return found

    mine = _Predictions({}, scores(ours), ours.labels)
    other = None if theirs is None else _Predictions({}, scores(theirs), theirs.labels)
    return _bootstrap(lambda p, rows: float(np.mean(p.chosen[rows])))(mine, other)


def _f1(p: _Predictions, rows: np.ndarray) -> float:
    """Macro F1: the mean over classes that occur of 2 TP / (2 TP + FP + FN)."""
    want, got = p.labels[rows].astype(np.int64).reshape(-1), p.chosen[rows].astype(np.int64)
    classes = int(max(want.max(), got.max())) + 1
    hit = np.bincount(want[want == got], minlength=classes)
    support, called = np.bincount(want, minlength=classes), np.bincount(got, minlength=classes)
    occurs = support > 0
    return float(np.mean((2 * hit / np.maximum(support + called, 1))[occurs]))


def _mse(p: _Predictions, rows: np.ndarray) -> float:
    want = p.labels[rows].reshape(len(rows), -1)
    got = p.chosen[rows].reshape(len(rows), -1)
    if want.shape != got.shape:
        raise DataError(f"labels {want.shape} and outputs {got.shape} do not fit", where="mse")
    return float(np.mean((want - got) ** 2))


def _spearman(p: _Predictions, rows: np.ndarray) -> float:
    want, got = p.labels[rows].reshape(-1), p.chosen[rows].reshape(-1)
    if want.shape != got.shape:
        raise DataError(f"labels {want.shape} and outputs {got.shape} do not fit", where="spearman")
    ranks = np.corrcoef(stats.rankdata(want), stats.rankdata(got))
    return float(ranks[0, 1])


_METRICS: dict[str, tuple[_Metric, bool]] = {
    "accuracy": (_proportion(lambda p: p.chosen == p.labels.reshape(-1)), True),
    "top5": (_proportion(lambda p: np.any(p.chosen == p.labels.reshape(-1, 1), axis=1)), True),
    "f1": (_bootstrap(_f1), True),
    "mse": (_bootstrap(_mse), False),
    "spearman": (_bootstrap(_spearman), True),
}
