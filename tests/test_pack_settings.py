"""A pack made with settings of its own: they shape its graph, are proven, and open it again."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import pack, runtime
from onnxcomp.bench import packs
from onnxcomp.errors import DataError, UsageError
from onnxcomp.settings import SessionSettings, SettingsFile

#: the normalization stays an operator of its own
SETTINGS = SessionSettings(optimization="extended", disabled_optimizers=("ConvBNFusion",), arena=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """x: float (1, 8, 8, 8) -> convolution -> batch normalization -> y, the same shape."""
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "w")]
    constants += [numpy_helper.from_array(np.full(8, 0.5, np.float32), name) for name in "sbmv"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 8])],
        constants,
    )
    path = tmp_path_factory.mktemp("source") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    """A pack made with a settings file of another model."""
    folder = tmp_path_factory.mktemp("tuned")
    file = folder / "s.json"
    file.write_text(json.dumps(SettingsFile(settings=SETTINGS, model={"path": "other.onnx", "sha256": "ab"}).to_json()))
    made = pack(source, folder / "p", settings=file, workers=2)
    return folder / "p", made


def operators(folder):
    return [node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]


def test_the_settings_shape_the_graph_and_are_kept(tuned):
    folder, made = tuned
    assert "BatchNormalization" in operators(folder)
    assert made.manifest.settings == SETTINGS
    assert made.to_json()["session"] == SETTINGS.to_json()
    assert made.to_json()["verification"]["outputs"]["identical"]
    assert "the settings were tuned for another model: other.onnx" in made.to_json()["warnings"]


def test_it_is_opened_with_them(tuned, source, monkeypatch):
    folder, _ = tuned
    seen = []
    real = runtime.open_session
    monkeypatch.setattr(
        runtime, "open_session", lambda path, settings=None: seen.append(settings) or real(path, settings=settings)
    )
    feeds = {"x": np.random.default_rng(1).normal(size=(1, 8, 8, 8)).astype(np.float32)}
    found = pack.open(folder).run(feeds)["y"]
    assert seen == [SETTINGS]
    assert np.array_equal(found, real(source, settings=SETTINGS).run(feeds)["y"])
    assert pack.verify(folder).checks[:3] == ("sha256", "host", "loads")


def test_a_benchmark_says_that_it_has_settings_of_its_own(tuned):
    folder, _ = tuned
    (one,) = packs.served([folder])
    assert "has settings of its own" in one.notes[0]


def test_what_is_refused(source, tmp_path, tuned):
    with pytest.raises(UsageError, match="--layout plain"):
        pack(source, tmp_path / "p", settings=SETTINGS, layout="triton")
    folder, _ = tuned
    manifest = json.loads((folder / "pack.json").read_text())
    (tmp_path / "pack.json").write_text(json.dumps({**manifest, "session": {"optimisation": "all"}}))
    with pytest.raises(DataError, match="unknown setting 'optimisation'"):
        pack.open(tmp_path)
