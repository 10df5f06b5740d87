import types

import bench_models

from onnxcomp.bench import placement as placing
from onnxcomp.runtime import SessionSettings


def test_all_on_the_cpu_with_unnamed_nodes(tmp_path):
    path = bench_models.linear(tmp_path / "m.onnx", layers=3)
    settings = SessionSettings(config={"session.intra_op.allow_spinning": "0"})
    out = placing.placement(path, settings=settings).to_json()
    assert out == {"providers": {"cpu": {"nodes": 6, "share": 1.0}}, "nodes": 6, "ops_on_cpu": {}, "options": {}}


def fake(provider, *subgraphs):
    """A session whose runtime reports (full provider name, operators)."""
    node = lambda op: types.SimpleNamespace(name="", domain="", op_type=op)  # noqa: E731
    report = [
        types.SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [node(op) for op in ops])
        for name, ops in subgraphs
    ]
    options = {"CUDAExecutionProvider": {"use_tf32": "1"}, "CPUExecutionProvider": {}}
    ort = types.SimpleNamespace(get_provider_graph_assignment_info=lambda: report, get_provider_options=lambda: options)
    return types.SimpleNamespace(ort=ort, provider=provider)


def test_a_fallback_shows():
    session = fake("cuda", ("CUDAExecutionProvider", ["Conv"] * 6), ("CPUExecutionProvider", ["Shape", "Shape"]))
    out = placing.assigned(session).to_json()
    assert out["providers"] == {"cuda": {"nodes": 6, "share": 0.75}, "cpu": {"nodes": 2, "share": 0.25}}
    assert out["ops_on_cpu"] == {"ai.onnx::Shape": 2}
    assert out["options"] == {"use_tf32": "1"}
    assert sum(p["share"] for p in out["providers"].values()) == 1


def test_an_ort_that_cannot_tell():
    assert placing.assigned(types.SimpleNamespace(ort=object(), provider="cpu")) is None


def test_a_model_without_nodes():
    assert placing.assigned(fake("cpu")).to_json()["providers"] == {}
