"""The growing histogram: equal to one pass over all values, whatever came in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.activations import Histogram
from onnxcomp.activations.histogram import BINS

HALF = BINS // 2


def histogram(*batches) -> Histogram:
    made = Histogram()
    for batch in batches:
        made.update(np.asarray(batch))
    return made


def one_pass(values: np.ndarray) -> np.ndarray:
    """Counts by division, with the width known beforehand."""
    values = values.astype(np.float64).reshape(-1)
    peak = np.abs(values).max()
    reach = 2.0 ** (math.floor(math.log2(peak)) + 1)
    index = np.floor(values / reach * HALF).astype(int) + HALF
    return np.bincount(index, minlength=BINS)


def assert_same(a: Histogram, b: Histogram) -> None:
    np.testing.assert_array_equal(a.counts, b.counts)
    assert (a.width, a.low, a.high) == (b.width, b.low, b.high)


def test_it_equals_one_pass_in_any_order_and_batches():
    generator = np.random.default_rng(0)
    # scales from 1e-4 to 1e4: the width doubles many times, and where it does depends on the order
    values = (generator.standard_normal((40, 500)) * 10.0 ** generator.uniform(-4, 4, (40, 1))).astype(np.float32)
    expected = one_pass(values)
    whole = histogram(values)
    np.testing.assert_array_equal(whole.counts, expected)
    assert (whole.low, whole.high) == (float(values.min()), float(values.max()))
    assert_same(histogram(*values), whole)
    assert_same(histogram(*values[::-1]), whole)
    assert_same(histogram(*np.array_split(generator.permutation(values.reshape(-1)), 7)), whole)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_any_floats_in_any_batches(values, cuts):
    array = np.array(values, np.float32)
    whole = histogram(array)
    assert_same(histogram(*np.split(array, sorted(cuts))), whole)
    assert whole.counts.sum() == len(values)
    centers, counts = whole.occupied()
    # each value lies within half a width of the center of a bin that counts it
    for value in map(float, array):
        assert counts[np.abs(centers - value) <= whole.width / 2].sum() > 0


def test_a_larger_value_merges_two_bins_into_one():
    made = histogram([0.5, 0.25, -0.25])
    assert made.width * HALF == 1.0
    made.update(np.array([3.0]))  # two doublings
    assert made.width * HALF == 4.0
    expected = np.zeros(BINS, int)
    for value in (0.5, 0.25, -0.25, 3.0):
        expected[int(np.floor(value / made.width)) + HALF] += 1
    np.testing.assert_array_equal(made.counts, expected)


def test_powers_of_two_lie_inside_on_both_sides():
    made = histogram([-1.0, 1.0])
    assert made.counts.sum() == 2
    assert made.width * HALF == 2.0
    np.testing.assert_array_equal(np.flatnonzero(made.counts), [HALF // 2, HALF + HALF // 2])


def test_zeros_alone_and_later_values():
    made = histogram(np.zeros(5), np.zeros((2, 3)))
    assert (made.width, made.low, made.high) == (0.0, 0.0, 0.0)
    centers, counts = made.occupied()
    assert (centers.tolist(), counts.tolist()) == ([0.0], [11])
    made.update(np.array([7.0]))
    assert made.counts[HALF] == 11
    assert_same(made, histogram(np.array([7.0]), np.zeros(11)))


def test_negative_alone():
    values = -np.random.default_rng(1).exponential(3, 1000)
    made = histogram(values)
    np.testing.assert_array_equal(made.counts, one_pass(values))
    assert made.counts[HALF:].sum() == 0


@pytest.mark.parametrize(
    "values",
    [
        np.array([1e-45, -3e-45, 0, 1e-40], np.float32),  # denormal
        np.array([6e-8, -6e-8, 6e-5], np.float16),
        np.array([5e-324, 1e-310, -1e-320]),
        np.array([1.7e308, -1.7e308, 1.0]),
        np.array([3.4e38, -3.4e38, 1e-45], np.float32),
        np.array([65504, -65504], np.float16),
    ],
    ids=["float32 denormal", "float16 denormal", "float64 denormal", "float64 huge", "float32 both", "float16 huge"],
)
def test_the_ends_of_each_type(values):
    made = histogram(values)
    assert made.counts.sum() == values.size
    assert (made.low, made.high) == (float(values.min()), float(values.max()))
    assert np.isfinite(made.centers).all()
    assert_same(made, histogram(*values[::-1].reshape(-1, 1)))


def test_more_values_than_are_counted_at_a_time():
    values = np.random.default_rng(2).standard_normal(600_000).astype(np.float32)
    np.testing.assert_array_equal(histogram(values).counts, one_pass(values))


def test_no_values():
    made = histogram(np.zeros((0, 3), np.float32))
    assert made.counts.sum() == 0
    assert made.low > made.high
    assert made.occupied()[0].size == 0


def test_it_goes_on_from_its_state():
    values = np.random.default_rng(3).standard_normal((2, 1000)) * [[1], [100]]
    first = histogram(values[0])
    second = Histogram()
    second.restore({name: np.array(array) for name, array in first.state().items()})
    second.update(values[1])
    assert_same(second, histogram(values))
    assert_same(first, histogram(values[0]))  # what was restored is a copy
