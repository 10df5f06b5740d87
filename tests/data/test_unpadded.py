"""Texts cut to their length: the same samples, no padding, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.data import Batches, unpadded
from onnxcomp.data.sources import Source
from onnxcomp.model import InputSpec

IDS = InputSpec("input_ids", "int64", ("batch", "seq"))
MASK = InputSpec("attention_mask", "int64", ("batch", "seq"))
OTHER = InputSpec("weights", "float32", ("batch", 3))


def texts(lengths, width=8):
    mask = (np.arange(width) < np.array(lengths)[:, np.newaxis]).astype(np.int64)
    ids = np.arange(1, len(lengths) + 1)[:, np.newaxis] * mask
    return {"input_ids": ids, "attention_mask": mask}


def test_samples_of_one_length_come_together_and_without_padding():
    lengths = [3, 5, 3, 8, 1, 5, 3]
    arrays = texts(lengths) | {"weights": np.arange(21, dtype=np.float32).reshape(7, 3), "labels": np.arange(7)}
    found = list(unpadded(Batches(arrays, [IDS, MASK, OTHER], batch_size=2)))
    assert [batch.feeds["input_ids"].shape for batch in found] == [(1, 1), (2, 3), (1, 3), (2, 5), (1, 8)]
    for batch in found:
        assert batch.feeds["attention_mask"].all()
        np.testing.assert_array_equal(batch.feeds["weights"], arrays["weights"][batch.labels])
        np.testing.assert_array_equal(batch.feeds["input_ids"][:, 0], batch.labels + 1)
    assert sorted(np.concatenate([batch.labels for batch in found])) == list(range(7))


def test_it_can_be_divided_and_cut_into_other_batches():
    data = unpadded(Batches(texts([2, 7, 2, 4, 4, 1, 6, 6]), [IDS, MASK]))
    assert data.samples == 8
    parts = data.split(0.5)
    seen = [int(i) for part in parts for batch in part.in_batches_of(1) for i in batch.feeds["input_ids"][:, 0]]
    assert sorted(seen) == list(range(1, 9))
    assert unpadded(Batches(texts([2, 7, 2, 4]), [IDS, MASK]).take(2)).samples == 2


def test_only_the_end_is_cut():
    mask = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
    found = list(unpadded(Batches({"attention_mask": mask, "input_ids": mask}, [IDS, MASK])))
    assert [batch.feeds["attention_mask"].tolist() for batch in found] == [[[0]], [[0, 1, 1]], [[1, 0, 1, 1]]]


@pytest.mark.parametrize(
    "specs",
    [
        [IDS],
        [IDS, InputSpec("attention_mask", "int64", ("batch", 8))],
        [IDS, InputSpec("attention_mask", "int64", (4, "seq"))],
        [IDS, InputSpec("attention_mask", "float32", ("batch", "seq"))],
    ],
)
def test_other_models_get_their_data(specs):
    arrays = {spec.name: texts([2, 7, 2, 4])[spec.name].astype(spec.dtype) for spec in specs}
    data = Batches(arrays, specs)
    assert unpadded(data) is data


def test_whole_inputs_and_shards_stay_what_they_are():
    whole = {name: array[np.newaxis] for name, array in texts([2, 3, 4]).items()}
    (batch,) = unpadded(Batches(whole, [IDS, MASK]))
    assert batch.samples == 1
    assert batch.feeds["input_ids"].shape == (3, 8)
    shards = Source("shards", lambda: iter([texts([2, 3], 4), texts([5, 5, 1], 6)]))
    found = [batch.feeds["input_ids"].shape for batch in unpadded(Batches(shards, [IDS, MASK]))]
    assert found == [(1, 2), (1, 3), (1, 1), (2, 5)]
