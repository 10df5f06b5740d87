"""Dynamic and static int8: every weight accounted for, every bad input refused by name."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxcomp import runtime
from onnxcomp.errors import (
    CalibrationError,
    DataError,
    InvalidModelError,
    NoEffectError,
    UnsupportedError,
    UsageError,
)
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic, Simplify
from onnxcomp.pipeline import optimize_file


@pytest.fixture
def mlp(tmp_path):
    return builders.save(builders.mlp(width=256), tmp_path / "mlp.onnx")


@pytest.fixture
def cnn(tmp_path):
    return builders.save(builders.cnn(), tmp_path / "cnn.onnx")


def images(count=64):
    return {"image": np.abs(builders.samples(count, 3, 8, 8))}


def run(path, out, step, data=None, **options):
    return optimize_file(path, out, [step], data=data, **options)


def test_dynamic_quantizes_every_gemm(mlp, tmp_path):
    record = run(mlp, tmp_path / "o.onnx", QuantizeDynamic(), {"x": builders.samples(64, 16)})
    effect = record.passes[0].effect
    assert (effect["quantized_weights"], effect["total_weights"], effect["skipped"]) == (2, 2, [])
    assert record.size_ratio < 0.4
    assert record.fidelity.outputs["y"].sqnr_db > 30
    assert record.fidelity.samples == 64  # nothing calibrates, everything judges


def test_dynamic_leaves_conv_in_float_and_says_so(cnn, tmp_path):
    record = run(cnn, tmp_path / "o.onnx", QuantizeDynamic(), allow_larger=True)
    effect = record.passes[0].effect
    assert effect["quantized_weights"] == 1
    assert sorted(s["node"] for s in effect["skipped"]) == ["conv1", "conv2"]
    assert all("Conv is not among" in s["reason"] for s in effect["skipped"])


def test_static_with_held_out_fidelity(cnn, tmp_path):
    record = run(cnn, tmp_path / "o.onnx", QuantizeStatic(), images(100), allow_larger=True)
    assert record.passes[0].effect["quantized_weights"] == 3
    assert record.data["calibration"] == 80
    assert record.data["judged"] == record.fidelity.samples == 20
    assert record.fidelity.outputs["scores"].sqnr_db > 20
    ops = {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}
    assert "BatchNormalization" not in ops  # folded first
    assert not onnx.load(tmp_path / "o.onnx").graph.value_info


def test_activations_are_unsigned_and_weights_signed(cnn, tmp_path):
    run(cnn, tmp_path / "o.onnx", QuantizeStatic(), images(), allow_larger=True)
    graph = onnx.load(tmp_path / "o.onnx").graph
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert stored[node.input[2]].data_type == TensorProto.UINT8
    kernels = [
        t for t in stored.values() if t.name.startswith("k") and t.name.endswith("_quantized") and len(t.dims) == 4
    ]
    assert len(kernels) == 2
    assert all(t.data_type == TensorProto.INT8 for t in kernels)


def test_reduce_range_is_seven_bits_and_noted(cnn, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "saturates_int8", lambda: True)
    record = run(cnn, tmp_path / "o.onnx", QuantizeStatic(), images(), allow_larger=True)
    assert record.passes[0].effect["reduce_range"] is True
    assert any("VNNI" in n.reason for n in record.passes[0].notes)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "o.onnx").graph.initializer}
    assert np.abs(stored["k2_quantized"].astype(int)).max() <= 64
    again = run(cnn, tmp_path / "p.onnx", QuantizeStatic(reduce_range=False), images(), allow_larger=True)
    assert again.passes[0].effect["reduce_range"] is False


def test_old_opset_is_raised(tmp_path):
    path = builders.save(builders.mlp(opset=9, width=256), tmp_path / "m.onnx")
    record = run(path, tmp_path / "o.onnx", QuantizeStatic(), {"x": builders.samples(64, 16)})
    assert any("opset raised to 13" in n.reason for n in record.passes[0].notes)
    assert record.size_ratio < 0.5


def test_excluded_node_stays_in_float(mlp, tmp_path):
    record = run(mlp, tmp_path / "o.onnx", QuantizeDynamic(exclude=("fc1",)))
    assert record.passes[0].effect["skipped"] == [{"node": "fc1", "reason": "excluded by the user"}]


def test_excluding_a_node_that_simplification_would_remove(cnn, tmp_path):
    record = run(cnn, tmp_path / "o.onnx", QuantizeStatic(exclude=("norm1",)), images(), allow_larger=True)
    assert any("excluded node norm1" in n.reason for n in record.passes[0].notes)
    assert "BatchNormalization" in {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}


@pytest.mark.parametrize("step", [QuantizeDynamic, QuantizeStatic])
def test_unknown_names_are_errors(step, mlp, tmp_path):
    data = {"x": builders.samples(64, 16)}
    with pytest.raises(UsageError, match="fc9") as error:
        run(mlp, tmp_path / "o.onnx", step(exclude=("fc9",)), data)
    assert "fc" in error.value.hint
    with pytest.raises(UsageError, match="MatMull") as error:
        run(mlp, tmp_path / "o.onnx", step(op_types=("MatMull",)), data)
    assert "MatMul" in error.value.hint
    assert list(tmp_path.iterdir()) == [mlp]


def broken(value, tmp_path):
    proto = builders.mlp(width=64)
    array = numpy_helper.to_array(proto.graph.initializer[2]).copy()
    array[1, 2] = value
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "w2"))
    return builders.save(proto, tmp_path / "b.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic()])
def test_nan_and_infinite_weights_name_tensor_and_index(step, value, tmp_path):
    with pytest.raises(InvalidModelError, match="NaN or infinity") as error:
        run(broken(value, tmp_path), tmp_path / "o.onnx", step, {"x": builders.samples(64, 16)})
    assert "w2" in error.value.where
    assert "(1, 2)" in error.value.where


@pytest.mark.parametrize("value", [3e38, 1e-40])
def test_weights_beyond_any_scale_stay_in_float(value, tmp_path):
    proto = builders.mlp(width=64)
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full((10, 64), value, np.float32), "w2"))
    record = run(builders.save(proto, tmp_path / "b.onnx"), tmp_path / "o.onnx", QuantizeDynamic())
    skipped = record.passes[0].effect["skipped"]
    assert [s["node"] for s in skipped] == ["fc2"]
    assert "too large or too small" in skipped[0]["reason"]


def test_nothing_to_quantize(tmp_path):
    with pytest.raises(NoEffectError, match="0 of 0 weights"):
        run(builders.save(builders.relu(), tmp_path / "m.onnx"), tmp_path / "o.onnx", QuantizeDynamic())
    assert not (tmp_path / "o.onnx").exists()


def test_nothing_quantized_gives_the_reasons(tmp_path):
    path = builders.save(builders.branch(), tmp_path / "m.onnx")
    with pytest.raises(NoEffectError, match="subgraph"):
        run(path, tmp_path / "o.onnx", QuantizeDynamic())


def test_already_quantized(mlp, tmp_path):
    run(mlp, tmp_path / "q.onnx", QuantizeDynamic())
    with pytest.raises(UnsupportedError, match="quantized already"):
        run(tmp_path / "q.onnx", tmp_path / "o.onnx", QuantizeDynamic())


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ({"wrong": builders.samples(8, 3, 8, 8)}, DataError, "no input 'wrong'"),
        ({"image": builders.samples(8, 3, 9, 8)}, DataError, "axis 2 has size 9"),
        ({"image": builders.samples(8, 3, 8, 8).astype(np.float64)}, DataError, "float64"),
        ({"image": builders.samples(0, 3, 8, 8)}, DataError, "no samples"),
        ({"image": np.full((8, 3, 8, 8), np.nan, np.float32)}, CalibrationError, "NaN"),
        ({"image": np.zeros((8, 3, 8, 8), np.float32)}, CalibrationError, "constant"),
    ],
)
def test_calibration_data_that_cannot_serve(data, error, text, cnn, tmp_path):
    with pytest.raises(error, match=text) as found:
        run(cnn, tmp_path / "o.onnx", QuantizeStatic(), data)
    assert "image" in str(found.value) or "wrong" in str(found.value) or "samples" in str(found.value)
    assert found.value.code == 3
    assert list(tmp_path.iterdir()) == [cnn]


def test_one_bad_sample_is_named(cnn, tmp_path):
    data = images(100)
    data["image"][37, 0, 0, 0] = np.inf
    with pytest.raises(CalibrationError) as error:
        run(cnn, tmp_path / "o.onnx", QuantizeStatic(), data)
    assert "sample" in error.value.where


def test_static_without_data_or_on_noise(cnn, tmp_path):
    with pytest.raises(DataError, match="needs data"):
        run(cnn, tmp_path / "o.onnx", QuantizeStatic())
    with pytest.raises(DataError, match="real data"):
        run(cnn, tmp_path / "o.onnx", QuantizeStatic(), "random:8")


def test_few_samples_warn(cnn, tmp_path):
    record = run(cnn, tmp_path / "o.onnx", QuantizeStatic(), images(4), allow_larger=True)
    assert any("only 4 samples" in w for w in record.warnings)
    assert any("calibrated on 4 samples only" in n.reason for n in record.passes[0].notes)


def test_a_larger_result_is_a_failure(tmp_path):
    path = builders.save(builders.mlp(width=2), tmp_path / "m.onnx")
    with pytest.raises(NoEffectError, match="larger"):
        run(path, tmp_path / "o.onnx", QuantizeDynamic())
    assert list(tmp_path.iterdir()) == [path]


def test_same_bytes_after_other_passes_too(cnn, tmp_path):
    for name in "ab":
        optimize_file(cnn, tmp_path / f"{name}.onnx", [Simplify(), QuantizeStatic()], data=images(), allow_larger=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_excluding_a_torch_module_keeps_all_that_came_from_it(tmp_path):
    proto = builders.cnn()
    for node in proto.graph.node:
        node.metadata_props.add(key="onnxcomp.module", value="body.0" if node.name in ("conv1", "norm1") else "rest")
    path = builders.save(proto, tmp_path / "m.onnx")
    out = tmp_path / "q.onnx"
    step = QuantizeStatic(exclude=("body.0",))
    record = optimize_file(path, out, [step], data={"image": builders.samples(40, 3, 8, 8)}, allow_larger=True)
    effect = record.passes[0].effect
    assert [s["node"] for s in effect["skipped"]] == ["conv1"]
    assert effect["skipped"][0]["reason"] == "excluded by the user"
    assert effect["quantized_weights"] == 2


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic(op_types=("MatMul",))], ids=["dynamic", "static"])
def test_a_matrix_behind_a_fused_operator_is_quantized(tmp_path, step):
    """onnx infers no types behind operators of com.microsoft; ORT's quantizer gave up there."""
    weight = builders.samples(64, 64)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("FastGelu", ["x"], ["middle"], "gelu", domain="com.microsoft"),
            onnx.helper.make_node("MatMul", ["middle", "w"], ["y"], "product"),
        ],
        "fused",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    sets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = builders.save(onnx.helper.make_model(graph, opset_imports=sets, ir_version=10), tmp_path / "m.onnx")
    record = run(path, tmp_path / "o.onnx", step, {"x": builders.samples(64, 64)})
    assert (record.passes[0].effect["quantized_weights"], record.passes[0].effect["skipped"]) == (1, [])
    assert record.fidelity.outputs["y"].sqnr_db > 30
