"""Settings that beat ORT's defaults: what is tried, what is refused, what wins, and what is written."""

from __future__ import annotations

import dataclasses
import json

import bench_models
import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.bench import bench, field, race, statistics, tune
from onnxcomp.bench.arms import Arm, compare_arms
from onnxcomp.bench.field import Block
from onnxcomp.bench.optimizers import effective
from onnxcomp.bench.trust import Trust
from onnxcomp.errors import UsageError
from onnxcomp.runtime import open_session, optimized
from onnxcomp.settings import SessionSettings, SettingsFile, read_settings


def convolution(path):
    """relu(batchnorm(conv(x))): float (1, 8, 8, 8) to the same."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(8, 8, 3, 3)).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "w")]
    constants += [numpy_helper.from_array(np.full(8, 0.5, np.float32), name) for name in ("s", "b", "m", "v")]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
            helper.make_node("Relu", ["n"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 8])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path):
    return convolution(tmp_path / "m.onnx")


@pytest.fixture
def feeds():
    return [{"x": np.random.default_rng(1).normal(size=(1, 8, 8, 8)).astype(np.float32)}]


@pytest.fixture
def known(monkeypatch):
    """Blocks of known speed: each of these changes takes off a part of the time."""
    gains = {"ConvBNFusion": 1.2, "arena": 1.1, "mem_pattern": 0.9}
    generator = np.random.default_rng(0)

    def block(entry, seconds, offset):
        settings = entry.arm.settings
        time = 1e6 * generator.normal(1, 0.003)
        for name in settings.disabled_optimizers:
            time /= gains.get(name, 0.95)
        time /= gains["arena"] if not settings.arena else 1
        time /= gains["mem_pattern"] if not settings.mem_pattern else 1
        time *= 1.5 if settings.optimization != "all" else 1
        return Block((int(time),) * 5, (int(time),) * 5, 1)

    monkeypatch.setattr(field, "block", block)


@pytest.fixture
def proof(monkeypatch):
    """What the last comparison says: this speedup."""

    def proven(verdict):
        def compare(arms, feeds, seconds, seed, delta):
            one = compare_arms(arms, feeds, seconds=0.01, seed=seed, delta=delta)
            estimate = statistics.Estimate(1.3, 1.2, 1.4)
            decision = statistics.Decision(verdict, estimate, statistics.Estimate(1, 0.9, 1.1), True, (), 0.02)
            return dataclasses.replace(one, decisions=(decision,))

        monkeypatch.setattr(tune, "_proof", compare)

    return proven


def test_optimizers_that_change_the_graph(model, tmp_path):
    found = effective(model, SessionSettings())
    assert "ConvBNFusion" in found
    assert "SkipLayerNormFusion" not in found
    kinds = {}
    for name in ((), ("ConvBNFusion",)):
        folder = tmp_path / "-".join(("optimized", *name))
        folder.mkdir()
        graph = onnx.load(optimized(model, folder, settings=SessionSettings(disabled_optimizers=name))).graph
        kinds[name] = [node.op_type for node in graph.node]
    # the normalization is a convolution of its own then
    assert [kinds[name].count("Conv") + kinds[name].count("BatchNormalization") for name in kinds] == [1, 2]
    assert effective(model, SessionSettings(optimization="disable")) == []


def test_changes_that_gain_are_joined_and_written(model, feeds, known, proof, tmp_path):
    proof("faster")
    found = tune.tune(model, feeds, seconds=0.5, seed=3)
    assert found.winner == SessionSettings(disabled_optimizers=("ConvBNFusion",), arena=False)
    assert {c.name for c in found.changes if c.kept} == {"without ConvBNFusion", "no memory arena"}
    assert found.changes[0].name == "without ConvBNFusion"
    assert found.changes[0].gain.value == pytest.approx(1.2, rel=0.01)
    assert found.changes[0].rounds > next(c.rounds for c in found.changes if c.name == "no memory pattern")
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(found.file().to_json(), allow_nan=False))
    assert read_settings(path) == found.winner
    written = SettingsFile.read(path)
    assert written.measured["speedup"] == {"value": 1.3, "low": 1.2, "high": 1.4}
    assert written.measured["changes"] == ["without ConvBNFusion", "no memory arena"]
    assert written.model["path"] == "m.onnx"
    busy = found.doubted(Trust("poor", ()))
    assert "tuned on a busy machine (trust: poor)" in busy.file().notes[0]
    assert found.doubted(Trust("good", ())) == found


@pytest.mark.parametrize("verdict", ["undecided", "equivalent", "slower"])
def test_what_is_not_proven_leaves_the_defaults(model, feeds, known, proof, verdict):
    proof(verdict)
    found = tune.tune(model, feeds, seconds=0.5, seed=3)
    assert found.winner != found.default
    assert found.file().settings == SessionSettings()
    assert any("these are the defaults" in note for note in found.file().notes)


def test_where_nothing_gains_there_is_nothing_to_compare(model, feeds, monkeypatch):
    monkeypatch.setattr(field, "block", lambda entry, *_: _slower(entry))
    found = tune.tune(model, feeds, seconds=0.2, seed=3)
    assert found.comparison is None
    assert found.file().settings == SessionSettings()
    assert found.file().measured is None


def _slower(entry):
    time = 1_000_000 if entry.arm.settings == SessionSettings() else 1_100_000
    return Block((time,) * 5, (time,) * 5, 1)


def test_changes_that_alter_the_outputs_are_refused(model, feeds, known, proof, monkeypatch):
    proof("faster")
    real = tune._outputs
    monkeypatch.setattr(
        tune,
        "_outputs",
        lambda path, settings, arrays: [
            np.asarray(value) * (1.001 if "ConvBNFusion" in settings.disabled_optimizers else 1)
            for value in real(path, settings, arrays)
        ],
    )
    found = tune.tune(model, feeds, seconds=0.5, seed=3)
    refused = next(c for c in found.changes if c.name == "without ConvBNFusion")
    assert "its outputs differ by 1.0e-03" in refused.refused
    assert refused.gain is None
    assert found.winner == SessionSettings(arena=False)


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ([1.0, -4.0], [1.0, -4.0004], 1e-4),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-9], 1.0),
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0], [1.0, 2.0], np.inf),
    ],
)
def test_how_far_outputs_are_apart(first, second, apart):
    assert tune._apart(np.array(first), np.array(second)) == pytest.approx(apart, rel=1e-6)
    assert tune._apart(np.array([1, 2]), np.array([1, 3])) == np.inf
    assert tune._apart(np.array([1, 2]), np.array([1, 2])) == 0


def test_changes_that_exclude_each_other_are_not_joined():
    default = SessionSettings()
    basic = SessionSettings(optimization="basic")
    without = SessionSettings(disabled_optimizers=("NchwcTransformer",))
    assert race.together(basic, SessionSettings(optimization="extended"), default) is None
    assert race.together(basic, without, default) is None
    quiet = SessionSettings(threads=2).with_spinning(False)
    assert race.together(without, quiet, default) == dataclasses.replace(
        quiet, disabled_optimizers=("NchwcTransformer",)
    )


def test_two_settings_of_one_model_are_compared(tmp_path):
    """A model whose constants are folded at load, and the same without folding: no noise hides that."""
    size = 256
    weight = numpy_helper.from_array(np.eye(size, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["w", "w"], ["p0"])]
    nodes += [helper.make_node("MatMul", [f"p{i}", "w"], [f"p{i + 1}"]) for i in range(3)]
    nodes += [helper.make_node("Add", ["x", "p3"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
        [weight],
    )
    path = tmp_path / "folded.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    arms = [
        Arm(name="folded", path=path),
        Arm(name="not folded", path=path, settings=SessionSettings(optimization="disable")),
    ]
    found = compare_arms(arms, [{"x": np.zeros((1, size), np.float32)}], seconds=1, seed=1)
    assert found.names == ("folded", "not folded")
    assert found.decisions[0].verdict == "slower"


def test_a_real_search_of_several_threads(tmp_path):
    model = bench_models.linear(tmp_path / "m.onnx")
    found = tune.tune(model, [{"x": np.ones((1, 4), np.float32)}], threads=[1, 2], seconds=0.2, seed=1)
    names = {c.name for c in found.changes}
    assert {"2 threads", "2 threads, no spinning", "no memory arena", "optimization basic"} <= names
    assert found.clock == "wall"
    file = found.file()
    assert open_session(model, settings=file.settings).signature.inputs[0].name == "x"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"settings": SessionSettings(arena=False)}, "starts from ORT's default settings"),
        ({"provider": ["cpu", "cuda"]}, "on the CPU"),
        ({"two": True}, "for one model"),
    ],
)
def test_what_cannot_be_tuned(tmp_path, options, text):
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    models = [path, path] if options.pop("two", False) else path
    with pytest.raises(UsageError, match=text):
        bench(models, scenario="sweep", tune=True, seconds=0.1, **options)
