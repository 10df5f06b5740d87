"""The front, the finalists, and the one look at the test samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from test_shrink_plan import outcome

from onnxcomp.errors import UsageError
from onnxcomp.evaluate.intervals import Interval
from onnxcomp.evaluate.score import Score
from onnxcomp.shrink import final
from onnxcomp.shrink.candidates import Candidate
from onnxcomp.shrink.final import Timed
from onnxcomp.shrink.wanted import Wanted

WANTED = Wanted(max_drop=0.01)


def named(amount, **figures):
    return outcome(Candidate(channels=amount), **figures)


def timed(amount, speedup, verdict="faster", **figures):
    return Timed(named(amount, **figures), Interval(speedup, speedup - 0.1, speedup + 0.1), verdict)


def score(drop, high, *, higher=True):
    return Score("accuracy", Interval(0.9, 0.8, 1.0), 100, None, Interval(drop, drop - 0.1, high), higher, "")


def test_finalists_are_useful_and_distinct_and_within_the_budget():
    fast, twin = named(0.5, speed=3.0), named(0.5, speed=2.9)
    slow, large = named(0.2, speed=0.9), named(0.1, speed=0.9, size=6000)
    lossy, failed = named(0.9, speed=9.0, drop=0.5), named(0.8, reason="no")
    assert final.finalists([large, slow, fast, twin, lossy, failed], WANTED, 5000) == [fast, slow]
    many = [named(amount, speed=1 + amount) for amount in (0.1, 0.2, 0.3, 0.4)]
    assert final.finalists(many, WANTED, 5000) == [*reversed(many)][: final.FINALISTS]


def test_the_front_holds_what_nothing_beats():
    fast, small = named(0.5, speed=3.0, size=900, drop=0.005), named(0.6, speed=2.0, size=500, drop=0.005)
    exact, beaten = named(0.1, speed=1.5, size=900), named(0.4, speed=1.9, size=900, drop=0.005)
    assert final.front([exact, beaten, small, fast, named(0.9, reason="no")]) == [fast, small, exact]


def test_only_what_is_faster_meets_the_test_for_latency():
    order = final.ranked([timed(0.1, 2.0), timed(0.2, 3.0), timed(0.3, 4.0, "undecided")], WANTED)
    assert [one.speedup.value for one in order] == [3.0, 2.0]
    asked = Wanted(max_drop=0.01, min_speedup=2.5)
    assert [one.speedup.value for one in final.ranked([timed(0.1, 2.0), timed(0.2, 3.0)], asked)] == [3.0]
    size = Wanted(max_drop=0.01, minimize="size")
    assert [one.outcome.bytes for one in final.ranked([timed(0.1, 2.0), timed(0.2, 0.5, "slower", size=9)], size)] == [
        9,
        1000,
    ]


def test_the_test_ends_with_the_first_that_holds_and_its_interval_pays_for_all():
    answers = {"channels -10%.onnx": score(0.02, 0.03), "channels -20%.onnx": score(0.001, 0.009)}
    heard = []

    def judge(path: Path, confidence: float) -> Score:
        heard.append((path.name, confidence))
        return answers[path.name]

    order = [timed(0.1, 4.0), timed(0.2, 3.0), timed(0.3, 2.0)]
    found = final.test(order, WANTED, judge)
    assert [one.met for one in found] == [False, True]
    assert [name for name, _ in heard] == ["channels -10%.onnx", "channels -20%.onnx"]
    assert heard[0][1] == pytest.approx(1 - 0.05 / 3)


def test_a_metric_where_less_is_better_loses_by_rising():
    (found,) = final.test([timed(0.1, 2.0)], WANTED, lambda *_: score(-0.5, -0.4, higher=False))
    assert (found.drop.value, found.drop.low, found.met) == (0.5, 0.4, False)


def test_only_what_is_surely_cheaper_meets_the_test_for_cost():
    wanted = Wanted(max_drop=0.01, minimize="cost", slo_p99_ms=50)

    def costing(amount, value):
        cost = None if value is None else Interval(value, value - 0.1, value + 0.1)
        return dataclasses.replace(timed(amount, 2.0), cost=cost)

    near, cheap, cheapest, impossible = costing(0.1, 0.85), costing(0.2, 0.5), costing(0.3, 0.4), costing(0.4, None)
    own = Interval(1.0, 0.9, 1.1)
    assert final.ranked([near, cheap, cheapest, impossible], wanted, own) == [cheapest, cheap]
    assert final.ranked([near, impossible], wanted, None) == [near]  # with the input the objective cannot be held
    with pytest.raises(UsageError, match="needs an objective"):
        Wanted(max_drop=0.01, minimize="cost")
    with pytest.raises(UsageError, match="nothing else does"):
        Wanted(max_drop=0.01, slo_p99_ms=50)
