"""ORT's profile: real ones of small models, and ones of a GPU written by hand."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.bench import kernels, placed
from onnxcomp.bench.kernels import Kernel
from onnxcomp.errors import UnsupportedError
from onnxcomp.runtime import SessionSettings


def node(op, start, duration, *, provider="CPUExecutionProvider", name=None, index=0):
    about = {"op_name": op, "provider": provider, "node_index": str(index)}
    name = f"{op}_{index}" if name is None else name
    return {"cat": "Node", "ts": start, "dur": duration, "name": f"{name}_kernel_time", "args": about}


def run(start, duration):
    return {"cat": "Session", "ts": start, "dur": duration, "name": "model_run", "args": {}}


def written(path, *events):
    """As ORT writes it: an event in a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(event) for event in events) + "\n]\n")
    return path


def test_nodes_inside_of_others_are_taken_off(tmp_path):
    """A Loop of 100 us holds an If of 60, which holds a Mul of 10; an Abs of 5 stands before it."""
    found = kernels.read(
        written(
            tmp_path / "p.json",
            node("Abs", 0, 5),
            node("Mul", 30, 10),
            node("If", 20, 60),
            node("Loop", 10, 100),
            node("Neg", 110, 7),
            run(0, 130),
        ),
        skip=0,
    )
    us = {kernel.op: int(ns[0]) // 1000 for kernel, ns in found.ns.items()}
    assert us == {"Abs": 5, "Mul": 10, "If": 50, "Loop": 40, "Neg": 7}
    assert sum(us.values()) == 5 + 100 + 7
    assert found.run_ns.tolist() == [130_000]
    assert found.events == 5


def test_the_first_runs_do_not_count(tmp_path):
    path = written(
        tmp_path / "p.json",
        *(node("Conv", 0, 1000), run(0, 2000)),
        *(node("Conv", 3000, 10), node("Conv", 3010, 20, index=1), run(3000, 40)),
        *(node("Conv", 4000, 11), run(4000, 30)),
    )
    found = kernels.read(path, skip=1)
    assert found.ns[Kernel("Conv", "cpu")].tolist() == [30_000, 11_000]
    assert found.nodes == {Kernel("Conv", "cpu"): 2}
    assert found.run_ns.tolist() == [40_000, 30_000]


def test_a_run_that_the_profiler_did_not_finish_does_not_count(tmp_path):
    found = kernels.read(written(tmp_path / "p.json", node("Abs", 0, 1), run(0, 2), node("Abs", 5, 1)), skip=0)
    assert found.ns[Kernel("Abs", "cpu")].tolist() == [1000]


def test_what_is_no_profile_is_refused(tmp_path):
    (tmp_path / "p.json").write_text("[\nnonsense\n]")
    with pytest.raises(UnsupportedError, match="cannot be read"):
        kernels.read(tmp_path / "p.json", skip=0)


CUDA = "CUDAExecutionProvider"


@pytest.fixture
def mixed(tmp_path):
    """Two runs on CUDA: 60 us of Conv there, 20 of NonZero on the CPU, and 20 of copies."""
    events = []
    for start in (0, 1000):
        events += [
            node("MemcpyFromHost", start, 5, provider=CUDA),
            node("Conv", start + 5, 40, provider=CUDA, name=""),
            node("Conv", start + 45, 20, provider=CUDA, index=1),
            node("MemcpyToHost", start + 70, 15, provider=CUDA),
            node("NonZero", start + 85, 20),
            run(start, 200),
        ]
    return kernels.read(written(tmp_path / "cuda.json", *events), skip=0)


def test_copies_stand_apart_and_shares_sum_to_one(mixed):
    out = placed.after_fusion(mixed, "cuda")
    assert {name: p["time_share"] for name, p in out["providers"].items()} == pytest.approx({"cuda": 0.6, "cpu": 0.2})
    assert {name: p["nodes"] for name, p in out["providers"].items()} == {"cuda": 2, "cpu": 1}
    assert out["memcpy"]["time_share"] == pytest.approx(0.2)
    assert out["memcpy"]["nodes"] == 2
    parts = [*out["providers"].values(), out["memcpy"]]
    for key in ("share", "time_share"):
        assert sum(p[key] for p in parts) == pytest.approx(1)
        assert sum(o[key] for o in out["ops"]) == pytest.approx(1)
    assert out["ops_on_cpu"] == {"NonZero": 1}
    assert [o["op"] for o in out["ops"]] == ["Conv", "NonZero", "MemcpyToHost", "MemcpyFromHost"]
    assert out["run_ms"] == pytest.approx(0.2)
    assert out["kernel_share_of_run"] == pytest.approx(0.5)


def test_nothing_falls_back_where_the_cpu_was_asked_for(mixed):
    assert placed.after_fusion(mixed, "cpu")["ops_on_cpu"] == {}


def test_a_run_that_was_put_aside_does_not_decide(tmp_path):
    events = []
    for turn in range(20):
        events += [node("Conv", 0, 90), node("Relu", 90, 10 if turn else 5000), run(0, 120 if turn else 6000)]
    out = placed.after_fusion(kernels.read(written(tmp_path / "p.json", *events), skip=0), "cpu")
    assert [o["time_share"] for o in out["ops"]] == pytest.approx([0.9, 0.1])
    assert out["providers"]["cpu"]["time_share_interval"] == {"low": 1.0, "high": 1.0}
    for one in out["ops"]:
        span = one["time_share_interval"]
        assert span["low"] <= one["time_share"] <= span["high"]


def test_an_interval_is_as_wide_as_the_runs_differ(tmp_path):
    rng = np.random.default_rng(1)
    events = []
    for _ in range(60):
        events += [node("Conv", 0, int(rng.integers(50, 150))), node("Relu", 200, 100), run(0, 400)]
    conv = placed.after_fusion(kernels.read(written(tmp_path / "p.json", *events), skip=0), "cpu")["ops"][0]
    span = conv["time_share_interval"]
    assert 0.02 < span["high"] - span["low"] < 0.2
    assert span["low"] < 0.5 < span["high"]


def unnamed(path, nodes):
    """Nodes without names in a row: float (2,) to the same."""
    row = [helper.make_node("Sin" if i % 2 else "Abs", [f"v{i}"], [f"v{i + 1}"]) for i in range(nodes)]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])  # noqa: E731
    graph = helper.make_graph(row, "g", [value("v0")], [value(f"v{nodes}")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_sixteen_thousand_nodes_without_names(tmp_path):
    path = unnamed(tmp_path / "m.onnx", 16_000)
    found = placed.profile(path, [{"v0": np.ones(2, np.float32)}], runs=1)
    assert found.nodes == {Kernel("Abs", "cpu"): 8000, Kernel("Sin", "cpu"): 8000}
    assert found.events == 16_000
    assert len(found.run_ns) == 1


def test_the_profile_is_of_fused_nodes_and_its_file_goes(tmp_path, monkeypatch):
    import bench_models

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(placed.tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(temporary)
    path = bench_models.linear(tmp_path / "m.onnx", layers=3)
    feeds = [{"x": np.ones((1, 4), np.float32)}]
    assert placed.profile(path, feeds, runs=4).nodes == {Kernel("MatMul", "cpu"): 3, Kernel("Relu", "cpu"): 3}
    folded = placed.profile(path, feeds, runs=4, settings=SessionSettings(optimization="disable"))
    assert sum(folded.nodes.values()) == 6
    assert len(folded.run_ns) == 4
    assert list(temporary.iterdir()) == []
