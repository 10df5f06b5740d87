"""Half the bytes, the same inputs and outputs, and every node that stays in float32 with its reason."""

from __future__ import annotations

import json
import subprocess
import sys

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import model as models
from onnxcomp.data import Batches
from onnxcomp.errors import AccuracyGateError, NoEffectError, UnsupportedError, UsageError
from onnxcomp.passes import CastFloat, Simplify
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.runtime import open_session

HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16


def cast(proto, folder, *, data=None, **options):
    """(record, model) of a cast with a larger file allowed: small models gain less than a Cast costs."""
    path, output = builders.save(proto, folder / "m.onnx"), folder / "o.onnx"
    record = optimize_file(path, output, [CastFloat(**options)], data=data, allow_larger=True)
    return record, onnx.load(output)


def kept(record):
    return {one["node"]: one["reason"] for one in record.passes[0].effect["kept"]}


def stored(proto):
    return {t.name: t.data_type for t in proto.graph.initializer}


def chain(*nodes, weights=(), opset=17):
    """x (n, 256) through nodes [(op, inputs, output)] to y."""
    made = [helper.make_node(op, inputs, [out], name=f"{op}_{out}", **more) for op, inputs, out, more in nodes]
    return builders.model(
        made, [builders.value("x", "n", 256)], [builders.value("y", "n", 256)], list(weights), opset=opset
    )


def constant(name, *values):
    return numpy_helper.from_array(np.array(values, np.float32), name)


@pytest.mark.parametrize(
    "build", [builders.mlp, builders.cnn, builders.encoder, lambda: builders.as_old(builders.cnn())]
)
def test_weights_are_halved_and_the_signature_stays(build, tmp_path):
    record, made = cast(build(), tmp_path)
    effect = record.passes[0].effect
    assert effect["weight_bytes"]["after"] == effect["weight_bytes"]["before"] / 2
    assert set(stored(made).values()) == {HALF}
    assert 0 < record.equivalence < 1e-2
    before, after = (models.signature(models.load(tmp_path / name)) for name in ("m.onnx", "o.onnx"))
    assert after == before


def test_a_value_is_cast_once_however_many_nodes_take_it(tmp_path):
    proto = chain(
        ("Mul", ["x", "w"], "a", {}),
        ("Sub", ["x", "a"], "b", {}),
        ("Add", ["a", "b"], "y", {}),
        weights=[builders.weight("w", 256)],
    )
    record, made = cast(proto, tmp_path)
    assert record.passes[0].effect["casts"] == 2
    assert [n.op_type for n in made.graph.node] == ["Cast", "Mul", "Sub", "Add", "Cast"]


def test_a_weight_beyond_the_range_keeps_its_node_and_what_it_feeds(tmp_path):
    weights = [builders.weight("w", 256, 256), constant("huge", *[1e6] * 256)]
    proto = chain(
        ("MatMul", ["x", "w"], "a", {}),
        ("Mul", ["a", "huge"], "b", {}),
        ("Neg", ["b"], "c", {}),
        ("Tanh", ["c"], "d", {}),
        ("MatMul", ["d", "w"], "y", {}),
        weights=weights,
    )
    record, made = cast(proto, tmp_path)
    assert list(kept(record)) == ["Mul_b", "Neg_c", "Tanh_d"]
    assert kept(record)["Mul_b"] == "weight huge holds 1e+06, beyond float16"
    assert stored(made) == {"w": HALF, "huge": TensorProto.FLOAT}


def test_a_tiny_constant_is_not_rounded_to_nothing(tmp_path):
    proto = chain(
        ("MatMul", ["x", "w"], "a", {}),
        ("Sub", ["a", "a"], "zero", {}),
        ("Add", ["zero", "epsilon"], "b", {}),
        ("Div", ["zero", "b"], "c", {}),
        ("Add", ["a", "c"], "y", {}),
        weights=[builders.weight("w", 256, 256), constant("epsilon", 1e-12)],
    )
    record, _ = cast(proto, tmp_path, data={"x": builders.samples(8, 256)}, keep_nodes=("Div_c",))
    assert kept(record) == {
        "Add_b": "weight epsilon holds nothing above 1e-12, too small for float16",
        "Div_c": "asked for",
    }
    assert record.equivalence < 1e-2


def large():
    """Values up to about 1e5 in the middle, small ones at both ends."""
    return chain(
        ("Mul", ["x", "up"], "a", {}),
        ("Neg", ["a"], "b", {}),
        ("Mul", ["b", "down"], "c", {}),
        ("MatMul", ["c", "w"], "y", {}),
        weights=[constant("up", 3e4), constant("down", 1e-3), builders.weight("w", 256, 256)],
    )


