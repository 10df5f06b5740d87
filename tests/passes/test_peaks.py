"""Ranges with the peaks of rows: the same in one update or many, before and after storing."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.passes.quantize.peaks import Peaks

ROWS = np.random.default_rng(0).standard_normal((100, 3, 8)).astype(np.float32)


def seen(*arrays):
    peaks = Peaks()
    for array in arrays:
        peaks.update(array)
    return peaks


def test_usual_is_the_power_of_two_above_the_median_peak():
    found = seen(ROWS)
    median = np.median(np.abs(ROWS).max(axis=(1, 2)))
    assert median <= found.usual <= 2 * median
    assert (found.low, found.high, found.rows) == (ROWS.min(), ROWS.max(), 100)


def test_rows_of_zeros_do_not_count():
    assert seen(ROWS, np.zeros_like(ROWS), np.zeros_like(ROWS)).usual == seen(ROWS).usual
    assert seen(np.zeros((4, 2), np.float32)).usual == 0
    assert not seen(np.zeros((4, 2), np.float32)).vanish(0, 1e30)


def test_in_pieces_and_stored_in_between():
    whole = seen(ROWS)
    first = seen(ROWS[:37])
    again = Peaks()
    again.restore({k: np.array(v) for k, v in first.state().items()})
    again.update(ROWS[37:])
    for key, array in whole.state().items():
        np.testing.assert_array_equal(array, again.state()[key])


@pytest.mark.parametrize("at", [0, 41, 99])
def test_the_row_that_makes_the_others_vanish(at):
    rows = ROWS.copy()
    rows[at, 1, 1] = -1e30
    found = seen(rows[:50], rows[50:])
    assert found.largest == at
    assert found.vanish(found.low, found.high)
    assert not found.vanish(-4, 4)


@pytest.mark.parametrize(("factor", "vanishes"), [(100, False), (3000, True)])
def test_where_half_a_step_of_eight_bits_lies(factor, vanishes):
    found = seen(ROWS)
    assert found.vanish(0.0, factor * float(np.abs(ROWS).max())) is vanishes


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1.7e308])
def test_the_ends_of_float64(value):
    found = seen(np.array([value, value]))
    assert found.high == value
    assert found.usual >= value or found.usual == np.inf


@pytest.mark.parametrize("array", [np.float32(3), np.zeros((0, 4), np.float32), np.ones((4, 0), np.float32)])
def test_scalars_and_empty_arrays(array):
    found = seen(np.asarray(array))
    assert found.rows == (1 if np.ndim(array) == 0 else 0)
