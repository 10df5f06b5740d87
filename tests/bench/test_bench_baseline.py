"""A run against a stored one: what is compared, when nothing is decided, and how often it errs."""

from __future__ import annotations

import copy
import json

import bench_models
import numpy as np
import pytest

from onnxcomp.bench import baseline, bench
from onnxcomp.bench.baseline import interleaved, stored, surroundings
from onnxcomp.bench.baseline.gate import judge
from onnxcomp.errors import DataError, OutputError, UsageError


def latency_row(sessions, **more):
    """One row of the closed loop; `sessions`: nanoseconds, a list per session."""
    flat = [ns for one in sessions for ns in one]
    return {
        "model": "/m/net.onnx",
        "scenario": "latency",
        "provider": "cpu",
        "batch": 1,
        "threads": 1,
        "feeds": {"shapes": {"x": [1, 4]}},
        "samples": {"wall_ns": [2 * ns for ns in flat], "cpu_ns": flat, "per_session": [len(s) for s in sessions]},
        **more,
    }


def simulated(generator, slower=0.0, sessions=20, spread=0.02):
    """Sessions of one run each, as far apart as fresh sessions of the same bytes."""
    logs = generator.normal(np.log1p(slower), spread, sessions)
    return [[int(1e9 * np.exp(x))] for x in logs]


def rates(slower, trials=150):
    generator = np.random.default_rng(7)
    verdicts = []
    for _ in range(trials):
        before, after = latency_row(simulated(generator)), latency_row(simulated(generator, slower))
        verdicts.append(judge(stored.compare(before, after).speedup, baseline.TOLERANCE)[0])
    return {verdict: verdicts.count(verdict) / trials for verdict in ("passed", "regression", "undecided")}


def test_the_same_model_is_no_regression_and_five_percent_are():
    same, slower = rates(0.0), rates(0.05)
    assert same["regression"] == 0
    assert same["passed"] > 0.75
    assert slower["regression"] > 0.95
    assert slower["passed"] == 0
    assert rates(baseline.TOLERANCE)["regression"] < 0.05


def test_the_interval_holds_the_true_ratio():
    generator = np.random.default_rng(3)
    found = [
        stored.compare(latency_row(simulated(generator)), latency_row(simulated(generator, 0.03, sessions=8))).speedup
        for _ in range(400)
    ]
    assert 0.92 < np.mean([one.low <= 1 / 1.03 <= one.high for one in found]) < 0.98


def test_runs_of_little_trust_need_a_larger_difference():
    generator = np.random.default_rng(5)
    before, after = latency_row(simulated(generator)), latency_row(simulated(generator, 0.05))
    widths = []
    for grades in (("good", "good"), ("good", "poor"), ("poor", "poor")):
        found = stored.compare(before, after, drift=stored.allowance(*grades)).speedup
        widths.append(found.high - found.low)
    assert widths == sorted(widths)
    assert widths[2] > 2 * 1.96 * 0.02 * 2**0.5 * 0.95
    steady = latency_row([[100], [100], [100]])
    assert stored.compare(steady, steady, drift=0.01).speedup.low == pytest.approx(np.exp(-0.0196), abs=1e-4)


def test_on_one_thread_cpu_time_counts_and_on_several_wall_time():
    before, after = latency_row([[100], [110], [121]]), latency_row([[200], [220], [242]])
    after["samples"]["wall_ns"] = before["samples"]["wall_ns"]
    assert stored.compare(before, after).speedup.value == pytest.approx(0.5)
    assert "CPU" in stored.compare(before, after).what
    before["threads"] = after["threads"] = 2
    assert stored.compare(before, after).speedup.value == pytest.approx(1.0)


def test_a_run_of_one_session_decides_nothing():
    found = stored.compare(latency_row([[100] * 50]), latency_row([[100], [110], [121]]))
    assert found.speedup is None
    assert "1 sessions stored, 3 now" in found.reason
    old = latency_row([[100], [110], [121]])
    del old["samples"]["per_session"]
    assert "without per_session" in stored.compare(old, latency_row([[100], [110], [121]])).reason


def test_other_shapes_are_another_measurement():
    row = latency_row([[100], [110], [121]])
    found = stored.compare(row, {**row, "feeds": {"shapes": {"x": [8, 4]}}})
    assert found.speedup is None
    assert "{'x': [1, 4]}, now {'x': [8, 4]}" in found.reason


