import json
import subprocess
import sys

import bench_models
import numpy as np
import onnx
import pytest

from onnxcomp import worker
from onnxcomp.bench import SCENARIOS, Benchmark, bench, result
from onnxcomp.bench.statistics import LOOKS, VERDICTS
from onnxcomp.errors import DataError, OutputError, ProviderError, UsageError


@pytest.fixture
def model(tmp_path):
    return bench_models.linear(tmp_path / "model.onnx")


@pytest.fixture
def slow(tmp_path):
    """The same inputs, hundreds of times the work."""
    return bench_models.linear(tmp_path / "slow.onnx", layers=400)


def plain(value):
    """The JSON value after a trip through text; NaN is refused on the way."""
    return json.loads(json.dumps(value, allow_nan=False))


def test_one_model_has_the_contract_keys(model):
    found = bench(model, seconds=0.2, max_runs=400)
    assert isinstance(found, Benchmark)
    out = plain(found.to_json())
    assert {"environment", "trust", "results", "comparison"} <= set(out)
    assert out["comparison"] == []
    assert set(out["trust"]) == {"grade", "reasons"}
    (one,) = out["results"]
    assert (one["model"], one["provider"], one["scenario"]) == (str(model), "cpu", "latency")
    assert (one["batch"], one["threads"]) == (1, 1)
    assert set(one["latency_ms"]) == {"p50", "p90", "p95", "p99"}
    for percentile in one["latency_ms"].values():
        assert {"value", "low", "high", "estimable"} <= set(percentile)
        if percentile["estimable"]:
            assert percentile["low"] <= percentile["value"] <= percentile["high"]
    assert one["throughput"] > 0
    assert one["memory"]["pss_bytes"] is None or one["memory"]["pss_bytes"] > 0
    assert one["placement"]["providers"] == {"cpu": {"nodes": 2, "share": 1.0}}
    assert len(one["samples"]["wall_ns"]) == one["runs"] <= 400
    assert out["models"][0]["bytes"] == model.stat().st_size
    assert found.decided


def test_few_runs_have_no_p99(model):
    (one,) = bench(model, seconds=5, max_runs=100).to_json()["results"]
    assert one["latency_ms"]["p95"]["estimable"]
    p99 = one["latency_ms"]["p99"]
    assert (p99["value"], p99["estimable"], p99["needed"], p99["samples"]) == (None, False, 299, 100)


def test_every_combination_is_measured(model):
    found = bench(model, batch=(1, 4), threads=(1, 2), seconds=0.05, max_runs=20).to_json()
    assert [(r["batch"], r["threads"]) for r in found["results"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert [r["cpu_clock"] for r in found["results"]] == ["thread", "process"] * 2
    assert found["results"][2]["feeds"]["shapes"] == {"x": [4, 4]}


def test_a_large_difference_is_found(slow, model):
    found = bench([slow, model], seconds=1, seed=7)
    out = plain(found.to_json())
    (one,) = out["comparison"]
    assert (one["reference"], one["candidate"]) == (str(slow), str(model))
    assert set(one["speedup"]) == {"value", "low", "high"}
    assert set(one["aa"]) >= {"ratio", "ok"}
    assert one["verdict"] in VERDICTS
    assert one["speedup"]["value"] > 2  # an order of magnitude, not a time
    assert one["rounds"] >= LOOKS[0]
    assert out["seed"] == 7
    assert one["clock"] == "thread"
    assert one["wall_ratio"]["lower_quartile"]["value"] > 2
    (samples,) = out["comparison_samples"]
    assert samples["arms"] == [str(slow), str(model), "clone of the reference"]
    assert len(samples["rounds"]) == one["rounds"]
    assert "comparison_samples" not in found.to_json(samples=False)
    assert [r["model"] for r in out["results"]] == [str(slow), str(model)]


def test_several_threads_are_judged_by_the_wall(slow, model):
    (one,) = bench([slow, model], threads=2, seconds=0.2).to_json()["comparison"]
    assert one["clock"] == "wall"


def test_binding_runs_the_whole_way(model):
    found = bench([model, model], bind=True, seconds=0.1)
    assert len(found.comparisons) == 1


def test_a_fresh_seed_is_told(model):
    first, second = (bench(model, seconds=0.01, max_runs=5).seed for _ in range(2))
    assert first != second
    assert 0 <= first < 2**53  # safe in any JSON reader


def test_data_and_sizes(tmp_path, model):
    np.savez(tmp_path / "d.npz", x=np.ones((6, 4), np.float32))
    (one,) = bench(model, data=tmp_path / "d.npz", batch=3, seconds=0.02).to_json()["results"]
    assert one["feeds"]["random"] is False
    assert one["feeds"]["distinct"] == 2
    with pytest.raises(OutputError):
        bench(model, data=tmp_path / "none.npz", seconds=0.02)
    with pytest.raises(UsageError, match="no input has a symbolic axis"):
        bench(model, sizes={"time": 3}, seconds=0.02)


def test_feeds_that_a_model_refuses_are_found_before_the_clock_runs(tmp_path):
    path = bench_models.indexed(tmp_path / "m.onnx", size=4)
    np.savez(tmp_path / "d.npz", i=np.array([0, 1, 99]))
    with pytest.raises(DataError):
        bench(path, data=tmp_path / "d.npz", seconds=5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scenario": "latencies"}, "unknown scenario"),
        ({"seconds": 0}, "must be positive"),
        ({"seconds": float("nan")}, "must be positive"),
        ({"delta": 0.0}, "delta"),
        ({"batch": ()}, "no batch"),
        ({"threads": -1}, "threads"),
    ],
)
def test_usage(model, options, text):
    with pytest.raises(UsageError, match=text):
        bench(model, **options)


def test_usage_names_the_scenarios(model):
    with pytest.raises(UsageError) as caught:
        bench(model, scenario="xyz")
    assert all(name in caught.value.hint for name in SCENARIOS)
    with pytest.raises(UsageError, match="no model"):
        bench([])


def test_different_inputs_cannot_be_compared(tmp_path, model):
    for other in (
        bench_models.linear(tmp_path / "n.onnx", name="z"),
        bench_models.linear(tmp_path / "w.onnx", width=5),
        bench_models.linear(tmp_path / "h.onnx", dtype=onnx.TensorProto.FLOAT16),
    ):
        with pytest.raises(UsageError):
            bench([model, other], seconds=0.1)


def test_a_provider_that_is_not_there(model):
    with pytest.raises(ProviderError):
        bench(model, provider=("openvino",), seconds=0.1)


def test_progress_is_reported(model, monkeypatch):
    heard = []
    monkeypatch.setattr(worker, "_reporter", lambda kind, value: heard.append(value))
    bench([model, model], batch=(1, 2), seconds=0.1)
    fractions = [f for _, f in heard]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1
    assert any(text.startswith("comparing") for text, _ in heard)


def test_it_runs_in_a_worker(model):
    found = worker.isolated(bench, [str(model)], seconds=0.05)
    assert isinstance(found, Benchmark)


def test_nan_becomes_null():
    assert result.finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {"a": [None, 1.0], "b": None}


def test_onnxcomp_stays_light():
    heavy = ("scipy", "onnxruntime", "onnx_ir", "psutil")
    code = f"import onnxcomp, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
