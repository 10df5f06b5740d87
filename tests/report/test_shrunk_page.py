"""A search on a page: what won, the trade-off, what was left out; nothing that a model is called can break it."""

from __future__ import annotations

import copy
import re

import pytest

from onnxcomp.report import page, plots
from onnxcomp.report.tradeoff import tradeoff


def interval(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def candidate(name, speed, drop, size, reason=None):
    found = {"name": name, "reason": reason, "bytes": size, "speed": None, "drop": None}
    if reason is None:
        found |= {"speed": interval(speed, 0.05), "drop": interval(drop, 0.002)}
    return found


TESTED = {
    "name": "static int8", "bytes": 250_000, "size_ratio": 0.25, "speedup": {**interval(2.0, 0.1), "verdict": "faster"},
    "score": interval(0.9, 0.01), "drop": interval(0.0, 0.003), "samples": 600, "met": True, "sha256": "0",
    "cost_per_million": None,
}  # fmt: skip

FOUND = {
    "schema": "onnxcomp/shrink/1",
    "baseline": {"path": "m.onnx", "bytes": 1_000_000, "sha256": "1", "score": interval(0.9, 0.01), "cost": None},
    "wanted": {"max_drop": 0.005, "minimize": "latency", "gate": "upper"},
    "metric": "accuracy",
    "samples": {"calibration": 512, "selection": 400, "test": 600},
    "best": {"path": "out/best.onnx", "recipe": "out/recipe.toml", "settings": None, **TESTED},
    "tested": [TESTED],
    "front": [{"name": "static int8"}],
    "tried": 3,
    "rejected": [{"recipe": "channels -90%", "reason": "over the budget of 0.005: a drop of 0.4"},
                 {"recipe": "<script>", "reason": "UnsupportedError: <b>no</b>"}],
    "left_out": [{"what": "float16", "reason": "on a CPU float16 is computed in float32, more slowly"}],
    "candidates": [candidate("static int8", 2.0, 0.0, 250_000), candidate("channels -90%", 9.0, 0.4, 90_000),
                   candidate("<script>", 1, 0, 1, "UnsupportedError: <b>no</b>")],
    "complete": True, "why_none": None, "samples_needed": None, "benchmark": None, "seconds": 61.5,
}  # fmt: skip


def numbers(drawn):
    """The decimal numbers at the axes of a picture."""
    return [float(found.replace("\N{MINUS SIGN}", "-")) for found in re.findall(r">([^>]?\d+\.\d+)</text>", drawn)]


def test_the_page_says_what_won_and_shows_the_rest():
    html = page.build([FOUND])
    assert "static int8 is 2.00 times as fast and 4.00 times smaller, within a drop of 0.50 %" in html
    assert "over the budget of 0.005" in html
    assert "float16 is computed in float32" in html
    assert "onnxcomp run out/recipe.toml m.onnx --data out/study/data/calibration -o again.onnx" in html
    assert html.count("<svg") == 2
    assert "<script>" not in html
    assert "<b>no</b>" not in html


def test_without_a_winner_the_page_says_why():
    found = copy.deepcopy(FOUND) | {
        "best": None, "tested": [], "why_none": "nothing is measurably faster than the input", "samples_needed": 900,
    }  # fmt: skip
    html = page.build([found])
    assert "Nothing beats the input: nothing is measurably faster than the input." in html
    assert "About 900 test samples would make it certain." in html
    assert "How to serve it" not in html


def test_what_loses_far_more_than_the_budget_stands_at_the_edge():
    points = [
        ("a", 2.0, (0.001, 0.0, 0.002), 0.3, "winner"),
        ("b", 3.0, (0.5, 0.49, 0.51), 0.2, "over"),
    ]
    drawn = tradeoff(points, budget=0.005, unit=100.0, metric="accuracy")
    assert 'aria-label="speed against drop of 2 candidates; the result: a, 2.00 times as fast"' in drawn
    ticks = numbers(drawn)
    assert max(map(abs, ticks)) < 5  # and not 50 points


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_around_zero_is_drawn_whole(value):
    drawn = plots.intervals([("m", {"value": value, "low": -1.1, "high": 1.1})], label="drop")
    ticks = numbers(drawn)
    assert min(ticks) <= -1.0


def test_an_interval_within_the_band_is_drawn_whole():
    found = [("m", {"value": 0.03, "low": -0.25, "high": 0.32})]
    assert plots.intervals(found, label="drop", band=(-0.5, 0.5)) != plots.intervals(
        [("m", {"value": 0.03, "low": -0.2, "high": 0.3})], label="drop", band=(-0.5, 0.5)
    )
