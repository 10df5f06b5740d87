"""Samples per second over settings: the best, what is as good, and the comparison of models."""

from __future__ import annotations

import json

import bench_models
import numpy as np
import pytest

from onnxcomp.bench import bench, room, throughput
from onnxcomp.bench.turn import Turn
from onnxcomp.errors import LimitError, UsageError
from onnxcomp.memory import Memory


@pytest.fixture
def model(tmp_path):
    return bench_models.linear(tmp_path / "m.onnx")


def made(rate: float) -> Turn:
    memory = Memory(100, 100, 100, 100, 100)
    return Turn(
        runs=5,
        runs_per_second=rate,
        wall_ns=np.array([1e9 / rate]),
        cpu_ns=1.0,
        cpu_ns_per_run=1.0,
        load_seconds=0.1,
        start_seconds=0.2,
        memory=dict.fromkeys(("imported", "loaded", "ran"), memory),
        outputs=("a",),
        outputs_equal=True,
    )


@pytest.fixture
def known(monkeypatch):
    """Turns whose speed is known: twice the batch takes 1.6 times as long; the second model is a third slower."""
    order, generator = [], np.random.default_rng(0)

    def run(job, feeds, variant, seconds):
        order.append((feeds.samples, variant.workers, variant.model, variant.clone))
        rate = 1000 * variant.workers**0.5 * feeds.samples**-0.678 / (1 + variant.model / 3)
        return made(rate * float(np.exp(generator.normal(0, 0.002))))

    monkeypatch.setattr(throughput, "_run", run)
    monkeypatch.setattr(throughput, "_MOST", 8)
    return order


def test_the_best_setting_is_found(model, known):
    out = bench(model, scenario="throughput", batch=[1, 2, 4], workers=[1, 2], seconds=100, seed=1).to_json()
    assert [(r["batch"], r["workers"]) for r in out["results"] if r["best"]] == [(4, 2)]
    best = next(r for r in out["results"] if r["best"])
    assert best["throughput"] == pytest.approx(4 * 1000 * 2**0.5 * 4**-0.678, rel=0.01)
    assert best["of_best"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    other = next(r for r in out["results"] if (r["batch"], r["workers"]) == (1, 2))
    assert other["of_best"]["value"] == pytest.approx(4**-0.322, rel=0.01)
    assert other["of_best"]["low"] < other["of_best"]["value"] < other["of_best"]["high"] < 1
    assert out["comparison"] == []


def test_settings_take_turns_in_random_order(model, known):
    bench(model, scenario="throughput", batch=[1, 2, 4], workers=[1, 2], seconds=100, seed=1)
    rounds = [known[start : start + 6] for start in range(0, 48, 6)]
    assert all(len(set(r)) == 6 for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


def test_models_are_compared_at_their_best(model, tmp_path, known):
    other = bench_models.linear(tmp_path / "other.onnx")
    out = bench([model, other], scenario="throughput", batch=[1, 2], seconds=100, seed=1).to_json()
    (one,) = out["comparison"]
    assert one["verdict"] == "slower"
    assert one["speedup"]["value"] == pytest.approx(0.75, rel=0.01)
    assert "batch 2" in one["candidate"]
    assert one["what"] == "seconds per sample"
    assert one["aa"]["ok"]
    assert len(out["results"]) == 4  # the clone is none of them
    assert sum(r["best"] for r in out["results"]) == 2


def test_throughput_end_to_end(model, monkeypatch):
    monkeypatch.setattr(throughput, "_FEWEST", 2)
    monkeypatch.setattr(throughput, "_SHORTEST", 0.05)
    found = bench(model, scenario="throughput", batch=[1, 3], seconds=0.1, workers=2, seed=3)
    out = json.loads(json.dumps(found.to_json(), allow_nan=False))["results"]
    assert [(r["batch"], r["scenario"], r["workers"], r["kind"]) for r in out] == [
        (1, "throughput", 2, "threads"), (3, "throughput", 2, "threads"),
    ]  # fmt: skip
    assert sum(r["best"] for r in out) == 1
    for r in out:
        assert r["throughput_interval"]["low"] <= r["throughput"] <= r["throughput_interval"]["high"]
        assert r["memory"]["pss_bytes"] > 0
        assert len(r["rounds"]) == 2


def test_processes_that_do_not_fit_are_refused(model, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda: 100 << 20)
    with pytest.raises(LimitError, match="50 workers would take about"):
        bench(model, scenario="throughput", workers=50, processes=True, seconds=0.1)
    with pytest.raises(UsageError, match="at least one worker"):
        bench(model, scenario="throughput", workers=0)