def test_ranges_are_measured_on_data(tmp_path):
    record, made = cast(large(), tmp_path, data={"x": builders.samples(40, 256)})
    reasons = kept(record)
    assert list(reasons) == ["Mul_a", "Neg_b", "Mul_c"]
    assert all(reason.startswith("values up to 1") for reason in reasons.values())
    assert stored(made)["w"] == HALF
    assert record.data["calibration"] == 32
    assert record.equivalence < 1e-2


def test_small_data_keeps_nothing(tmp_path):
    record, _ = cast(large(), tmp_path, data={"x": 0.1 * builders.samples(40, 256)})
    assert kept(record) == {}


def test_infinity_in_the_result_is_refused(tmp_path):
    """ORT's CPU provider drops pairs of Casts between its float32 kernels; Concat has one of float16."""
    proto = large()
    proto.graph.node.append(helper.make_node("Concat", ["a", "a"], ["twice"], axis=1))
    proto.graph.output.append(builders.value("twice", "n", 512))
    with pytest.raises(AccuracyGateError, match="NaN or infinity"):
        cast(proto, tmp_path)
    assert not (tmp_path / "o.onnx").exists()


def test_without_data_a_note_says_that_nothing_was_measured(tmp_path):
    record, _ = cast(builders.mlp(), tmp_path)
    assert "ranges were not measured" in record.passes[0].notes[0].reason


def test_what_was_asked_for_stays(tmp_path):
    record, made = cast(builders.cnn(), tmp_path, keep_op_types=("Gemm",), keep_nodes=("conv2",))
    assert kept(record) == {"conv2": "asked for", "head": "asked for"}
    wide = {name for name, dtype in stored(made).items() if dtype == TensorProto.FLOAT}
    assert wide == {"k2", "kb2", "w", "b"}


@pytest.mark.parametrize(
    ("options", "hint"), [({"keep_nodes": ("conv3",)}, "conv"), ({"keep_op_types": ("gemm",)}, "Gemm")]
)
def test_unknown_names_are_refused(options, hint, tmp_path):
    with pytest.raises(UsageError) as error:
        cast(builders.cnn(), tmp_path, **options)
    assert hint in error.value.hint


def test_a_weight_of_a_kept_and_a_cast_node_is_exact_for_the_kept_one(tmp_path):
    proto = chain(
        ("MatMul", ["x", "w"], "a", {}), ("MatMul", ["a", "w"], "y", {}), weights=[builders.weight("w", 256, 256)]
    )
    _, made = cast(proto, tmp_path, keep_nodes=("MatMul_y",))
    assert stored(made) == {"w": TensorProto.FLOAT, "w_float16": HALF}
    assert {n.name: n.input[1] for n in made.graph.node if n.op_type == "MatMul"} == {
        "MatMul_a": "w_float16",
        "MatMul_y": "w",
    }


def test_an_output_that_is_used_inside_keeps_its_name(tmp_path):
    proto = builders.mlp()
    proto.graph.output.append(builders.value("h", "batch", 32))
    record, made = cast(proto, tmp_path)
    assert [o.name for o in made.graph.output] == ["y", "h"]
    assert record.equivalence < 1e-2


def test_sensitive_operators_stay_and_scales_too(tmp_path):
    resize = helper.make_node("Resize", ["s", "", "scales"], ["r"], name="resize", mode="nearest")
    proto = builders.model(
        [
            helper.make_node("Conv", ["image", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("CumSum", ["c", "axis"], ["s"], name="sum"),
            resize,
        ],
        [builders.value("image", 1, 16, 4, 4)],
        [builders.value("r", 1, 16, 8, 8)],
        [
            builders.weight("k", 16, 16, 3, 3),
            constant("scales", 1, 1, 2, 2),
            numpy_helper.from_array(np.int64(2), "axis"),
        ],
    )
    record, made = cast(proto, tmp_path)
    assert list(kept(record)) == ["sum"]
    assert stored(made) == {"k": HALF, "scales": TensorProto.FLOAT, "axis": TensorProto.INT64}


def test_branches_are_cast_inside(tmp_path):
    record, made = cast(builders.branch(), tmp_path)
    assert record.passes[0].effect["weights"] == 2
    branches = {a.name: a.g for n in made.graph.node for a in n.attribute if a.name.endswith("branch")}
    for graph in branches.values():
        assert [n.op_type for n in graph.node][-1] == "Cast"
        assert "MatMul" in [n.op_type for n in graph.node]


def test_functions_are_inlined(tmp_path):
    body = [helper.make_node("MatMul", ["a", "w"], ["b"])]
    function = helper.make_function("local", "f", ["a", "w"], ["b"], body, [helper.make_opsetid("", 17)])
    node = helper.make_node("f", ["x", "w"], ["y"], domain="local")
    proto = builders.model(
        [node], [builders.value("x", 2, 32)], [builders.value("y", 2, 32)], [builders.weight("w", 32, 32)],
        functions=[function],
    )  # fmt: skip
    _, made = cast(proto, tmp_path)
    assert not made.functions
    assert stored(made) == {"w": HALF}


def test_constant_nodes_are_weights(tmp_path):
    proto = builders.constants()
    _, made = cast(proto, tmp_path)
    assert stored(made) == {"w": HALF}


def test_operators_of_other_domains_compute_in_float32_with_narrow_weights(tmp_path):
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["m"], name="fused", domain="com.microsoft", alpha=0.5),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="plain"),
    ]
    weights = [builders.weight("w", 32, 32), builders.weight("v", 32, 32)]
    proto = builders.model(nodes, [builders.value("x", 2, 32)], [builders.value("y", 2, 32)], weights)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    record, made = cast(proto, tmp_path)
    assert list(kept(record)) == ["fused"]
    assert set(stored(made).values()) == {HALF}
    assert record.passes[0].effect["nodes"] == {"cast": 1, "kept": 1}


