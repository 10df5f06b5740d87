"""Fidelity: how near a candidate's outputs are to a reference's, without labels."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.errors import DataError
from onnxcomp.evaluate.intervals import Interval, wilson
from onnxcomp.evaluate.neighbours import Neighbours
from onnxcomp.model import Signature


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
        nearest: share of samples whose nearest other sample, by cosine, is the same, in the first output that looks
            like embeddings of length 1; among the first 4,096 samples.
        nearest_output: the output that `nearest` is about.
        data: where the samples came from.
    """

    samples: int
    outputs: Mapping[str, OutputFidelity]
    agreement: Interval | None
    agreement_output: str | None
    nearest: Interval | None
    nearest_output: str | None
    data: str

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp compare --json`."""
        return {
            "samples": self.samples,
            "outputs": {name: out.to_json() for name, out in self.outputs.items()},
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "agreement_output": self.agreement_output,
            "nearest": None if self.nearest is None else self.nearest.to_json(),
            "nearest_output": self.nearest_output,
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

    Statistics are accumulated batch by batch; memory does not grow with the samples (of embeddings the first 4,096
    are kept).

    Raises DataError when the data is random or empty, or when the models' outputs do not match.
    """
    first, second = _open_pair(reference, candidate, provider)
    batches = data if isinstance(data, Batches) else Batches(data, first.signature.inputs, batch_size=batch_size)
    batches.require_real("a comparison")
    return compare_sessions(first, second, batches)


class Answering(Protocol):
    """What a comparison needs of a session: one may be a record of another run."""

    @property
    def path(self) -> Path:
        """Of the model."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the model."""

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Mapping[str, runtime.Output]:
        """Outputs by name."""


def compare_sessions(reference: Answering, candidate: Answering, batches: Batches) -> Fidelity:
    """`compare` for open sessions; whether the data is fit to judge quality is the caller's matter."""
    pairs = _pair_outputs(reference, candidate)
    sums = {name: _OutputSums() for name in pairs}
    votes: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    neighbours = {name: Neighbours() for name in pairs}
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
                raise DataError(f"the outputs have different shapes: {r.shape} and {c.shape}", where=f"output {name}")
            sums[name].add(r, c, batch.samples)
            neighbours[name].add(r, c, batch.samples)
            same = same_class(r, c, batch.samples)
            if same is not None:
                votes[name].append(same)
    if samples == 0:
        raise DataError("there are no samples", where=batches.source.name)
    voted = next((n for n, found in votes.items() if sum(map(len, found)) == samples), None)
    agreement = None if voted is None else wilson(int(np.concatenate(votes[voted]).sum()), samples)
    kept = {name: share for name, one in neighbours.items() if (share := one.kept()) is not None}
    near = next(iter(kept), None)
    return Fidelity(
        samples,
        {name: s.result() for name, s in sums.items() if s.count},
        agreement,
        voted,
        None if near is None else kept[near],
        near,
        batches.source.name,
    )


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
        with np.errstate(invalid="ignore"):  # equal infinities
            diff = np.where(same, 0.0, r - c)
        self.count += 1
        self._signal += float(np.sum(np.where(np.isfinite(r), r, 0.0) ** 2))
        self._noise += float(np.sum(diff**2))
        if diff.size:
            worst = float(np.max(np.abs(diff)))
            self._max_abs = worst if math.isnan(worst) else max(self._max_abs, worst)
            self._largest = max(self._largest, float(np.max(np.abs(np.where(np.isfinite(r), r, 0.0)))))
        self._cosines.append(cosines(r, c, samples))

    def result(self) -> OutputFidelity:
        cosines = np.concatenate(self._cosines)
        if self._noise == 0:
            sqnr = math.inf
        elif not math.isfinite(self._noise) or self._signal == 0:
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


def cosines(reference: np.ndarray, candidate: np.ndarray, samples: int) -> np.ndarray:
    """Cosine similarity of each sample, (samples,); of the whole, (1,), where the first axis does not count samples.

    1 for equal samples, of zeros too; NaN for what is not finite.
    """
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    rows = samples if r.ndim and r.shape[0] == samples else 1
    a, b = r.reshape(rows, -1), c.reshape(rows, -1)
    equal = np.all((a == b) | (np.isnan(a) & np.isnan(b)), axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    safe = np.where(norms > 0, norms, 1.0)
    with np.errstate(invalid="ignore"):  # infinite candidates
        found: np.ndarray = np.where(equal, 1.0, np.where(norms > 0, np.sum(a * b, axis=1) / safe, 0.0))
    return found


def _open_pair(
    reference: str | os.PathLike[str], candidate: str | os.PathLike[str], provider: str
) -> tuple[runtime.Session, runtime.Session]:
    return (
        runtime.open_session(reference, provider=provider),
        runtime.open_session(candidate, provider=provider),
    )


def _pair_outputs(reference: Answering, candidate: Answering) -> dict[str, str]:
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


def same_class(reference: np.ndarray, candidate: np.ndarray, samples: int) -> np.ndarray | None:
    """Whether the largest class score, or the label, of each sample is the same; None for other outputs."""
    if reference.ndim == 0 or reference.shape[0] != samples:
        return None
    if reference.dtype.kind == "f":
        if reference.ndim != 2 or reference.shape[1] < 2:
            return None
        return np.asarray(np.argmax(reference, axis=1) == np.argmax(candidate, axis=1))
    if reference.ndim == 1 and reference.dtype.kind in "iu":
        return np.asarray(reference == candidate)
    return None