def test_cold_starts_throughput_and_workers_count_processes_and_rounds():
    cold = latency_row([], scenario="cold", starts=[{"total": t} for t in (100.0, 110.0, 121.0)])
    slower = {**cold, "starts": [{"total": 2 * s["total"]} for s in cold["starts"]]}
    assert stored.compare(cold, slower).speedup.value == pytest.approx(0.5)
    for scenario in ("throughput", "workers"):
        row = latency_row([], scenario=scenario, rounds=[{"runs_per_second": r} for r in (90.0, 100.0, 110.0)])
        faster = {**row, "rounds": [{"runs_per_second": 3 * r["runs_per_second"]} for r in row["rounds"]]}
        found = stored.compare(row, faster)
        assert found.speedup.value == pytest.approx(3.0)
        assert found.counts == (3, 3)


def test_a_sweep_counts_its_rounds():
    def samples(*blocks):
        runs = [ns for ns in blocks for _ in range(5)]
        return {"cpu_ns": runs, "wall_ns": [3 * ns for ns in runs], "per_session": [5] * len(blocks)}

    row = latency_row([], scenario="sweep", shape={"n": 4}, spinning=False, optimization="all")
    found = stored.compare({**row, "samples": samples(100, 110, 121)}, {**row, "samples": samples(100, 100, 100)})
    assert found.speedup.value == pytest.approx(1.1)
    assert found.counts == (3, 3)


def server(best, failed, **more):
    return latency_row([], scenario="server", rate=best, slo={"p99_ms": 5.0, "highest_rate": best},
                       search={"failed_rate": failed}, **more)  # fmt: skip


def test_the_highest_rates_are_compared_within_their_brackets():
    found = stored.compare(server(100.0, 105.0), server(80.0, 84.0)).speedup
    assert (found.low, found.value, found.high) == pytest.approx((80 / 105, 0.8, 0.84))
    assert "without a rate that holds" in stored.compare(server(100.0, None), server(80.0, 84.0)).reason
    other = server(80.0, 84.0)
    other["slo"]["p99_ms"] = 9.0
    assert "p99 within 5 ms, now 9 ms" in stored.compare(server(100.0, 105.0), other).reason


def test_rates_of_the_long_run_come_before_brackets():
    before, after = server(100.0, 105.0), server(80.0, 84.0)
    before["slo"]["limit_rate"] = {"value": 200.0, "low": 190.0, "high": 210.0}
    assert stored.compare(before, after).speedup.value == pytest.approx(0.8)  # the other has none
    after["slo"]["limit_rate"] = {"value": 100.0, "low": 95.0, "high": 105.0}
    found = stored.compare(before, after)
    assert (found.speedup.low, found.speedup.value, found.speedup.high) == pytest.approx((95 / 210, 0.5, 105 / 190))
    assert "long run" in found.what


