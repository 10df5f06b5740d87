"""`prune-structured`: what it refuses and with which error, what it leaves alone, what it says."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import prune_graphs
import pytest
from onnx import helper, numpy_helper

from onnxcomp.data import Batches
from onnxcomp.errors import (
    GateError,
    InvalidModelError,
    NoEffectError,
    OnnxcompError,
    UnsupportedError,
    UsageError,
)
from onnxcomp.model import load, signature
from onnxcomp.passes import PruneStructured, QuantizeDynamic, Simplify
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.runtime import open_session


@pytest.fixture
def model(tmp_path):
    return load(builders.save(prune_graphs.cut_graph("conv"), tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sparsity": 1.0}, UsageError, r"not in \[0, 1\)"),
        ({"sparsity": -0.1}, UsageError, r"not in \[0, 1\)"),
        ({"sparsity": 0.0}, NoEffectError, "removes nothing"),
        ({"sparsity": float("nan")}, UsageError, r"not in \[0, 1\)"),
        ({"sparsity": 0.01, "align": 1}, NoEffectError, "nothing is removed"),
        ({"sparsity": 0.5, "align": 16}, NoEffectError, r"6 in blocks of 16\) stay"),
        ({"target_macs": 0.0}, UsageError, "not between 0 and 1"),
        ({"target_size": 1.0}, UsageError, "not between 0 and 1"),
        ({"limit": 1.0}, UsageError, "not between 0 and 1"),
        ({"align": 0}, UsageError, "less than 1"),
        ({"importance": "activation"}, UsageError, "needs data"),
        ({"allocation": "sensitivity"}, UsageError, "needs data"),
        ({"sparsity": 0.5, "target_macs": 0.5}, UsageError, "do not go together"),
        ({"target_size": 0.5, "target_macs": 0.5}, UsageError, "do not go together"),
        ({"sparsity": 0.5, "plan": "p.json"}, UsageError, "do not go together"),
        ({"target_macs": 0.01, "align": 1}, GateError, "cannot be reached"),
        ({"target_macs": 0.5, "align": 1, "limit": 0.2}, GateError, "cannot be reached"),
        ({"exclude": ("Conv_9",)}, UsageError, "no node or module"),
        ({"exclude": ("Conv_0", "Conv_3", "Gemm_6")}, NoEffectError, "no unit can be removed: .*excluded"),
    ],
)
def test_options_that_cannot_be(options, error, text, model):
    with pytest.raises(error, match=text):
        optimize(model, [PruneStructured(**options)])


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"sparsity": 0.01, "align": 1}, "higher --sparsity"),
        ({"sparsity": 0.9, "align": 16}, "a smaller --align than 16"),
        ({"sparsity": 0.9, "align": 1, "limit": 0.05}, "the limit of 0.05 lets none"),
        ({"exclude": ("Conv_0", "Conv_3", "Gemm_6")}, "exclude less"),
    ],
)
def test_where_nothing_goes_the_hint_says_what_would_help(options, hint, model):
    with pytest.raises(NoEffectError) as error:
        optimize(model, [PruneStructured(**options)])
    assert hint in error.value.hint


def test_a_quantized_model_is_refused(tmp_path):
    path = builders.save(builders.mlp(width=64), tmp_path / "m.onnx")
    quantized = optimize(load(path), [QuantizeDynamic()]).model
    with pytest.raises(UnsupportedError, match="quantized already") as error:
        optimize(quantized, [PruneStructured()])
    assert "prune the float model" in error.value.hint


def test_weights_that_are_not_finite(tmp_path):
    proto = prune_graphs.cut_graph("conv")
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array.flat[3] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, proto.graph.initializer[0].name))
    with pytest.raises(InvalidModelError, match="NaN"):
        optimize(load(builders.save(proto, tmp_path / "m.onnx")), [PruneStructured(align=1)])


def test_models_without_units_say_why(tmp_path):
    for make, reason in (
        (builders.layer_norm_empty_bias, "no weights"),
        (builders.relu, "no weights"),
        (builders.branch, "subgraph"),
    ):
        with pytest.raises(NoEffectError, match=reason):
            optimize(load(builders.save(make(), tmp_path / "m.onnx")), [PruneStructured()])


def test_what_is_excluded_stays(tmp_path):
    """A node's channels and those that it reads; the others go."""
    model = load(builders.save(prune_graphs.cut_graph("residual"), tmp_path / "m.onnx"))
    effect = optimize(model, [PruneStructured(sparsity=0.5, align=1, exclude=("Conv_0",))]).passes[0].effect
    assert [group["units"] for group in effect["groups"]] == [6]
    assert {"node": "Conv_0", "reason": "its channels stay: it is excluded"} in effect["refused"]


