"""A record of a model's outputs stands in for the model."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.evaluate.fidelity import compare_sessions
from onnxcomp.evaluate.recorded import Recorded


@pytest.fixture
def path(tmp_path):
    return builders.save(builders.mlp(), tmp_path / "m.onnx")


def batches(path, count=20):
    inputs = runtime.open_session(path).signature.inputs
    return Batches({"x": builders.samples(count, 16)}, inputs, batch_size=8)


def test_a_record_answers_as_the_session_does(path, tmp_path):
    record, session = Recorded.record(path, batches(path), tmp_path), runtime.open_session(path)
    assert record.signature == session.signature
    for batch in batches(path):
        np.testing.assert_array_equal(record.run(batch.feeds)["y"], session.run(batch.feeds)["y"])


def test_a_comparison_with_the_record_is_the_comparison_with_the_model(path, tmp_path):
    other = builders.mlp()
    other.graph.initializer[1].raw_data = np.zeros(32, np.float32).tobytes()
    candidate = runtime.open_session(builders.save(other, tmp_path / "other.onnx"))
    direct = compare_sessions(runtime.open_session(path), candidate, batches(path))
    assert compare_sessions(Recorded.record(path, batches(path), tmp_path), candidate, batches(path)) == direct
    assert direct.outputs["y"].max_abs > 0


def test_large_models_are_compared_through_a_record(path, tmp_path, monkeypatch):
    from onnxcomp import pipeline
    from onnxcomp.passes import UpgradeOpset

    monkeypatch.setattr(runtime, "_LARGE", 0)
    assert runtime.frugal(path).config == {"session.disable_prepacking": "1"}
    made = []
    record = Recorded.record
    monkeypatch.setattr(Recorded, "record", lambda *a: made.append(a) or record(*a))
    record = pipeline.optimize_file(path, tmp_path / "o.onnx", [UpgradeOpset(opset=18)], allow_larger=True)
    assert len(made) == 1
    assert record.equivalence == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "o.onnx", "o.onnx.record.json"]
