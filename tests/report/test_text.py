"""Numbers as people read them."""

from __future__ import annotations

import pytest

from onnxcomp.report import text


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (3_160_000, "3.16 MB"),
        (999_900_000, "1 GB"),
        (15_300_000_000, "15.3 GB"),
        (2_500_000_000_000, "2.5 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_size(count, expected):
    assert text.size(count) == expected


@pytest.mark.parametrize(("count", "expected"), [(None, "-"), (0, "0"), (784223, "784,223"), (12.7, "13")])
def test_number(count, expected):
    assert text.number(count) == expected


@pytest.mark.parametrize(
    ("fraction", "digits", "expected"),
    [(None, 2, "-"), (0.974, 2, "97.40 %"), (0.974, 1, "97.4 %"), (1.0, 0, "100 %"), (-0.0017, 2, "-0.17 %")],
)
def test_percent(fraction, digits, expected):
    assert text.percent(fraction, digits) == expected


@pytest.mark.parametrize(
    ("value", "metric", "expected"),
    [
        (0.974, "accuracy", "97.40 %"),
        (0.974, "top5", "97.40 %"),
        (0.974, "f1", "97.40 %"),
        (0.974, "mse", "0.974"),
        (12345.678, "spearman", "1.235e+04"),
        (None, "accuracy", "-"),
    ],
)
def test_score(value, metric, expected):
    assert text.score(value, metric) == expected


@pytest.mark.parametrize(
    ("found", "metric", "expected"),
    [
        ({"value": 0.974, "low": 0.9351, "high": 0.9899}, "accuracy", "97.40 % [93.51, 98.99]"),
        ({"value": -0.001, "low": -0.004, "high": 0.002}, "f1", "-0.10 % [-0.40, 0.20]"),
        ({"value": 0.5, "low": 0.25, "high": 0.75}, "mse", "0.5 [0.25, 0.75]"),
        (None, "accuracy", "-"),
    ],
)
def test_score_interval(found, metric, expected):
    assert text.score_interval(found, metric) == expected


def test_ratio():
    assert text.ratio({"value": 1.418, "low": 1.394, "high": 1.449}) == "1.42x [1.39, 1.45]"


@pytest.mark.parametrize(
    ("sqnr", "worst", "expected"),
    [(31.42, 0.1, "31.4 dB"), (None, 0, "equal"), (None, 0.5, "none"), (None, None, "none")],
)
def test_decibel_calls_outputs_equal_only_where_they_are(sqnr, worst, expected):
    assert text.decibel({"sqnr_db": sqnr, "max_abs": worst}) == expected


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (1.2, 1.1, 1.3, "1.20 [1.10, 1.30]"),
        (0.01234, 0.012, 0.013, "0.0123 [0.0120, 0.0130]"),
        (123.4, 120.0, 130.0, "123 [120, 130]"),
        (1234.5, 1200.0, None, "1,234 [1,200, ∞]"),
        (0.0, 0.0, 0.0, "0.00 [0.00, 0.00]"),
    ],
)
def test_latency(value, low, high, expected):
    found = {"value": value, "low": low, "high": high, "estimable": True, "needed": 6}
    assert text.latency(found) == expected


def test_latency_that_cannot_be_told():
    found = {"value": None, "low": None, "high": None, "estimable": False, "needed": 368}
    assert text.latency(found) == "not estimable (needs 368 runs)"
