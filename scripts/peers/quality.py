"""How good is a quantized model? Embeddings of sentences beside those of float32; test samples that come out right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.evaluate import Interval, paired_drop, wilson

Arrays = Mapping[str, np.ndarray]
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What one model makes of the same inputs as every other.

    Attributes:
        test: first output for the test samples, float32, (samples, width), in batches of 32.
        alone: for the sentences, each in a run of its own; None for images.
        padded: for the sentences in batches of 32, padded to the longest of all; None for images.
    """

    test: np.ndarray
    alone: np.ndarray | None = None
    padded: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Quality:
    """Shares in [0, 1], each with its 95 % interval; fidelity only for text.

    Attributes:
        right: test samples that are right, by class or by the intent of the nearest other.
        drop: of `right` from float32, paired.
        cosine: to float32's embeddings, mean over sentences that run alone.
        cosine_padded: the same in padded batches.
        nearest: sentences, run alone, whose nearest other is float32's.
    """

    right: Interval
    drop: Interval
    cosine: float | None = None
    cosine_padded: float | None = None
    nearest: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def outputs(model: Path, test: Arrays, sentences: Arrays | None) -> Outputs:
    """Run a model in a child process, since its kernels may crash. Raises OnnxcompError: it does not load or run."""
    return worker.isolated(_outputs, model, test, sentences)


def _outputs(model: Path, test: Arrays, sentences: Arrays | None) -> Outputs:
    session = runtime.open_session(model)

    def run(feeds: Sequence[Arrays]) -> np.ndarray:
        return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])

    def batches(arrays: Arrays) -> list[Arrays]:
        return [batch.feeds for batch in Batches(arrays, session.signature.inputs, batch_size=BATCH)]

    judged = run(batches(test))
    if sentences is None:
        return Outputs(judged)
    lengths = sentences["attention_mask"].sum(1)
    alone = [{name: array[i : i + 1, :n] for name, array in sentences.items()} for i, n in enumerate(lengths)]
    return Outputs(judged, run(alone), run(batches(sentences)))


def judge(reference: Outputs, candidate: Outputs, labels: np.ndarray) -> Quality:
    """A candidate beside float32. labels: (samples,) int64."""
    if reference.alone is None or candidate.alone is None or reference.padded is None or candidate.padded is None:
        before, after = (one.test.argmax(1) == labels for one in (reference, candidate))
        return Quality(wilson(int(after.sum()), len(after)), paired_drop(before, after))
    before, after = (labels[_nearest(one.test)] == labels for one in (reference, candidate))
    kept = _nearest(reference.alone) == _nearest(candidate.alone)
    return Quality(
        wilson(int(after.sum()), len(after)),
        paired_drop(before, after),
        _cosine(reference.alone, candidate.alone),
        _cosine(reference.padded, candidate.padded),
        wilson(int(kept.sum()), len(kept)),
    )


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over the rows; nan where an embedding is not finite."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean((first * second).sum(1) / lengths))


def _nearest(embeddings: np.ndarray) -> np.ndarray:
    """Row of the nearest other embedding by cosine, (n,) int64."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    found: np.ndarray = near.argmax(1)
    return found
