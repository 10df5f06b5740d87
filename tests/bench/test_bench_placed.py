"""The scenario 'placement' from end to end, and its tables."""

import json
import os

import bench_models
import pytest
import real_data

from onnxcomp.bench import bench, placed
from onnxcomp.data import Batches
from onnxcomp.errors import UsageError
from onnxcomp.report import placement as tables
from onnxcomp.report import tables as printing
from onnxcomp.runtime import open_session


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    paths = [bench_models.linear(folder / f"{n}.onnx", layers=n) for n in (2, 5)]
    return json.loads(json.dumps(bench(paths, scenario="placement", seconds=0.4).to_json(), allow_nan=False))


def test_the_contract_keys(two):
    first, second = two["results"]
    assert two["comparison"] == []
    assert (first["scenario"], first["provider"], first["batch"], first["threads"]) == ("placement", "cpu", 1, 1)
    assert set(first["latency_ms"]) == {"p50", "p90", "p95", "p99"}
    assert first["memory"]["pss_bytes"] is None or first["memory"]["pss_bytes"] > 0
    assert second["placement"]["providers"] == {"cpu": {"nodes": 10, "share": 1.0}}
    after = second["placement"]["after_fusion"]
    assert after["nodes"] == 10
    assert after["providers"]["cpu"]["time_share"] == pytest.approx(1)
    assert after["memcpy"]["nodes"] == 0
    assert after["runs"] >= 5


def test_both_models_stand_side_by_side(two, capsys):
    grids = tables.grids(two["results"])
    operators = grids[1]
    assert operators.head == [
        "operator",
        "where",
        *(f"{n}: {c}" for n in (1, 2) for c in ("nodes", "ms a run", "of time")),
    ]
    assert "1: 2.onnx, 2: 5.onnx" in operators.title
    cells = {row[0]: row for row in operators.rows}
    assert (cells["MatMul"][2], cells["MatMul"][5]) == ("2", "5")
    printing.benchmark(two)
    printed = capsys.readouterr().out
    assert "placement: shares of nodes and of time" in printed
    assert "MatMul" in printed
    assert "trust:" in printed


def gpu(name, **changes):
    """A result as a GPU would give it."""
    part = lambda nodes, share, ms: {  # noqa: E731
        "nodes": nodes, "share": nodes / 4, "ms_per_run": ms, "time_share": share,
        "time_share_interval": {"low": share - 0.01, "high": share + 0.01},
    }  # fmt: skip
    after = {
        "providers": {"cuda": part(2, 0.7, 0.7), "cpu": part(1, 0.2, 0.2)},
        "memcpy": part(1, 0.1, 0.1),
        "ops": [
            {"op": "Conv", "provider": "cuda", **part(2, 0.7, 0.7)},
            {"op": "NonZero", "provider": "cpu", **part(1, 0.2, 0.2)},
            {"op": "MemcpyToHost", "provider": "cuda", **part(1, 0.1, 0.1)},
        ],
        "ops_on_cpu": {"NonZero": 1},
        "runs": 50,
    }
    return {
        "model": name, "scenario": "placement", "provider": "cuda", "batch": 1, "threads": 1, "notes": [],
        "latency_ms": {"p50": {"value": 1.5, "low": 1.4, "high": 1.6, "estimable": True, "needed": 6}},
        "placement": {
            "providers": {"cuda": {"nodes": 3, "share": 0.75}, "cpu": {"nodes": 1, "share": 0.25}},
            "ops_on_cpu": {"ai.onnx::NonZero": 1}, "after_fusion": after,
        },
        **changes,
    }  # fmt: skip


def test_fallbacks_and_copies_are_named():
    placement, operators = tables.grids([gpu("m.onnx")])
    assert [row[3] for row in placement.rows] == ["cuda", "cpu", "copies host/device"]
    assert placement.rows[2][4:6] == ["-", "-"]
    assert placement.rows[0][-2] == "70.0 % [69.0, 71.0]"
    assert placement.notes == [
        "m.onnx: cuda was asked for, on the CPU are (nodes): NonZero 1",
        "m.onnx: cuda was asked for, on the CPU are (fused): NonZero 1",
        "m.onnx: p50 1.50 [1.40, 1.60] ms a run, without the profiler",
    ]
    assert [row[:2] for row in operators.rows] == [["Conv", "cuda"], ["NonZero", "cpu"], ["MemcpyToHost", "cuda"]]


def test_an_operator_that_one_model_lacks_is_a_dash():
    other = gpu("b.onnx")
    other["placement"]["after_fusion"]["ops"] = other["placement"]["after_fusion"]["ops"][:1]
    operators = tables.grids([gpu("a.onnx"), other])[1]
    assert operators.rows[1] == ["NonZero", "cpu", "1", "0.2", "20.0 %", "-", "-", "-"]


def test_many_operators_end_in_one_row():
    one = gpu("a.onnx")
    ops = one["placement"]["after_fusion"]["ops"]
    one["placement"]["after_fusion"]["ops"] = [{**ops[0], "op": f"Op{n}", "time_share": 0.05} for n in range(20)]
    rows = tables.grids([one])[1].rows
    assert len(rows) == 13
    assert rows[-1][0] == "8 others"
    assert rows[-1][-1] == "40.0 %"


def test_other_scenarios_have_no_tables():
    assert tables.grids([gpu("a.onnx", scenario="latency")]) == []


def test_workers_are_refused(tmp_path):
    with pytest.raises(UsageError, match="workers are for"):
        bench(bench_models.linear(tmp_path / "m.onnx"), scenario="placement", workers=2)


@pytest.mark.parametrize("name", ["silero_vad_16k_op15", "magika_standard_v3_3", "tribuo_tinybert"])
def test_real_models_sum_to_one(name, shared):
    """Subgraphs, embeddings, and a transformer that ORT fuses."""
    path = shared / "models" / f"{name}.onnx"
    arrays, _ = real_data.samples(name, shared)
    feeds = [batch.feeds for batch in Batches(arrays, open_session(path).signature.inputs, batch_size=1).take(4)]
    found = placed.profile(path, feeds, runs=5)
    out = placed.after_fusion(found, "cpu")
    assert sum(o["time_share"] for o in out["ops"]) == pytest.approx(1)
    assert set(out["providers"]) == {"cpu"}
    # what runs inside of an If is not counted twice
    assert all(sum(ns[run] for ns in found.ns.values()) <= found.run_ns[run] for run in range(5))


def test_a_gpu_is_profiled_in_a_process_that_waits_for_its_kernels(tmp_path, monkeypatch):
    """In a process of its own, since CUDA reads the variable once; here the CPU stands in."""
    path = bench_models.linear(tmp_path / "m.onnx", layers=2)
    seen = []
    real = placed.worker.isolated
    monkeypatch.setattr(placed, "_GPU", ("cpu",))
    monkeypatch.setattr(placed.worker, "isolated", lambda *call: seen.append(call) or real(*call))
    (found,) = bench(path, scenario="placement", seconds=0.2, max_runs=20).results
    assert sum(found.profile.nodes.values()) == 4
    assert {call[0] for call in seen} == {placed._blocking}
    assert any("CUDA_LAUNCH_BLOCKING" in note for note in found.notes)
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ
    monkeypatch.setitem(os.environ, "CUDA_LAUNCH_BLOCKING", "0")
    assert placed._blocking(lambda: os.environ["CUDA_LAUNCH_BLOCKING"]) == "1"
