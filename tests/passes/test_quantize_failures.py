"""Twenty-one inputs of which ORT's own quantizer makes wrong models without a word: here each is refused by
name, or right when measured against the float model."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data import Batches
from onnxcomp.errors import (
    CalibrationError,
    DataError,
    InvalidModelError,
    NoEffectError,
    RecipeError,
    UnsupportedError,
    UsageError,
)
from onnxcomp.evaluate import compare
from onnxcomp.model import load, signature
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.recipe import Recipe

BOTH = pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic()], ids=["dynamic", "static"])


@pytest.fixture
def mlp(tmp_path):
    return builders.save(builders.mlp(width=256), tmp_path / "mlp.onnx")


def run(path, step, data, **options):
    return optimize_file(path, path.parent / "out.onnx", [step], data=data, **options)


def feeds(count=64, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)}


def changed(tmp_path, name, change, *, width=256):
    """The MLP with one initializer changed."""
    proto = builders.mlp(width=width)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(change(array), name))
    return builders.save(proto, tmp_path / "m.onnx")


def put(value, index=(1, 2)):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize("per_channel", [False, True])
def test_s1_s2_infinite_weight_in_dynamic(per_channel, tmp_path):
    path = changed(tmp_path, "w2", put(np.inf))
    with pytest.raises(InvalidModelError) as error:
        run(path, QuantizeDynamic(per_channel=per_channel), feeds())
    assert "tensor w2, index (1, 2)" in error.value.where
    assert list(tmp_path.iterdir()) == [path]


def test_s3_infinite_weight_in_static(tmp_path):
    with pytest.raises(InvalidModelError) as error:
        run(changed(tmp_path, "w2", put(-np.inf)), QuantizeStatic(), feeds())
    assert "tensor w2, index (1, 2)" in error.value.where


@BOTH
def test_s1_to_s3_infinite_bias(step, tmp_path):
    with pytest.raises(InvalidModelError) as error:
        run(changed(tmp_path, "b1", put(np.nan, 3)), step, feeds())
    assert "tensor b1, index (3,)" in error.value.where


def test_s4_huge_weights_stay_in_float_in_dynamic(tmp_path):
    path = changed(tmp_path, "w2", put(3e38, np.s_[0, :1]))
    record = run(path, QuantizeDynamic(), feeds())
    effect = record.passes[0].effect
    assert effect["quantized_weights"] == 1
    assert effect["skipped"][0]["node"] == "fc2"
    assert "3e+38" in effect["skipped"][0]["reason"]
    assert record.fidelity.outputs["y"].sqnr_db > 25


def test_s4_overflowing_activations_are_refused_in_static(tmp_path):
    path = changed(tmp_path, "w1", lambda a: np.full_like(a, 3e38))
    with pytest.raises(CalibrationError, match="NaN or infinite") as error:
        run(path, QuantizeStatic(), feeds())
    assert "tensor a" in error.value.where
    assert "sample" in error.value.where


@BOTH
@pytest.mark.parametrize("value", [1e-37, 1e-40])
def test_s5_tiny_weights_stay_in_float(step, value, tmp_path):
    """Their scale would be a denormal, or none: all weights would be 0."""
    path = changed(tmp_path, "w2", lambda a: np.where(a > 0, np.float32(value), np.float32(-value)))
    proto = onnx.load(path)
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "b2"))
    del proto.graph.node[2].input[2]
    builders.save(proto, path)
    record = run(path, step, feeds())
    effect = record.passes[0].effect
    assert (effect["quantized_weights"], effect["total_weights"]) == (1, 2)
    assert [s["node"] for s in effect["skipped"]] == ["fc2"]
    assert "too small" in effect["skipped"][0]["reason"]
    assert any(n.node == "fc2" and "left in float" in n.reason for n in record.passes[0].notes)
    out = record.fidelity.outputs["y"]
    assert out.cosine_mean > 0.99  # at 1e-40 the squares underflow in no type that we use
    assert out.sqnr_db > 20


@BOTH
def test_s5_tiny_channel_beside_others(step, tmp_path):
    path = changed(tmp_path, "w2", put(1e-39, np.s_[3, :]))
    record = run(path, step, feeds())
    assert record.passes[0].effect["skipped"] == []
    assert record.fidelity.outputs["y"].sqnr_db > 25


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_s6_s7_not_finite_in_calibration(method, value, mlp):
    data = feeds(100)
    data["x"][[11, 37, 60], 4] = value  # four fifths calibrate: one of them does
    with pytest.raises(CalibrationError, match="NaN or infinity") as error:
        run(mlp, QuantizeStatic(calibration=method), data)
    assert error.value.where.endswith(("sample 11", "sample 37", "sample 60"))
    assert "x" in error.value.where


def test_s8_a_method_meant_for_another_type():
    with pytest.raises(RecipeError, match="calibration"):
        Recipe.parse('[[pass]]\nname = "quantize-static"\ncalibration = "distribution"\n')


def test_s8_a_method_meant_for_another_type_in_python(mlp):
    with pytest.raises(UsageError, match="distribution"):
        run(mlp, QuantizeStatic(calibration="distribution"), feeds())


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("value", [1e30, 1e4])
def test_s9_one_enormous_value(method, value, mlp):
    """All that the sample makes is enormous: one value in a hundred, which no choice of ranges leaves out."""
    data = feeds(100)
    data["x"][37, 4] = value
    model = load(mlp)
    step = QuantizeStatic(calibration=method)
    with pytest.raises(CalibrationError, match="half of the samples") as error:
        optimize(model, [step], data=Batches(data, signature(model).inputs, batch_size=10))
    assert "sample 37, tensor x" in error.value.where
    assert "remove" in error.value.hint
    repaired = {"x": np.delete(data["x"], 37, axis=0)}
    done = optimize(model, [step], data=Batches(repaired, signature(model).inputs, batch_size=10))
    judged = Batches(feeds(50, seed=1), signature(model).inputs)
    assert compare(mlp, save(done.model, mlp.parent), judged).outputs["y"].sqnr_db > 20


def test_s9_what_stays_in_float_is_not_judged(mlp):
    data = feeds(100)
    data["x"][37] = 1e4
    with pytest.raises(CalibrationError):
        run(mlp, QuantizeStatic(exclude=("fc2",)), data)
    with pytest.raises(NoEffectError, match="excluded by the user"):
        run(mlp, QuantizeStatic(exclude=("fc1", "fc2")), data)


def test_s9_samples_of_different_size_are_no_outliers(mlp):
    data = feeds(100)
    data["x"] *= np.geomspace(1, 60, 100, dtype=np.float32)[:, None]
    assert run(mlp, QuantizeStatic(), data).fidelity.outputs["y"].sqnr_db > 20


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_s10_constant_data(value, mlp):
    with pytest.raises(CalibrationError, match="constant") as error:
        run(mlp, QuantizeStatic(), {"x": np.full((64, 16), value, np.float32)})
    assert "x" in error.value.where


def test_s10_constant_ids(tmp_path):
    path = builders.save(builders.encoder(), tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match="constant") as error:
        run(path, QuantizeStatic(), {"ids": np.full((64, 8), 7)})
    assert "ids" in error.value.where


def test_s10_a_dead_tensor_is_noted(tmp_path):
    path = changed(tmp_path, "b1", lambda a: np.full_like(a, -100))
    record = run(path, QuantizeStatic(), feeds())
    assert any("degenerate" in n.reason and "tensor a" in n.reason for n in record.passes[0].notes)


def test_s11_no_rows(mlp):
    with pytest.raises(DataError, match="no samples"):
        run(mlp, QuantizeStatic(), {"x": np.zeros((0, 16), np.float32)})


def test_s12_few_samples_are_noted(mlp):
    record = run(mlp, QuantizeStatic(), feeds(10))
    assert record.passes[0].effect["calibration_samples"] == 8
    assert any("calibrated on 8 samples only" in n.reason for n in record.passes[0].notes)
    record = run(mlp, QuantizeStatic(), feeds(100), force=True)
    assert not any("samples only" in n.reason for n in record.passes[0].notes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(QuantizeStatic):
    """Calibrates on samples that were prepared otherwise than those that judge."""

    by: float = 1.0

    def apply(self, model, context):
        arrays = {k: self.by * v for k, v in feeds(100).items()}
        return super().apply(model, dataclasses.replace(context, data=Batches(arrays, signature(model).inputs)))


@pytest.mark.parametrize("by", [255.0, 1000.0])
def test_s13_calibration_scaled_wrongly(by, mlp):
    record = run(mlp, Scaled(by=by), feeds())
    assert record.fidelity.outputs["y"].sqnr_db < 5
    warning = next(w for w in record.warnings if "output y has little to do with" in w)
    assert "evaluate" in warning
    good = run(mlp, Scaled(by=1.0), feeds(), force=True)
    assert good.warnings == ()


@BOTH
def test_s14_unknown_operator_type(step, mlp):
    with pytest.raises(UsageError, match="'Matmul'") as error:
        run(mlp, dataclasses.replace(step, op_types=("Matmul",)), feeds())
    assert "MatMul" in error.value.hint


@BOTH
def test_s14_an_operator_type_that_the_model_lacks(step, mlp):
    with pytest.raises(NoEffectError, match="0 of 2 weights"):
        run(mlp, dataclasses.replace(step, op_types=("MatMul",)), feeds())


@BOTH
def test_s15_unknown_excluded_node(step, mlp):
    with pytest.raises(UsageError, match="'fc_2'") as error:
        run(mlp, dataclasses.replace(step, exclude=("fc_2",)), feeds())
    assert "fc2" in error.value.hint


@pytest.mark.parametrize("name", ["quantize-static", "quantize-dynamic"])
def test_s16_unknown_option(name):
    with pytest.raises(RecipeError, match="reduce_rang"):
        Recipe.parse(f'[[pass]]\nname = "{name}"\nreduce_rang = true\n')


@pytest.mark.parametrize(
    "text",
    ['name = "quantize-dynamic"\nweight_type = "int16"', 'name = "quantize-weights"\nbits = 16'],
)
def test_s17_16_bit_weights_cannot_be_asked_for(text):
    with pytest.raises(RecipeError, match=r"weight_type|bits"):
        Recipe.parse(f"[[pass]]\n{text}\n")


@BOTH
def test_s17_all_weights_are_8_bits(step, mlp):
    run(mlp, step, feeds())
    graph = onnx.load(mlp.parent / "out.onnx").graph
    assert {t.data_type for t in graph.initializer if len(t.dims) == 2} <= {TensorProto.INT8, TensorProto.UINT8}


@BOTH
@pytest.mark.parametrize("first", [QuantizeDynamic(), QuantizeStatic()], ids=["of-dynamic", "of-static"])
def test_s18_already_quantized(first, step, mlp):
    run(mlp, first, feeds())
    with pytest.raises(UnsupportedError, match="quantized already"):
        optimize_file(mlp.parent / "out.onnx", mlp.parent / "twice.onnx", [step], data=feeds())


@BOTH
def test_s19_float16_weight_behind_a_float32_input(step, tmp_path):
    path = changed(tmp_path, "w2", lambda a: a.astype(np.float16))
    with pytest.raises(InvalidModelError):
        run(path, step, feeds())
    assert list(tmp_path.iterdir()) == [path]


def zero_size(tmp_path):
    """x (8, 0) and w (0, 64) make zeros; a Concat with an empty tensor; then a product with a real weight."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["zeros"], name="empty"),
        helper.make_node("Add", ["zeros", "z"], ["h"], name="add"),
        helper.make_node("Concat", ["h", "nothing"], ["c"], name="concat", axis=1),
        helper.make_node("MatMul", ["c", "v"], ["y"], name="full"),
        helper.make_node("MatMul", ["nothing", "w"], ["e"], name="empty2"),
    ]
    inputs = [
        builders.value("x", "n", 0),
        builders.value("z", "n", 64),
        builders.value("nothing", "n", 0),
    ]
    outputs = [builders.value(n, "n", 64) for n in ("zeros", "y", "e")]
    held = [
        numpy_helper.from_array(np.zeros((0, 64), np.float32), "w"),
        builders.weight("v", 64, 64),
    ]
    return builders.save(builders.model(nodes, inputs, outputs, held), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "step",
    [QuantizeDynamic(), QuantizeStatic(), QuantizeStatic(op_types=("Add", "Concat", "MatMul"))],
    ids=["dynamic", "static", "static-all"],
)
def test_s20_zero_size(step, tmp_path):
    empty = np.zeros((64, 0), np.float32)
    record = run(zero_size(tmp_path), step, {"x": empty, "nothing": empty, "z": builders.samples(64, 64)})
    effect = record.passes[0].effect
    assert (effect["quantized_weights"], effect["total_weights"]) == (1, 2)
    assert "no elements" in effect["skipped"][0]["reason"]
    assert record.fidelity.outputs["zeros"].max_abs == 0
    assert record.fidelity.outputs["e"].max_abs == 0
    assert record.fidelity.outputs["y"].sqnr_db > 25


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_s21_every_batch_counts(batch_size, mlp):
    """ORT with bounded memory keeps the ranges of the last few batches only."""
    data = feeds(70)
    data["x"][3] *= 50
    model = load(mlp)
    done = optimize(model, [QuantizeStatic()], data=Batches(data, signature(model).inputs, batch_size=batch_size))
    out = save(done.model, mlp.parent)
    first = Batches({"x": data["x"][3:4]}, signature(model).inputs)
    assert compare(mlp, out, first).outputs["y"].sqnr_db > 20


def save(model, folder):
    from onnxcomp.pipeline import save as publish

    path = folder / "made.onnx"
    publish(model, path)
    return path
