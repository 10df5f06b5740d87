"""Bias correction: the numbers of the paper by hand, and int8 outputs whose means come back."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
import real_data
from onnx import helper, numpy_helper

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError, DataError, NoEffectError, UsageError
from onnxcomp.model import load, signature
from onnxcomp.passes import CorrectBias, QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize_file

node, value, weight = helper.make_node, builders.value, builders.weight

X = np.abs(builders.samples(64, 16)) + 1  # means far from 0


def run(proto, tmp_path, feeds=None, name="o.onnx", **options):
    """(record of the pass, tensors afterwards)."""
    path = builders.save(proto, tmp_path / "m.onnx")
    step = CorrectBias(**{"reduce_range": False, **options})
    record = optimize_file(path, tmp_path / name, [step], data={"x": X} if feeds is None else feeds, allow_larger=True)
    return record.passes[0], stored(onnx.load(tmp_path / name))


def stored(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def rounded(w, axis, top=127):
    """int8 numbers times scale, float64; `axis` of the output channels, None for one scale."""
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis % w.ndim)
    scale = np.abs(w).max(axis=others, keepdims=True).astype(np.float64) / top
    return np.rint(w / scale) * scale


def calibration(path, feeds):
    """The samples that the pipeline calibrates with."""
    batches = Batches(feeds, signature(load(path)).inputs, batch_size=32)
    first, _ = batches.split(0.8)
    return np.concatenate([batch.feeds["x"] for batch in first]).astype(np.float64)


def product(op, *, turned=False, bias=True):
    """x (n, 16) times w, (16, 24), plus b -> y."""
    held = [weight("w", 24, 16) if turned else weight("w", 16, 24), *([weight("b", 24)] if bias else [])]
    if op == "Gemm":
        nodes = [node("Gemm", ["x", "w", "b"][: len(held) + 1], ["y"], name="fc", transB=int(turned))]
    else:
        nodes = [node("MatMul", ["x", "w"], ["h"], name="fc"), node("Add", ["b", "h"], ["y"], name="add")]
    return builders.model(nodes, [value("x", "n", 16)], [value("y", "n", 24)], held)


@pytest.mark.parametrize(("op", "turned"), [("Gemm", False), ("Gemm", True), ("MatMul", False)])
@pytest.mark.parametrize(("options", "axis", "top"), [
    ({}, -1, 127),
    ({"per_channel": False}, None, 127),
    ({"reduce_range": True}, -1, 64),
])  # fmt: skip
def test_products(op, turned, options, axis, top, tmp_path):
    proto = product(op, turned=turned)
    before = stored(proto)
    record, after = run(proto, tmp_path, **options)
    w = before["w"].T if turned else before["w"]
    mean = calibration(tmp_path / "m.onnx", {"x": X}).mean(axis=0)
    change = mean @ (w - rounded(w, axis, top))
    assert np.abs(change).max() > 1e-4
    assert np.allclose(after["b"], before["b"] + change, rtol=0, atol=1e-6)
    assert np.array_equal(after["w"], before["w"])
    assert record.effect["corrected"] == record.effect["of"] == 1
    assert record.effect["layers"] == [{"node": "fc", "largest": pytest.approx(np.abs(change).max(), rel=1e-3)}]


def conv(*, groups=1, bias=True, name="k"):
    """x (n, 8, 6, 6) -> Conv of 12 kernels of 3 x 3 -> y (n, 12, 4, 4)."""
    held = [weight(name, 12, 8 // groups, 3, 3), *([weight("b", 12)] if bias else [])]
    return builders.model(
        [node("Conv", ["x", name, "b"][: len(held) + 1], ["y"], name="conv", group=groups)],
        [value("x", "n", 8, 6, 6)],
        [value("y", "n", 12, 4, 4)],
        held,
    )


def patches():
    """Channels with different means, that are the same everywhere in an image on average."""
    means = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    return {"x": builders.samples(64, 8, 6, 6) + means}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(groups, bias, tmp_path):
    proto = conv(groups=groups, bias=bias)
    before = stored(proto)
    _, after = run(proto, tmp_path, patches())
    mean = calibration(tmp_path / "m.onnx", patches()).mean(axis=(0, 2, 3))
    lost = (before["k"] - rounded(before["k"], 0)).sum(axis=(2, 3))  # (12, 8 / groups)
    per_group = 12 // groups
    change = [lost[o] @ mean.reshape(groups, -1)[o // per_group] for o in range(12)]
    name = onnx.load(tmp_path / "o.onnx").graph.node[0].input[2]
    assert np.allclose(after[name], before.get("b", 0) + np.array(change), rtol=0, atol=1e-6)
    assert np.abs(change).max() > 1e-4


def test_a_new_bias_takes_no_name_of_another(tmp_path):
    proto = conv(bias=False)
    proto.graph.node[0].output[0] = "h"
    proto.graph.node.append(node("Add", ["h", "k_bias"], ["y"], name="add"))
    proto.graph.initializer.append(weight("k_bias", 12, 1, 1))
    _, after = run(proto, tmp_path, patches())
    assert np.array_equal(after["k_bias"], stored(proto)["k_bias"])


def test_a_convolution_of_stored_numbers_is_passed_over(tmp_path):
    """Nothing to measure there: such a node is folded away later."""
    proto = conv()
    proto.graph.node.append(node("Conv", ["fixed", "k2"], ["z"], name="constant"))
    proto.graph.output.append(value("z", 1, 2, 4, 4))
    proto.graph.initializer.extend([weight("fixed", 1, 8, 6, 6), weight("k2", 2, 8, 3, 3)])
    record, _ = run(proto, tmp_path, patches())
    assert [entry["node"] for entry in record.effect["layers"]] == ["conv"]


def two(*, shared_weight=False, shared_bias=False):
    """x -> Gemm -> Gemm -> y, (n, 16) each."""
    held = [weight("w", 16, 16), weight("b", 16)]
    w, b = "w" if shared_weight else "w2", "b" if shared_bias else "b2"
    held += [] if shared_weight else [weight("w2", 16, 16)]
    held += [] if shared_bias else [weight("b2", 16)]
    nodes = [node("Gemm", ["x", "w", "b"], ["h"], name="one"), node("Gemm", ["h", w, b], ["y"], name="two")]
    return builders.model(nodes, [value("x", "n", 16)], [value("y", "n", 16)], held)


def test_a_shared_weight_is_noted_and_stays(tmp_path):
    path = builders.save(two(shared_weight=True), tmp_path / "m.onnx")
    options = {"data": {"x": X}, "allow_larger": True, "allow_no_effect": True}
    record = optimize_file(path, tmp_path / "o.onnx", [CorrectBias(reduce_range=False)], **options).passes[0]
    assert {(n.node, n.reason) for n in record.notes} == {
        (name, "not corrected: other nodes use its weight too") for name in ("one", "two")
    }
    assert record.effect["corrected"] == 0
    assert stored(onnx.load(tmp_path / "o.onnx")).keys() == {"w", "b", "b2"}


def test_a_shared_bias_stays(tmp_path):
    with pytest.raises(NoEffectError):
        run(two(shared_bias=True), tmp_path)


def test_a_product_without_bias_stays(tmp_path):
    with pytest.raises(NoEffectError):
        run(product("Gemm", bias=False), tmp_path)


def test_an_excluded_node_stays(tmp_path):
    proto = two()
    record, after = run(proto, tmp_path, exclude=("one",))
    assert [entry["node"] for entry in record.effect["layers"]] == ["two"]
    assert np.array_equal(after["b"], stored(proto)["b"])
    with pytest.raises(UsageError, match="no node or module 'on'"):
        run(proto, tmp_path, exclude=("on",), name="p.onnx")


def test_only_the_types_that_will_be_quantized(tmp_path):
    """Dynamic quantization leaves Conv in float: its mean is right as it is."""
    path = builders.save(builders.cnn(), tmp_path / "m.onnx")
    data = {"image": builders.samples(64, 3, 8, 8)}
    for types, nodes in ((("Gemm", "MatMul"), ["head"]), (("Conv",), ["conv1", "conv2"])):
        step = CorrectBias(op_types=types)
        record = optimize_file(path, tmp_path / "o.onnx", [step], data=data, allow_larger=True, force=True)
        assert [entry["node"] for entry in record.passes[0].effect["layers"]] == nodes
    with pytest.raises(UsageError, match="'Cov'"):
        optimize_file(path, tmp_path / "p.onnx", [CorrectBias(op_types=("Cov",))], data=data)


def test_an_excluded_normalization_is_still_there_for_the_quantizer(tmp_path):
    path = builders.save(builders.cnn(), tmp_path / "m.onnx")
    data = {"image": builders.samples(64, 3, 8, 8)}
    kept, folded = tmp_path / "kept.onnx", tmp_path / "folded.onnx"
    steps = [CorrectBias(exclude=("norm1",)), QuantizeStatic(exclude=("norm1",))]
    optimize_file(path, kept, steps, data=data, allow_larger=True)
    optimize_file(path, folded, [CorrectBias()], data=data, allow_larger=True)
    assert "BatchNormalization" in {n.op_type for n in onnx.load(kept).graph.node}
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(folded).graph.node}


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_data_that_is_not_finite_is_an_error(number, tmp_path):
    x = X.copy()
    x[:, 3] = number
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        run(product("Gemm"), tmp_path, {"x": x})
    assert not (tmp_path / "o.onnx").exists()


def test_without_data_or_on_noise(tmp_path):
    path = builders.save(product("Gemm"), tmp_path / "m.onnx")
    for data in (None, "random:16"):
        with pytest.raises(DataError):
            optimize_file(path, tmp_path / "o.onnx", [CorrectBias()], data=data)


def test_the_same_bytes_again(tmp_path):
    for name in ("o.onnx", "p.onnx"):
        run(two(), tmp_path, name=name)
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()


def mean_error(reference, candidate, batches):
    """Largest distance between the means of an output channel, relative to the spread of all outputs."""
    means, spread = [], 0.0
    for path in (reference, candidate):
        session = runtime.open_session(path)
        out = np.concatenate([next(iter(session.run(feeds).values())) for feeds in batches])
        means.append(out.mean(axis=0, dtype=np.float64))
        spread = spread or float(out.std())
    return np.sqrt(np.mean((means[0] - means[1]) ** 2)) / spread


@pytest.mark.parametrize("step", [QuantizeDynamic, QuantizeStatic])
def test_the_mean_of_int8_outputs_comes_back(step, tmp_path):
    """On structured data: positive features, a few directions of large variance."""
    rng = np.random.default_rng(3)
    x = np.maximum(rng.standard_normal((512, 4)) @ rng.standard_normal((4, 16)) + 1, 0).astype(np.float32)
    path = builders.save(product("Gemm"), tmp_path / "m.onnx")
    errors = []
    for name, before in (("plain.onnx", []), ("corrected.onnx", [CorrectBias(per_channel=False)])):
        steps = [*before, step(per_channel=False)]
        optimize_file(path, tmp_path / name, steps, data={"x": x}, allow_larger=True)
        errors.append(mean_error(path, tmp_path / name, [{"x": x}]))
    assert errors[1] < errors[0] / 3


def test_the_mean_of_a_real_classifier_comes_back(shared, tmp_path):
    """resnet8 on photos, one scale for each tensor, where the rounding is coarse."""
    source = shared / "models/mlperftiny_resnet8_cifar10.onnx"
    arrays, _ = real_data.samples("mlperftiny_resnet8_cifar10", shared)
    errors = []
    for name, before in (("plain.onnx", []), ("corrected.onnx", [CorrectBias(per_channel=False)])):
        steps = [*before, QuantizeStatic(per_channel=False)]
        optimize_file(source, tmp_path / name, steps, data=arrays)
        errors.append(mean_error(source, tmp_path / name, [arrays]))
    assert errors[1] < errors[0]