def test_bfloat16_stores_and_computes_wide(tmp_path):
    record, made = cast(builders.mlp(width=64), tmp_path, dtype="bfloat16")
    assert stored(made) == {"w1": BRAIN, "w2": BRAIN, "b1": TensorProto.FLOAT, "b2": TensorProto.FLOAT}
    assert [n.op_type for n in made.graph.node if n.op_type != "Cast"] == ["Gemm", "Relu", "Gemm"]
    assert 0 < record.equivalence < 5e-2
    assert [note.node for note in record.passes[0].notes] == [""]


def test_bfloat16_takes_what_float16_cannot_hold(tmp_path):
    proto = chain(("Mul", ["x", "huge"], "y", {}), weights=[constant("huge", *np.geomspace(1e-6, 1e6, 256))])
    _, made = cast(proto, tmp_path, dtype="bfloat16")
    assert stored(made) == {"huge": BRAIN}


def test_bfloat16_needs_an_opset_that_has_it(tmp_path):
    with pytest.raises(UnsupportedError, match="opset 13"):
        cast(builders.mlp(opset=9), tmp_path, dtype="bfloat16")


def test_a_float16_model_can_be_simplified_but_not_cast_again(tmp_path):
    cast(builders.cnn(), tmp_path)
    record = optimize_file(tmp_path / "o.onnx", tmp_path / "s.onnx", [Simplify()])
    assert record.passes[0].effect["removed"]["ai.onnx::BatchNormalization"] == 1
    assert record.equivalence < 1e-2
    with pytest.raises(NoEffectError):
        optimize_file(tmp_path / "o.onnx", tmp_path / "t.onnx", [CastFloat()])


def test_large_weights_are_rounded_when_they_are_written(tmp_path):
    path = builders.save(builders.mlp(width=40_000), tmp_path / "m.onnx")
    done = optimize(path, [CastFloat()])
    weight = done.model.graph.initializers["w1"].const_value
    assert type(weight).__name__ == "LazyTensor"
    original = models.load(path).graph.initializers["w1"].const_value.numpy()
    np.testing.assert_array_equal(weight.numpy(), original.astype(np.float16))


def test_data_that_does_not_run_is_noted_not_fatal(tmp_path):
    """Ids beyond the table: ORT refuses them, and the fidelity says so."""
    model = models.load(builders.save(builders.encoder(), tmp_path / "m.onnx"))
    data = Batches({"ids": np.full((4, 3), 99)}, models.signature(model).inputs)
    done = optimize(model, [CastFloat()], data=data)
    assert "ranges were not measured" in done.passes[0].notes[0].reason


def test_the_command_line_casts_after_simplifying(tmp_path):
    path = builders.save(builders.cnn(), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "onnxcomp", "optimize", str(path), "-o", str(tmp_path / "o.onnx"), "--json"]
    options = ["--float16", "--keep-op-types", "Gemm,Add"]
    done = subprocess.run([*command, *options], capture_output=True, check=True)
    record = json.loads(done.stdout)
    assert [step["name"] for step in record["passes"]] == ["simplify", "cast-float"]
    assert record["passes"][1]["options"]["keep_op_types"] == ["Gemm", "Add"]
    got = open_session(tmp_path / "o.onnx").run({"image": builders.samples(2, 3, 8, 8)})["scores"]
    assert got.dtype == np.float32
    alone = subprocess.run([*command, "--force", "--keep-nodes", "conv1"], capture_output=True, check=False)
    assert alone.returncode == UsageError.code
