"""Metrics against labels, with the paired drop from a reference."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.data.sources import load_attribute
from onnxcomp.errors import DataError, UsageError, nearest
from onnxcomp.evaluate.intervals import CONFIDENCE, Interval, paired_drop, wilson
from onnxcomp.evaluate.predictions import Predictions, predict

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
    _metric(metric)  # before anything runs
    session = runtime.open_session(model, provider=provider)
    batches = data if isinstance(data, Batches) else Batches(data, session.signature.inputs, batch_size=batch_size)
    batches.require_real("accuracy")
    if not batches.labelled:
        raise DataError(
            "the data has no 'labels'",
            where=batches.source.name,
            hint="add an array named labels, or use 'onnxcomp compare'",
        )
    ours, theirs = predict(session, batches, metric, output), None
    if against is not None:
        theirs = predict(runtime.open_session(against, provider=provider), batches, metric, output)
    return score(metric, ours, theirs, batches.source.name)


def score(
    metric: str, ours: Predictions, theirs: Predictions | None, data: str, *, confidence: float = CONFIDENCE
) -> Score:
    """What predictions are worth, and the drop from those of a reference on the same samples.

    `confidence` is that of the drop's interval.
    """
    fn, higher = _metric(metric)
    value, reference, drop = fn(ours, theirs, confidence)
    return Score(metric, value, len(ours.labels), reference, drop, higher, data)


_Judged = tuple[Interval, Interval | None, Interval | None]
_Metric = Callable[[Predictions, Predictions | None, float], _Judged]


def _metric(name: str) -> tuple[_Metric, bool]:
    if name in _METRICS:
        return _METRICS[name]
    if ":" in name:
        return functools.partial(_user_metric, load_attribute(name), name), True
    raise UsageError(
        f"unknown metric '{name}'",
        hint=nearest(name, _METRICS) or f"one of {', '.join(_METRICS)}, or FILE.py:fn",
    )


def _proportion(correct: Callable[[Predictions], np.ndarray]) -> _Metric:
    def judge(ours: Predictions, theirs: Predictions | None, confidence: float) -> _Judged:
        hit = correct(ours)
        value = wilson(int(hit.sum()), len(hit))
        if theirs is None:
            return value, None, None
        other = correct(theirs)
        return value, wilson(int(other.sum()), len(other)), paired_drop(other, hit, confidence=confidence)

    return judge


def _bootstrap(score: Callable[[Predictions, np.ndarray], float]) -> _Metric:
    """Percentile bootstrap over samples, the same resamples for both models (so it is paired)."""

    def judge(ours: Predictions, theirs: Predictions | None, confidence: float) -> _Judged:
        count = len(ours.labels)
        everything = np.arange(count)
        rows = [everything, *_resamples(count)]
        mine = np.array([score(ours, r) for r in rows])
        value = _percentiles(mine)
        if theirs is None:
            return value, None, None
        other = np.array([score(theirs, r) for r in rows])
        return value, _percentiles(other), _percentiles(other - mine, confidence)

    return judge


def _resamples(count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        yield generator.integers(0, count, count)


def _percentiles(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    tail = (1 - confidence) / 2 * 100
    low, high = np.nanpercentile(values[1:], [tail, 100 - tail])
    return Interval(float(values[0]), float(low), float(high))


def _user_metric(
    fn: Callable[..., Any], name: str, ours: Predictions, theirs: Predictions | None, confidence: float
) -> _Judged:
    def scores(p: Predictions) -> np.ndarray:
        found = np.asarray(fn(p.outputs, p.labels), np.float64)
        if found.shape != (len(p.labels),):
            raise DataError(
                f"the metric gave shape {found.shape}, not one score per sample ({len(p.labels)},)",
                where=name,
            )
        return found

    mine = Predictions({}, scores(ours), ours.labels)
    other = None if theirs is None else Predictions({}, scores(theirs), theirs.labels)
    return _bootstrap(lambda p, rows: float(np.mean(p.chosen[rows])))(mine, other, confidence)


def _f1(p: Predictions, rows: np.ndarray) -> float:
    """Macro F1: the mean over classes that occur of 2 TP / (2 TP + FP + FN)."""
    want, got = p.labels[rows].astype(np.int64).reshape(-1), p.chosen[rows].astype(np.int64)
    classes = int(max(want.max(), got.max())) + 1
    hit = np.bincount(want[want == got], minlength=classes)
    support, called = np.bincount(want, minlength=classes), np.bincount(got, minlength=classes)
    occurs = support > 0
    return float(np.mean((2 * hit / np.maximum(support + called, 1))[occurs]))


def _mse(p: Predictions, rows: np.ndarray) -> float:
    want = p.labels[rows].reshape(len(rows), -1)
    got = p.chosen[rows].reshape(len(rows), -1)
    if want.shape != got.shape:
        raise DataError(f"labels {want.shape} and outputs {got.shape} do not fit", where="mse")
    return float(np.mean((want - got) ** 2))


def _spearman(p: Predictions, rows: np.ndarray) -> float:
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