def test_at_a_fixed_rate_p50_is_compared():
    def at(rate, p50):
        p = {"estimable": True, "low": 0.9 * p50, "value": p50, "high": 1.1 * p50}
        return latency_row([], scenario="server", rate=rate, search=None, latency_ms={"p50": p})

    found = stored.compare(at(50, 2.0), at(50, 4.0)).speedup
    assert (found.low, found.value, found.high) == pytest.approx((0.5 * 0.9 / 1.1, 0.5, 0.5 * 1.1 / 0.9))
    assert "50 requests a second, now 60" in stored.compare(at(50, 2.0), at(60, 4.0)).reason


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stored run and its model."""
    folder = tmp_path_factory.mktemp("baseline")
    model = bench_models.linear(folder / "net.onnx")
    found = bench(model, seconds=1.0, sessions=6, max_runs=300, seed=1).to_json()
    return model, json.loads(json.dumps({"schema": "onnxcomp/bench/1", **found}))


@pytest.fixture
def store(tmp_path, run):
    """Writes the stored run, changed; by default its model is no longer the same."""

    def write(change=lambda found: None, *, gone=True):
        found = copy.deepcopy(run[1])
        if gone:
            found["models"][0]["sha256"] = "0" * 64
        change(found)
        path = tmp_path / "run.json"
        path.write_text(json.dumps(found))
        return path

    return write


def gated(model, path, **options):
    options = {"seconds": 1.0, "sessions": 6, "max_runs": 300, "seed": 1, **options}
    return baseline.gate(model, path, **options).to_json()["baseline"]


def test_a_much_slower_model_is_a_regression_by_what_was_stored(store, tmp_path):
    slow = bench_models.linear(tmp_path / "net.onnx", layers=400)
    found = gated(slow, store())
    (row,) = found["rows"]
    assert found["verdict"] == row["verdict"] == "regression"
    assert (row["method"], row["indicative"], row["sessions"]) == ("stored", True, [6, row["sessions"][1]])
    assert row["sessions"][1] >= 5
    assert row["speedup"]["high"] < 0.5
    assert found["differences"] == []
    assert found["missing"] == []


def test_side_by_side_where_the_model_is_still_there(store, run, tmp_path):
    slow = bench_models.linear(tmp_path / "other-name.onnx", layers=400)
    found = gated(slow, store(gone=False))
    (row,) = found["rows"]
    assert (row["method"], row["indicative"], row["verdict"]) == ("interleaved", False, "regression")
    assert row["sessions"] == [8, 8]
    assert set(row["aa"]) == {"ratio", "low", "high", "ok"}
    assert gated(run[0], store(lambda f: f["results"][0].update(model=str(slow)), gone=False))["rows"]


def test_a_model_beside_the_stored_run_is_found(store, run, tmp_path):
    (tmp_path / "net.onnx").write_bytes(run[0].read_bytes())
    path = store(lambda f: f["models"][0].update(path="gone/net.onnx"), gone=False)
    entry = json.loads(path.read_text())["models"][0]
    assert interleaved.locate(entry, tmp_path) == tmp_path / "net.onnx"
    (tmp_path / "net.onnx").write_bytes(b"other")
    assert interleaved.locate(entry, tmp_path) is None


def test_a_much_faster_model_passes(store, tmp_path):
    slow = bench_models.linear(tmp_path / "slow.onnx", layers=400)
    stored_slow = bench(slow, seconds=1.0, sessions=6, max_runs=60, seed=1).to_json()["results"]
    fast = bench_models.linear(tmp_path / "net.onnx")
    assert gated(fast, store(lambda f: f.update(results=stored_slow)))["verdict"] == "passed"


def test_another_machine_or_other_options_decide_nothing_and_are_named(store, run):
    def other(found):
        found["environment"]["cpu"] = "Some CPU 9000"
        found["environment"]["ort"]["version"] = "1.0"
        found["environment"]["load_average"] = [99.0, 99.0, 99.0]
        found["session"]["optimization"] = "none"

    found = gated(run[0], store(other))
    assert [d["what"] for d in found["differences"]] == ["cpu", "ort.version", "session.optimization"]
    (row,) = found["rows"]
    assert row["verdict"] == found["verdict"] == "undecided"
    assert "cpu: Some CPU 9000, now" in row["reasons"][0]
    assert row["speedup"] is not None
    same = gated(run[0], store(lambda f: f["session"].update(optimization="none"), gone=False))
    assert same["rows"][0]["method"] == "stored"


def test_rows_without_a_counterpart_are_named_and_not_judged(store, run):
    found = gated(run[0], store(lambda f: f["results"][0].update(threads=2)))
    assert found["rows"] == []
    assert found["verdict"] == "undecided"
    assert [m["threads"] for m in found["missing"]] == [2]


def test_other_inputs_are_undecided(store, tmp_path):
    other = bench_models.linear(tmp_path / "net.onnx", width=8)
    (row,) = gated(other, store(gone=False))["rows"]
    assert (row["method"], row["verdict"], row["speedup"]) == ("interleaved", "undecided", None)
    assert "shapes" in row["reasons"][0]


@pytest.mark.parametrize(
    ("content", "error"),
    [("{}", DataError), ("[", DataError), ('{"schema": "onnxcomp/bench/1"}', DataError), (None, OutputError)],
)
def test_what_is_no_run_is_refused_before_anything_runs(tmp_path, content, error):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error):
        baseline.gate(tmp_path / "no.onnx", path)
    with pytest.raises(UsageError, match="tolerance"):
        baseline.gate(tmp_path / "no.onnx", path, tolerance=1.5)


def test_what_every_run_differs_in_is_no_difference(run):
    later = copy.deepcopy(run[1])
    later["environment"] |= {"load_average": [9, 9, 9], "memory_bytes": 1}
    assert surroundings.machine(run[1], later) == []
