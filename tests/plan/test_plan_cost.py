"""What a million requests cost: one number with its interval, simulated or by open loops."""

from __future__ import annotations

import importlib

import builders
import pytest
import simulated
from simulated import short_lines  # noqa: F401 - a fixture

import onnxcomp
from onnxcomp.errors import UsageError

#: the module; the package has a function of that name
costs = importlib.import_module("onnxcomp.plan.cost")


@pytest.fixture
def served(monkeypatch):
    """What takes the place of the model: workers whose run times are known."""

    def serve(**more):
        one = simulated.serving(workers=2, at_once=2, **more)
        monkeypatch.setattr(costs, "all_cores", lambda *_: one)
        monkeypatch.setattr(costs, "usable_cores", lambda: 2)
        monkeypatch.setattr(costs.measure, "first", lambda servings, tell: costs.measure.First((one,), (), 0.01, 0.1))
        monkeypatch.setattr(
            costs.measure,
            "rounds",
            lambda *_, **__: [simulated.measured(one)],
        )
        return one

    return serve


def test_a_model_twice_as_fast_costs_about_half(served):
    served(mean_ms=4.0)
    slow = onnxcomp.plan.cost("m.onnx", slo_p99_ms=60, price_per_hour=0.72, seed=1)
    served(mean_ms=2.0)
    fast = onnxcomp.plan.cost("m.onnx", slo_p99_ms=60, price_per_hour=0.72, seed=1)
    assert slow.per_million.value == pytest.approx(0.72e6 / (3600 * slow.rate.value))
    assert slow.per_million.low < slow.per_million.value < slow.per_million.high
    assert 0.35 < fast.per_million.value / slow.per_million.value < 0.55  # a little less: the objective is wider for it
    assert (slow.verified, slow.clock) == (False, "wall")
    assert slow.to_json()["per_million"]["value"] == slow.per_million.value


def test_open_loops_find_the_rate_that_the_preview_promises(served):
    one = served(mean_ms=4.0)
    simulated_rate = onnxcomp.plan.cost("m.onnx", slo_p99_ms=60, seed=1).rate.value
    found = onnxcomp.plan.cost("m.onnx", slo_p99_ms=60, seed=1, seconds=200.0, verified=True)
    assert found.verified
    assert found.rate.value == pytest.approx(simulated_rate, rel=0.25)
    assert found.rate.low == found.rate.value < found.rate.high
    assert len(one.runs) > 1
    assert {workers for _, _, workers in one.runs} == {2}


def test_what_takes_too_long_alone_has_no_cost(served):
    served(mean_ms=40.0)
    assert onnxcomp.plan.cost("m.onnx", slo_p99_ms=60, seed=1) is None


def test_a_real_model_has_a_cost(tmp_path):
    model = builders.save(builders.mlp(), tmp_path / "m.onnx")
    found = onnxcomp.plan.cost(model, slo_p99_ms=1000, seconds=1.0, seed=1)
    assert 0 < found.per_million.low <= found.per_million.value <= found.per_million.high
    with pytest.raises(UsageError, match="positive"):
        onnxcomp.plan.cost(model, slo_p99_ms=0)
