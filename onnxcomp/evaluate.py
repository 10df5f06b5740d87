"""Is the candidate as good? Fidelity to a reference's outputs, and metrics against labels.

Every figure carries a 95 % interval, and a drop is a paired interval over the same samples: two
models that err on the same samples differ by little, however wide each one's own interval is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy import stats

from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.data.sources import load_attribute
from onnxcomp.errors import DataError, UsageError, nearest

CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """`{value, low, high}`."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclasses.dataclass(frozen=True)
class OutputFidelity:
    """How near one output of the candidate is to the reference's.

    Attributes:
        sqnr_db: signal to quantization noise, 10 log10(sum r^2 / sum (r - c)^2), over all samples.
            Infinite (None in JSON) when the outputs are equal.
        cosine_mean, cosine_p1: cosine similarity per sample: mean and first percentile.
        max_abs: largest absolute difference.
        max_rel: `max_abs` over the largest absolute value of the reference.
    """

    sqnr_db: float
    cosine_mean: float
    cosine_p1: float
    max_abs: float
    max_rel: float

    def to_json(self) -> dict[str, float | None]:
        """The attributes; figures that are not finite as null."""
        return {k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Candidate against reference on the same inputs.

    Attributes:
        samples: how many samples were compared.
        outputs: per output name; outputs that hold no numbers are left out.
        agreement: share of samples with the same largest entry in the first output that looks
            like class scores, or the same value in one that looks like class labels.
        agreement_output: the output that `agreement` is about.
        data: where the samples came from.
    """

    samples: int
    outputs: Mapping[str, OutputFidelity]
    agreement: Interval | None
    agreement_output: str | None
    data: str

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp compare --json`."""
        return {
            "samples": self.samples,
            "outputs": {name: out.to_json() for name, out in self.outputs.items()},
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "agreement_output": self.agreement_output,
            "data": self.data,
        }


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


def compare(
    reference: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    data: Batches | str | os.PathLike[str],
    *,
    batch_size: int = 32,
    provider: str = "cpu",
) -> Fidelity:
    """Run both models on the same real inputs and measure how near the outputs are.

    Statistics are accumulated batch by batch; memory does not grow with the samples.

    Raises DataError when the data is random or empty, or when the models' outputs do not match.
    """
    first, second = _open_pair(reference, candidate, provider)
    batches = _batches(data, first, batch_size)
    batches.require_real("a comparison")
    return compare_sessions(first, second, batches)


def compare_sessions(reference: runtime.Session, candidate: runtime.Session, batches: Batches) -> Fidelity:
    """`compare` for open sessions; whether the data is fit to judge quality is the caller's matter."""
    pairs = _pair_outputs(reference, candidate)
    sums = {name: _OutputSums() for name in pairs}
    votes: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    samples = 0
    total = batches.samples
    for batch in batches:
        worker.report("comparing outputs", samples / total)
        ours, theirs = reference.run(batch.feeds), candidate.run(batch.feeds)
        samples += batch.samples
        for name, other in pairs.items():
            r, c = as_array(ours[name]), as_array(theirs[other])
            if r is None or c is None:
                continue
            if r.shape != c.shape:
                raise DataError(
                    f"the outputs have different shapes: {r.shape} and {c.shape}", where=f"output {name}"
                )
            sums[name].add(r, c, batch.samples)
            same = _same_class(r, c, batch.samples)
            if same is not None:
                votes[name].append(same)
    if samples == 0:
        raise DataError("there are no samples", where=batches.source.name)
    voted = next((n for n, found in votes.items() if sum(map(len, found)) == samples), None)
    agreement = None if voted is None else wilson(int(np.concatenate(votes[voted]).sum()), samples)
    return Fidelity(
        samples,
        {name: s.result() for name, s in sums.items() if s.count},
        agreement,
        voted,
        batches.source.name,
    )


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
    batches = _batches(data, session, batch_size)
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


def wilson(hits: int, count: int) -> Interval:
    """A proportion with Wilson's score interval (1927); sound for small counts and near 0 and 1."""
    result = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / count, float(result.low), float(result.high))


def paired_drop(reference: np.ndarray, candidate: np.ndarray) -> Interval:
    """Difference of two proportions over the same samples (reference minus candidate).

    bool arrays (samples,). The interval adds half an observation to each cell of the paired table
    (Agresti and Min 2005), so that it does not collapse when the models never disagree.
    """
    count = len(reference)
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    centre = (lost - won) / (count + 2)
    spread = math.sqrt(max(lost + won + 1 - (lost - won) ** 2 / (count + 2), 0.0)) / (count + 2)
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * spread
    return Interval((lost - won) / count, max(centre - half, -1.0), min(centre + half, 1.0))


