"""Texts without their padding: samples of one length together, cut to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxcomp.data.batches import Batches
from onnxcomp.data.sources import LABELS, Shard, Source
from onnxcomp.model import InputSpec

#: the input that says which positions are text, as exporters of transformers name it
MASK = "attention_mask"

#: samples that are ordered by length at a time
_AT_ONCE = 4096


def unpadded(data: Batches) -> Batches:
    """The same samples, ordered by length, each without the positions at its end that the mask leaves out.

    Statistics of what is inside a model are then those of text, and there is less to compute. Where the model has
    no input `attention_mask` (integers, (batch, length)) with an open length, `data` itself. A sample
    that is masked in the middle or in front keeps that, and one that is masked throughout keeps one position.
    """
    axes = None if data.random else text_axes(data.inputs)
    if axes is None:
        return data
    source = Source(data.source.name, lambda: _cut(data, axes))
    return Batches(source, data.inputs, batch_size=data.batch_size)


def text_axes(inputs: Sequence[InputSpec]) -> dict[str, list[int]] | None:
    """The axes of each input that are positions of a text; None without the mask that `unpadded` asks for."""
    mask = next((spec for spec in inputs if spec.name == MASK), None)
    if mask is None or not mask.dtype.startswith("int") or mask.shape is None or len(mask.shape) != 2:
        return None
    length = mask.shape[1]
    if not isinstance(length, str) or isinstance(mask.shape[0], int):
        return None
    return {spec.name: [axis for axis, size in enumerate(spec.shape or ()) if size == length] for spec in inputs}


def text_lengths(mask: np.ndarray) -> np.ndarray:
    """Positions of each sample up to the last that is not 0, at least 1: int64, (samples,)."""
    masked = mask == 0
    lengths: np.ndarray = np.where(masked.all(1), 1, mask.shape[1] - np.argmin(masked[:, ::-1], axis=1))
    return lengths


def _cut(data: Batches, axes: dict[str, list[int]]) -> Iterator[Shard]:
    for batch in data.in_batches_of(_AT_ONCE):
        shard = dict(batch.feeds) if batch.labels is None else {**batch.feeds, LABELS: batch.labels}
        if any(array.ndim == 0 or len(array) != batch.samples for array in batch.feeds.values()):
            yield {**shard, **{name: array[np.newaxis] for name, array in batch.feeds.items()}}  # one whole input each
            continue
        lengths = text_lengths(shard[MASK])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            yield {name: _shortened(array[rows], axes.get(name, []), length) for name, array in shard.items()}


def _shortened(array: np.ndarray, axes: list[int], length: int) -> np.ndarray:
    for axis in axes:
        array = array[(slice(None),) * axis + (slice(0, length),)]
    return array