def test_the_record(tmp_path):
    path = builders.save(prune_graphs.cut_graph("residual"), tmp_path / "m.onnx")
    record = optimize_file(path, tmp_path / "out.onnx", [PruneStructured(sparsity=0.5, align=1)], measure=True)
    effect = record.to_json()["passes"][0]["effect"]
    assert effect["parameters"] - effect["removed_parameters"] == sum(
        t.const_value.size for t in load(tmp_path / "out.onnx").graph.initializers.values()
    )
    assert effect["units"] == {"removed": 7, "of": 14}
    assert effect["groups"][0] == {
        "nodes": ["Conv_1", "Conv_6"],
        "initializers": effect["groups"][0]["initializers"],
        "units": 8,
        "kept": 4,
        "channels_per_unit": 1,
    }
    assert set(effect["groups"][0]["initializers"]) == {"w1", "w2", "w3", "w4"}
    assert effect["refused"] == [{"node": "Conv_6", "reason": "its channels stay: it reaches the output 'y'"}]
    assert 0 < effect["macs_ratio"] < 0.6
    assert effect["equivalence_error"] <= 1e-5
    assert record.speed is not None


def test_the_input_is_not_written_to(model):
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    optimize(model, [PruneStructured(sparsity=0.5, align=1)])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_units_that_do_nothing_go_without_a_trace(tmp_path):
    """Data shows which channels are never read; without them the outputs are those of the whole model."""
    proto = prune_graphs.cut_graph("residual")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    dead = {"w2": [1, 4, 6], "w4": [1, 4, 6], "w3": [0, 3]}  # columns of what reads the trunk, and the branch
    for name, columns in dead.items():
        array = numpy_helper.to_array(stored[name]).copy()
        array[:, columns] = 0
        stored[name].CopyFrom(numpy_helper.from_array(array, name))
    path = builders.save(proto, tmp_path / "m.onnx")
    x = builders.samples(10, 3, 8, 8)
    model = load(path)
    data = Batches({"x": x}, signature(model).inputs)
    done = optimize(model, [PruneStructured(sparsity=0.34, align=1, allocation="uniform")], data=data)
    kept = {(c["initializer"], c["axis"]): c["kept"] for c in done.passes[0].effect["plan"]["cuts"]}
    assert kept["w1", 0] == [0, 2, 3, 5, 7]
    assert kept["w2", 0] == [1, 2, 4, 5]
    from onnxcomp.pipeline import save

    save(done.model, tmp_path / "cut.onnx")
    expected, found = (open_session(tmp_path / name).run({"x": x})["y"] for name in ("m.onnx", "cut.onnx"))
    assert np.abs(expected - found).max() <= 1e-5 * np.abs(expected).max()


def test_before_and_after_other_passes(tmp_path):
    """Simplify folds BatchNormalization: the same units are found then."""
    path = builders.save(prune_graphs.cut_graph("conv"), tmp_path / "m.onnx")
    step = PruneStructured(sparsity=0.5, align=1)
    first = optimize(load(path), [step, Simplify()])
    last = optimize(load(path), [Simplify(), step])
    assert [g["kept"] for g in first.passes[0].effect["groups"]] == [4, 3]
    assert [g["kept"] for g in last.passes[1].effect["groups"]] == [4, 3]


def test_local_functions_are_left_whole(tmp_path):
    """A call is one operator without a rule: nothing that it reads or writes is cut."""
    body = helper.make_function(
        "local", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Double", ["h"], ["d"], name="call", domain="local"),
        helper.make_node("MatMul", ["d", "w2"], ["y"], name="second"),
    ]
    weights = [builders.weight("w1", 4, 8), builders.weight("w2", 8, 5)]
    proto = builders.model(
        nodes, [builders.value("x", "N", 4)], [builders.value("y", "N", 5)], weights, functions=[body]
    )
    with pytest.raises(OnnxcompError, match="no rule for local::Double"):
        optimize(load(builders.save(proto, tmp_path / "m.onnx")), [PruneStructured()])


def test_padding_of_texts_does_not_count(tmp_path):
    text = """(int64[N,L] input_ids, int64[N,L] attention_mask) => (float[N,L,5] y) {
        e = Gather (table, input_ids)
        a = MatMul (e, w1)
        r = Relu (a)
        c = MatMul (r, w2)
        m = Cast <to=1> (attention_mask)
        u = Unsqueeze (m, axes)
        y = Mul (c, u)
    }"""
    rng = np.random.default_rng(2)
    weights = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in WIDTHS.items()}
    weights["table"][0] *= 100  # what pads
    proto = prune_graphs.build(text, weights | {"axes": np.array([2])})
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    ids, mask = rng.integers(1, 20, (64, 9)), np.ones((64, 9), np.int64)
    mask[:, 3:] = ids[:, 3:] = 0
    plans = []
    for length in (9, 3):
        arrays = {"input_ids": ids[:, :length], "attention_mask": mask[:, :length]}
        data = Batches(arrays, signature(model).inputs)
        plans.append(optimize(model, [PruneStructured(sparsity=0.5)], data=data).passes[0].effect["plan"])
    assert plans[0] == plans[1]


WIDTHS = {"table": (20, 6), "w1": (6, 16), "w2": (16, 5)}