def as_array(value: runtime.Output) -> np.ndarray | None:
    """An output as numbers: arrays as they are, ZipMap's list of dictionaries as a matrix."""
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "fiub" else None
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        keys = sorted(value[0])
        return np.array([[row.get(key, 0.0) for key in keys] for row in value], np.float64)
    return None


class _OutputSums:
    """Streaming sums of one output over batches."""

    def __init__(self) -> None:
        self.count = 0
        self._signal = self._noise = self._max_abs = self._largest = 0.0
        self._cosines: list[np.ndarray] = []

    def add(self, reference: np.ndarray, candidate: np.ndarray, samples: int) -> None:
        r, c = reference.astype(np.float64), candidate.astype(np.float64)
        same = (r == c) | (np.isnan(r) & np.isnan(c))  # also equal infinities: no difference
        diff = np.where(same, 0.0, r - c)
        self.count += 1
        self._signal += float(np.sum(np.where(np.isfinite(r), r, 0.0) ** 2))
        self._noise += float(np.sum(diff**2))
        if diff.size:
            worst = float(np.max(np.abs(diff)))
            self._max_abs = worst if math.isnan(worst) else max(self._max_abs, worst)
            self._largest = max(self._largest, float(np.max(np.abs(np.where(np.isfinite(r), r, 0.0)))))
        rows = samples if r.ndim and r.shape[0] == samples else 1
        a, b = r.reshape(rows, -1), c.reshape(rows, -1)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        dots = np.sum(a * b, axis=1)
        equal = np.all(same.reshape(rows, -1), axis=1)
        safe = np.where(norms > 0, norms, 1.0)
        self._cosines.append(np.where(equal, 1.0, np.where(norms > 0, dots / safe, 0.0)))

    def result(self) -> OutputFidelity:
        cosines = np.concatenate(self._cosines)
        if self._noise == 0:
            sqnr = math.inf
        elif math.isnan(self._noise) or self._signal == 0:
            sqnr = -math.inf
        else:
            sqnr = 10 * math.log10(self._signal / self._noise)
        return OutputFidelity(
            sqnr_db=sqnr,
            cosine_mean=float(np.mean(cosines)),
            cosine_p1=float(np.percentile(cosines, 1)),
            max_abs=self._max_abs,
            max_rel=self._max_abs / self._largest if self._largest else self._max_abs,
        )


@dataclasses.dataclass(frozen=True)
class _Predictions:
    """Outputs (samples, ...) by name, the chosen one, and labels (samples, ...)."""

    outputs: Mapping[str, np.ndarray]
    chosen: np.ndarray
    labels: np.ndarray


_Judged = tuple[Interval, Interval | None, Interval | None]
_Metric = Callable[[_Predictions, _Predictions | None], _Judged]


def _predictions(
    session: runtime.Session, batches: Batches, metric: str, output: str | None
) -> _Predictions:
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


def _user_metric(
    fn: Callable[..., Any], name: str, ours: _Predictions, theirs: _Predictions | None
) -> _Judged:
    def scores(p: _Predictions) -> np.ndarray:
        found = np.asarray(fn(p.outputs, p.labels), np.float64)
        if found.shape != (len(p.labels),):
            raise DataError(
                f"the metric gave shape {found.shape}, not one score per sample ({len(p.labels)},)", where=name
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


def _open_pair(
    reference: str | os.PathLike[str], candidate: str | os.PathLike[str], provider: str
) -> tuple[runtime.Session, runtime.Session]:
    return (
        runtime.open_session(reference, provider=provider),
        runtime.open_session(candidate, provider=provider),
    )


def _pair_outputs(reference: runtime.Session, candidate: runtime.Session) -> dict[str, str]:
    ours = [s.name for s in reference.signature.outputs]
    theirs = [s.name for s in candidate.signature.outputs]
    wanted = {s.name for s in candidate.signature.inputs}
    if wanted != {s.name for s in reference.signature.inputs}:
        raise DataError("the models have different inputs", where=candidate.path)
    if set(ours) <= set(theirs):
        return {name: name for name in ours}
    if len(ours) == len(theirs):
        return dict(zip(ours, theirs, strict=True))
    raise DataError(
        f"the models have different outputs: {', '.join(ours)} and {', '.join(theirs)}", where=candidate.path
    )


def _batches(data: Batches | str | os.PathLike[str], session: runtime.Session, size: int) -> Batches:
    return data if isinstance(data, Batches) else Batches(data, session.signature.inputs, batch_size=size)


def _same_class(reference: np.ndarray, candidate: np.ndarray, samples: int) -> np.ndarray | None:
    if reference.ndim == 0 or reference.shape[0] != samples:
        return None
    if reference.dtype.kind == "f":
        if reference.ndim != 2 or reference.shape[1] < 2:
            return None
        return np.asarray(np.argmax(reference, axis=1) == np.argmax(candidate, axis=1))
    if reference.ndim == 1 and reference.dtype.kind in "iu":
        return np.asarray(reference == candidate)
    return None
