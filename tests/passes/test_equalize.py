"""Cross-layer equalization: the same outputs, even ranges, and no pair where there is none."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
import real_data
from onnx import helper, numpy_helper

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import InvalidModelError, NoEffectError, UsageError
from onnxcomp.evaluate import compare
from onnxcomp.model import load, signature
from onnxcomp.passes import Equalize, QuantizeStatic
from onnxcomp.passes.quantize import equalize
from onnxcomp.pipeline import optimize_file


def uneven(name, *shape, axis=0):
    """A weight whose channels along an axis differ by up to 2^12."""
    array = numpy_helper.to_array(builders.weight(name, *shape))
    factors = np.exp2(np.linspace(-8, 4, shape[axis])).astype(np.float32)
    return numpy_helper.from_array(array * factors.reshape([-1 if i == axis else 1 for i in range(len(shape))]), name)


def chain(nodes, shapes, feed, output, weights):
    """A model of nodes in a row from x to y; weights by name."""
    return builders.model(
        nodes,
        [builders.value("x", *feed)],
        [builders.value("y", *output)],
        [weights[n] if n in weights else uneven(n, *shape) for n, shape in shapes.items()],
    )


def node(op, *inputs, out, **attributes):
    return helper.make_node(op, list(inputs), [out], name=f"{op}_{out}", **attributes)


def run(proto, tmp_path, step=None, **options):
    """(effect, weights after, outputs before, outputs after)."""
    path = builders.save(proto, tmp_path / "m.onnx")
    record = optimize_file(path, tmp_path / "o.onnx", [step or Equalize()], allow_larger=True, **options)
    spec = proto.graph.input[0].type.tensor_type.shape.dim
    x = builders.samples(*(d.dim_value or 2 for d in spec), seed=9)
    outputs = [runtime.open_session(tmp_path / name).run({"x": x})["y"] for name in ("m.onnx", "o.onnx")]
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "o.onnx").graph.initializer}
    return record.passes[0], stored, *outputs


def same(before, after):
    """Whether outputs are equal but for rounding."""
    return np.abs(after - before).max() <= 2e-6 * np.abs(before).max()


def two_layers(between=("Relu",), **attributes):
    """Conv, what stands between, Conv: (2, 3, 8, 8) -> (2, 4, ...)."""
    nodes = [node("Conv", "x", "k1", "b1", out="h0", pads=[1, 1, 1, 1])]
    for i, op in enumerate(between):
        nodes.append(node(op, f"h{i}", out=f"h{i + 1}", **attributes))
    nodes.append(node("Conv", f"h{len(between)}", "k2", out="y"))
    return builders.model(
        nodes,
        [builders.value("x", 2, 3, 8, 8)],
        [builders.value("y", 2, 4, None, None)],
        [uneven("k1", 16, 3, 3, 3), builders.weight("b1", 16), builders.weight("k2", 4, 16, 1, 1)],
    )


def test_scales_are_those_of_the_paper(tmp_path):
    proto = two_layers()
    old = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    r1, r2 = np.abs(old["k1"]).max(axis=(1, 2, 3)), np.abs(old["k2"]).max(axis=(0, 2, 3))
    scale = np.sqrt(r1 * r2) / r2  # W1 divided by it, W2 times it
    record, new, before, after = run(proto, tmp_path)
    assert np.allclose(new["b1"], old["b1"] / scale, rtol=1e-6)
    assert np.allclose(new["k1"], old["k1"] / scale.reshape(-1, 1, 1, 1), rtol=1e-6)
    assert np.allclose(new["k2"], old["k2"] * scale.reshape(1, -1, 1, 1), rtol=1e-6)
    assert same(before, after)
    effect = record.effect
    assert (effect["pairs"], effect["equalized"], effect["settled"]) == (1, 1, True)
    by_hand = [np.mean(one / one.max() * two / two.max()) for one, two in ((r1, r2), (r1 / scale, r2 * scale))]
    assert np.allclose([effect["precision_before"], effect["precision_after"]], by_hand)
    assert by_hand[1] > 1.5 * by_hand[0]


def depthwise():
    nodes = [
        node("Conv", "x", "k1", "b1", out="a"),
        node("Relu", "a", out="b"),
        node("Conv", "b", "k2", "b2", out="c", group=16, pads=[1, 1, 1, 1]),
        node("LeakyRelu", "c", out="d"),
        node("Conv", "d", "k3", out="y"),
    ]
    shapes = {"k1": (16, 3, 1, 1), "b1": (16,), "k2": (16, 1, 3, 3), "b2": (16,), "k3": (5, 16, 1, 1)}
    return chain(nodes, shapes, (2, 3, 8, 8), (2, 5, 8, 8), {})


def grouped():
    """Four groups; the middle layer has twice as many outputs as inputs."""
    nodes = [
        node("Conv", "x", "k1", out="a"),
        node("Conv", "a", "k2", out="b", group=4),
        node("Relu", "b", out="c"),
        node("Conv", "c", "k3", out="y", group=2),
    ]
    return chain(nodes, {"k1": (8, 3, 1, 1), "k2": (16, 2, 3, 3), "k3": (6, 8, 1, 1)}, (2, 3, 8, 8), (2, 6, 6, 6), {})


def flattened():
    """Each channel is six inputs of the Gemm, and the bias of the Conv an Add."""
    nodes = [
        node("Conv", "x", "k", out="a"),
        node("Add", "a", "bias", out="b"),
        node("MaxPool", "b", out="c", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "c", out="d"),
        node("Gemm", "d", "w", out="y"),
    ]
    shapes = {"k": (8, 3, 1, 1), "bias": (1, 8, 1, 1), "w": (48, 5)}
    return chain(nodes, shapes, (2, 3, 4, 6), (2, 5), {"w": builders.weight("w", 48, 5)})


def turned():
    """Gemm stored both ways, then a MatMul; alpha and beta."""
    nodes = [
        node("Gemm", "x", "w1", "b1", out="a", transB=1, alpha=0.5, beta=2.0),
        node("PRelu", "a", "slope", out="b"),
        node("Gemm", "b", "w2", "b2", out="c"),
        node("Relu", "c", out="d"),
        node("MatMul", "d", "w3", out="e"),
        node("Add", "b3", "e", out="f"),
        node("Relu", "f", out="g"),
        node("MatMul", "g", "w4", out="y"),
    ]
    shapes = {
        "w1": (24, 8),
        "b1": (24,),
        "slope": (24,),
        "w2": (24, 12),
        "b2": (12,),
        "w3": (12, 10),
        "b3": (10,),
        "w4": (10, 6),
    }
    return chain(nodes, shapes, (2, 8), (2, 6), {})


def convolution_of_sound():
    nodes = [
        node("Conv", "x", "k1", out="a"),
        node("Add", "a", "bias", out="b"),
        node("Relu", "b", out="c"),
        node("Conv", "c", "k2", out="y"),
    ]
    return chain(nodes, {"k1": (8, 4, 3), "bias": (8, 1), "k2": (3, 8, 3)}, (8, 4, 20), (8, 3, 16), {})


PAIRS = {depthwise: 2, grouped: 2, flattened: 1, turned: 3, convolution_of_sound: 1}


@pytest.mark.parametrize("build", PAIRS, ids=lambda build: build.__name__)
def test_outputs_stay_the_same(build, tmp_path):
    record, _, before, after = run(build(), tmp_path)
    assert record.effect["pairs"] == record.effect["equalized"] == PAIRS[build]
    assert record.effect["settled"]
    assert same(before, after)
    with pytest.raises(NoEffectError):
        optimize_file(tmp_path / "o.onnx", tmp_path / "p.onnx", [Equalize()])


def mixed_channels():
    """Channels of a MatMul are the last axis: a pool mixes them, and a Conv counts others."""
    nodes = [
        node("MatMul", "x", "w", out="a"),
        node("MaxPool", "a", out="b", kernel_shape=[2]),
        node("Conv", "b", "k", out="y"),
    ]
    return chain(nodes, {"w": (4, 8), "k": (3, 8, 1)}, (2, 8, 4), (2, 3, 7), {})


def conv_of_a_product():
    nodes = [node("MatMul", "x", "w", out="a"), node("Relu", "a", out="b"), node("Conv", "b", "k", out="y")]
    return chain(nodes, {"w": (4, 8), "k": (3, 8, 1)}, (2, 8, 4), (2, 3, 8), {})


def product_of_a_conv():
    nodes = [node("Conv", "x", "k", out="a"), node("MatMul", "a", "w", out="y")]
    return chain(nodes, {"k": (8, 4, 1), "w": (8, 3)}, (2, 4, 8), (2, 8, 3), {})


def bias_along_the_batch():
    """(8, 1, 1) on three axes is one number for each sample, not for each channel."""
    nodes = [
        node("Conv", "x", "k1", out="a"),
        node("Add", "a", "bias", out="b"),
        node("Conv", "b", "k2", out="y"),
    ]
    return chain(nodes, {"k1": (8, 4, 3), "bias": (8, 1, 1), "k2": (3, 8, 3)}, (8, 4, 20), (8, 3, 16), {})


def two_users():
    nodes = [
        node("Conv", "x", "k1", out="a"),
        node("Conv", "a", "k2", out="b"),
        node("Add", "a", "b", out="y"),
    ]
    return chain(nodes, {"k1": (8, 3, 1, 1), "k2": (8, 8, 1, 1)}, (2, 3, 4, 4), (2, 8, 4, 4), {})


def shared_weight():
    nodes = [node("MatMul", "x", "w", out="a"), node("Relu", "a", out="b"), node("MatMul", "b", "w", out="y")]
    return chain(nodes, {"w": (8, 8)}, (2, 8), (2, 8), {})


def sigmoid():
    return two_layers(between=("Sigmoid",))


def half():
    proto = two_layers()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return proto


NONE = (
    mixed_channels, conv_of_a_product, product_of_a_conv, bias_along_the_batch,
    two_users, shared_weight, sigmoid, half,
)  # fmt: skip


@pytest.mark.parametrize("build", NONE, ids=lambda build: build.__name__)
def test_no_pair_where_channels_do_not_pass(build, tmp_path):
    with pytest.raises(NoEffectError):
        run(build(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_relu6_stands_in_the_way_with_a_note(tmp_path):
    proto = depthwise()
    proto.graph.node[1].CopyFrom(node("Clip", "a", "zero", "six", out="b"))
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.float32(n), name) for name, n in (("zero", 0.0), ("six", 6.0))
    )
    record, _, before, after = run(proto, tmp_path)
    assert [(n.node, "does not scale" in n.reason) for n in record.notes] == [("Clip_b", True)]
    assert record.effect["pairs"] == 1
    assert same(before, after)


def test_dead_channels_stay_as_they_are(tmp_path):
    proto = two_layers()
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in proto.graph.initializer}
    arrays["k1"][2] = 0
    arrays["k2"][:, 5] = 0
    arrays["k1"][7] *= np.float32(1e-20)  # says nothing but its bias
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    _, new, before, after = run(proto, tmp_path)
    kept = new["b1"] == arrays["b1"]
    assert kept[[2, 5, 7]].all()
    assert not kept.all()
    assert same(before, after)
    with pytest.raises(NoEffectError):
        optimize_file(tmp_path / "o.onnx", tmp_path / "p.onnx", [Equalize()])


def test_excluded_layers_are_left_alone(tmp_path):
    proto = depthwise()
    record, new, *_ = run(proto, tmp_path, Equalize(exclude=("Conv_a",)))
    assert record.effect["pairs"] == 1
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert np.array_equal(new["k1"], stored["k1"])
    assert not np.array_equal(new["k3"], stored["k3"])
    with pytest.raises(UsageError, match="Conv_z"):
        run(proto, tmp_path, Equalize(exclude=("Conv_z",)), force=True)


def test_nan_weights_name_tensor_and_index(tmp_path):
    proto = two_layers()
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[1, 2, 0, 1] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "k1"))
    with pytest.raises(InvalidModelError, match="NaN or infinity") as error:
        run(proto, tmp_path)
    assert "tensor k1, index (1, 2, 0, 1)" in error.value.where


@pytest.mark.parametrize("build", [turned, grouped], ids=lambda build: build.__name__)
def test_large_weights_are_computed_when_written(build, tmp_path, monkeypatch):
    files = []
    for name, limit in (("small", 1 << 30), ("large", 1)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(equalize, "_LAZY_FROM", limit)
        run(build(), tmp_path / name)
        files.append((tmp_path / name / "o.onnx").read_bytes())
    assert files[0] == files[1]


#: real models -> pairs, folded BatchNormalizations
REAL = {
    "mlperftiny_resnet8_cifar10": (3, 7),
    "ultraface_RFB_320": (35, 35),
    "yunet_n_320_320": (40, 0),
    "mlperftiny_ad_autoencoder": (9, 9),
    "silero_vad_16k_op15": (3, 0),  # inside an If
}


@pytest.mark.parametrize("name", REAL)
def test_real_models_answer_the_same(name, shared, tmp_path):
    data = {key: value[:8] for key, value in real_data.samples(name, shared)[0].items()}
    source = shared / f"models/{name}.onnx"
    for file in ("a.onnx", "b.onnx"):
        record = optimize_file(source, tmp_path / file, [Equalize()], data=data, batch_size=1, allow_larger=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    effect = record.passes[0].effect
    assert (effect["pairs"], effect["batch_normalizations_folded"]) == REAL[name]
    assert effect["equalized"] == effect["pairs"]
    assert effect["settled"]
    assert effect["precision_after"] > effect["precision_before"]
    assert all(output.max_rel < 1e-4 for output in record.fidelity.outputs.values())
    with pytest.raises(NoEffectError):
        optimize_file(tmp_path / "a.onnx", tmp_path / "c.onnx", [Equalize()])


def judged(source, passes, data, out):
    """SQNR in dB of int8 with one scale per tensor, calibrated on the first half, worst output on the second."""
    first, second = ({key: value[part] for key, value in data.items()} for part in (slice(0, 10), slice(10, None)))
    step = QuantizeStatic(per_channel=False, max_node_error=None)  # all in int8, or the worst layers are not seen
    optimize_file(source, out, [*passes, step], data=first, batch_size=4)
    spec = signature(load(source)).inputs
    return min(output.sqnr_db for output in compare(source, out, Batches(second, spec, batch_size=2)).outputs.values())


@pytest.mark.parametrize("name", ["mlperftiny_resnet8_cifar10", "yunet_n_320_320"])
def test_one_scale_per_tensor_gains(name, shared, tmp_path):
    source = shared / f"models/{name}.onnx"
    data = real_data.samples(name, shared)[0]
    plain = judged(source, [], data, tmp_path / "plain.onnx")
    assert judged(source, [Equalize()], data, tmp_path / "even.onnx") > plain + 2
