"""Calibration: which tensors are observed for what, and the same int8 file as if all were."""

from __future__ import annotations

import builders
import onnx_ir as ir
import pytest
from onnx import helper

from onnxcomp.activations import Histogram
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError
from onnxcomp.model import load, signature
from onnxcomp.passes.base import temporary_context
from onnxcomp.passes.quantize import QuantizeStatic, calibrate

OP_TYPES = ("Clip", "Conv", "Gemm", "MatMul", "Relu")


@pytest.fixture
def observed(monkeypatch):
    """A dictionary that gets {tensor: whether a histogram was wanted of it}."""
    seen: dict[str, bool] = {}
    plain = calibrate.observe

    def observe(model, data, wanted, **options):
        seen.update({name: any(isinstance(s, Histogram) for s in held) for name, held in wanted.items()})
        plain(model, data, wanted, **options)

    monkeypatch.setattr(calibrate, "observe", observe)
    return seen


def measured(nodes, tmp_path, *, excluded=(), outputs=("y",), x=None):
    """Ranges of a chain on x (batch, 4, 6, 6) with the 4 x 4 kernels k1 and k2."""
    proto = builders.model(
        nodes,
        [builders.value("x", "batch", 4, 6, 6)],
        [builders.value(name, "batch", 4, 6, 6) for name in outputs],
        [builders.weight("k1", 4, 4, 1, 1), builders.weight("k2", 4, 4, 1, 1, seed=1)],
    )
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    x = builders.samples(40, 4, 6, 6) if x is None else x
    with temporary_context(Batches({"x": x}, signature(model).inputs)) as context:
        return calibrate.measure(model, OP_TYPES, context.data, context, "percentile", excluded=excluded)


def conv(reads, gives, kernel):
    return helper.make_node("Conv", [reads, kernel], [gives], name=gives)


def relu(reads, gives):
    return helper.make_node("Relu", [reads], [gives], name=gives)


def test_what_only_a_relu_reads_has_the_range_of_its_output(tmp_path, observed):
    found = measured([conv("x", "c", "k1"), relu("c", "r"), conv("r", "y", "k2")], tmp_path)
    assert observed == {"x": True, "r": True, "y": True}
    assert found["c"] == found["r"]
    assert found["r"][0] == 0


def test_a_chain_ends_in_the_last_one(tmp_path, observed):
    nodes = [conv("x", "c", "k1"), relu("c", "r"), relu("r", "y")]
    found = measured(nodes, tmp_path)
    assert observed == {"x": True, "y": True}
    assert found["c"] == found["r"] == found["y"]


@pytest.mark.parametrize("excluded", [(), ("r",)])
def test_what_others_read_too_is_measured(tmp_path, observed, excluded):
    """A second reader, or a Relu that stays in float."""
    nodes = [conv("x", "c", "k1"), relu("c", "r"), conv("r", "a", "k2")]
    nodes += [] if excluded else [helper.make_node("Add", ["a", "c"], ["y"])]
    found = measured(nodes, tmp_path, excluded=excluded, outputs=["a" if excluded else "y"])
    assert observed == {"x": True, "c": True, "r": True, "a": True}
    assert found["c"][0] < 0 == found["r"][0]


def test_a_float_output_has_no_histogram(tmp_path, observed):
    """MatMul gives float32 where no int8 kernel reads it; what a Conv reads is rounded whatever made it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        relu("m", "r"),
        conv("r", "c", "k1"),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    proto = builders.model(
        nodes,
        [builders.value("x", "batch", 4, 6, 6)],
        [builders.value("y", "batch", 4, 6, 6)],
        [builders.weight("k1", 4, 4, 1, 1), builders.weight("w", 6, 6)],
    )
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    data = Batches({"x": builders.samples(40, 4, 6, 6)}, signature(model).inputs)
    with temporary_context(data) as context:
        found = calibrate.measure(model, OP_TYPES, data, context, "percentile")
    assert observed == {"x": True, "r": True, "c": True, "y": False}
    assert set(found) == {"x", "m", "r", "c", "y"}


def test_a_wild_sample_counts_where_it_passes_the_relu(tmp_path):
    x = builders.samples(40, 4, 6, 6)
    x[7] *= 1e12
    with pytest.raises(CalibrationError, match="sample 7, tensor"):
        measured([conv("x", "c", "k1"), relu("c", "y")], tmp_path, x=x)


@pytest.mark.parametrize(
    ("name", "calibration"),
    [
        ("mlperftiny_resnet8_cifar10", "percentile"),
        ("mlperftiny_resnet8_cifar10", "entropy"),
        ("mlperftiny_resnet8_cifar10", "mse"),
        ("ultraface_RFB_320", "minmax"),
    ],
)
def test_the_file_is_that_of_all_tensors_observed(shared, monkeypatch, name, calibration):
    from real_data import samples

    arrays, _ = samples(name, shared)
    arrays.pop("labels", None)
    step = QuantizeStatic(calibration=calibration)
    made = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(calibrate, "_followed", lambda *_: {})
            monkeypatch.setattr(
                calibrate, "_tensors", lambda nodes, plain=calibrate._tensors: dict.fromkeys(plain(nodes), True)
            )
        model = load(shared / f"models/{name}.onnx")
        data = Batches(arrays, signature(model).inputs).take(32)
        with temporary_context(data) as context:
            step.apply(model, context)
        made.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]
