"""Range, channels and rows: equal to one pass, and resumable."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.activations import Channels, Histogram, Range, Rows


def resumed(statistic, empty, batches):
    """`empty`, gone on from what `statistic` keeps."""
    empty.restore({name: np.array(array) for name, array in statistic.state().items()})
    for batch in batches:
        empty.update(batch)
    return empty


def test_range():
    batches = [np.array([[1.0, -2.0]]), np.zeros((0, 2)), np.array([[5.0, 0.5], [-3.5, 4.0]])]
    made = Range()
    for batch in batches:
        made.update(batch)
    assert (made.low, made.high) == (-3.5, 5.0)
    assert Range().low > Range().high
    first = Range()
    first.update(batches[0])
    again = resumed(first, Range(), batches[1:])
    assert (again.low, again.high) == (-3.5, 5.0)


@pytest.mark.parametrize("axis", [-1, 1])
def test_channels_of_batches_of_different_shapes(axis):
    generator = np.random.default_rng(0)
    shapes = [(4, 6, 6), (2, 6, 9, 6), (6, 6), (0, 6, 6)] if axis == -1 else [(4, 6, 5), (2, 6), (3, 6, 2, 2)]
    batches = [(generator.standard_normal(shape) + 3).astype(np.float32) for shape in shapes]
    made = Channels(axis)
    for batch in batches:
        made.update(batch)
    flat = np.concatenate([np.moveaxis(b, axis, -1).reshape(-1, 6) for b in batches])
    np.testing.assert_array_equal(made.low, flat.min(0))
    np.testing.assert_array_equal(made.high, flat.max(0))
    np.testing.assert_allclose(made.mean, flat.mean(0, dtype=np.float64), rtol=1e-12)
    assert made.count == len(flat)
    first = Channels(axis)
    first.update(batches[0])
    again = resumed(first, Channels(axis), batches[1:])
    np.testing.assert_array_equal(again.total, made.total)
    np.testing.assert_array_equal(again.low, made.low)
    assert again.count == made.count


def test_the_mean_of_float16_does_not_overflow():
    made = Channels(-1)
    made.update(np.full((100, 2), 60000, np.float16))
    np.testing.assert_allclose(made.mean, np.float16(60000))


def test_rows_are_all_where_there_are_few():
    rows = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    made = Rows(5)
    made.update(rows)
    np.testing.assert_array_equal(made.rows, rows.reshape(4, 3))


def test_rows_are_a_uniform_sample_without_repetition():
    ids = np.arange(20_000, dtype=np.float32).reshape(-1, 1)
    made = Rows(2000)
    for batch in np.array_split(ids, 37):
        made.update(batch)
    assert made.rows.shape == (2000, 1)
    assert len(np.unique(made.rows)) == 2000
    # each tenth of the stream holds 200 +- 13 of the sample; 5 standard deviations
    counts = np.histogram(made.rows, 10, (0, 20_000))[0]
    assert np.abs(counts - 200).max() < 67
    assert made.rows.base is None  # not a view that keeps a batch alive


def test_rows_of_a_single_batch_are_uniform_too():
    made = Rows(2000)
    made.update(np.arange(20_000, dtype=np.float32).reshape(100, 200, 1))
    assert np.abs(np.histogram(made.rows, 10, (0, 20_000))[0] - 200).max() < 67


def test_the_same_rows_on_repeat_and_after_a_resumption():
    batches = np.array_split(np.random.default_rng(1).standard_normal((3000, 4)).astype(np.float32), 11)
    whole = Rows(100)
    for batch in batches:
        whole.update(batch)
    first = Rows(100)
    for batch in batches[:6]:
        first.update(batch)
    again = resumed(first, Rows(100), batches[6:])
    assert again.rows.tobytes() == whole.rows.tobytes()


def test_names_tell_what_differs():
    named = [Range(), Channels(-1), Channels(1), Rows(5), Rows(6), Histogram()]
    assert len({statistic.name for statistic in named}) == len(named)
