"""What a user may write as a budget, and what is surely a slip."""

from __future__ import annotations

import pytest

from onnxcomp.errors import UsageError
from onnxcomp.sensitivity import parse_drop


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("0.5%", "accuracy", 0.005),
        ("0.005", "accuracy", 0.005),
        (" 1 % ", "top5", 0.01),
        ("0", "f1", 0.0),
        ("40%", "accuracy", 0.4),  # with its sign it is meant
        ("0.5", "mse", 0.5),
        ("2", "own.py:score", 2.0),
    ],
)
def test_budgets(text, metric, value):
    assert parse_drop(text, metric) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "half", "-1%", "nan", "inf", "0.5%%"])
def test_no_budgets(text):
    with pytest.raises(UsageError, match="no allowed drop"):
        parse_drop(text)


def test_a_forgotten_sign_is_refused_with_what_was_meant():
    with pytest.raises(UsageError) as failure:
        parse_drop("0.5", "accuracy")
    assert failure.value.hint == "for percentage points write 0.5%"


def test_percent_of_what_is_no_fraction():
    with pytest.raises(UsageError, match="mse is no fraction"):
        parse_drop("0.5%", "mse")
