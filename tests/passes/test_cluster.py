"""`cluster-weights`: codebooks, codes in bytes, what ORT makes of them, codes chosen on data, what is refused."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import real_data
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data import Batches
from onnxcomp.errors import DataError, InvalidModelError, NoEffectError, OnnxcompError, UsageError
from onnxcomp.evaluate import evaluate
from onnxcomp.inspect import inspect
from onnxcomp.model import load, signature
from onnxcomp.passes import ClusterWeights
from onnxcomp.passes.share import codebook
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.runtime import check_loads


def clustered(proto: onnx.ModelProto, **options):
    """(effect, model, notes)."""
    done = optimize(ir.from_proto(proto), [ClusterWeights(**options)])
    return done.passes[0].effect, done.model, [note.reason for note in done.passes[0].notes]


def run(model: onnx.ModelProto | ir.Model, **feeds: np.ndarray) -> np.ndarray:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def weight(model: ir.Model, node: str, index: int) -> np.ndarray:
    """What ORT computes as an input of a node."""
    proto = ir.to_proto(model)
    (found,) = (n for n in proto.graph.node if n.name == node)
    proto.graph.output.append(helper.make_empty_tensor_value_info(found.input[index]))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([found.input[index]], {spec.name: zeros(spec) for spec in session.get_inputs()})[0]


def zeros(spec) -> np.ndarray:
    shape = [d if isinstance(d, int) else 2 for d in spec.shape]
    return np.zeros(shape, {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": bool}[spec.type])


def test_a_codebook_is_the_best():
    """Against all ways of cutting few numbers into three intervals, with weights."""
    generator = np.random.default_rng(3)
    numbers, costs = np.sort(generator.standard_normal(40)), generator.random(40) + 0.1

    def error(part: slice) -> float:
        mean = np.average(numbers[part], weights=costs[part])
        return float((costs[part] * (numbers[part] - mean) ** 2).sum())

    best = min(
        error(slice(0, i)) + error(slice(i, j)) + error(slice(j, 40)) for i in range(1, 39) for j in range(i + 1, 40)
    )
    book = codebook.fit(lambda: [(numbers[:25], costs[:25]), (numbers[25:], costs[25:])], 3)
    places = codebook.nearest(book, numbers)
    assert (costs * (numbers - book[places]) ** 2).sum() == pytest.approx(best, rel=0.02)
    assert np.array_equal(np.abs(numbers[:, np.newaxis] - book).argmin(1), places)


def test_tails_are_served():
    """Lloyd's steps from quantiles leave far more on numbers with outliers."""
    numbers = np.random.default_rng(0).standard_t(4, 50_000)
    book = codebook.fit(lambda: [(numbers, np.ones_like(numbers))], 64)
    other = np.quantile(numbers, (np.arange(64) + 0.5) / 64)
    for _ in range(12):
        places = codebook.nearest(other, numbers)
        other = np.bincount(places, numbers, 64) / np.maximum(np.bincount(places, minlength=64), 1)
    errors = [np.square(numbers - b[codebook.nearest(b, numbers)]).mean() for b in (book, other)]
    assert errors[0] < 0.4 * errors[1]


@pytest.mark.parametrize("numbers", [np.zeros(9), np.full(5, -3.5), np.array([1.0, 2.0]), np.array([0, 1e-38, 3e38])])
def test_few_numbers_stay_what_they_are(numbers):
    book = codebook.fit(lambda: [(numbers, np.ones_like(numbers))], 16)
    np.testing.assert_allclose(book[codebook.nearest(book, numbers)], numbers, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("group_size", [None, 100])
@pytest.mark.parametrize("bits", range(2, 9))
def test_ort_computes_what_was_meant(bits, group_size):
    """Outputs that do not fill bytes, groups that do not fill up; the error is that which the record states."""
    proto = builders.mlp(width=251)
    effect, model, _ = clustered(proto, bits=bits, group_size=group_size, exclude=("fc2",))
    before = numpy_helper.to_array(proto.graph.initializer[0])
    after = weight(model, "fc1", 1)
    assert after.shape == before.shape
    found = np.square(after - before).sum() / np.square(before).sum()
    assert found == pytest.approx(effect["relative_error"], rel=1e-3)
    assert found < 2 * 4.0 ** -(bits - 1)
    ratios = after / np.sqrt(np.square(before).mean(1, keepdims=True))
    assert 1 + (np.diff(np.sort(ratios[:100].reshape(-1))) > 2e-5).sum() <= 2**bits


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_the_file_holds_so_many_bits(bits, tmp_path):
    source = builders.save(builders.mlp(width=4096), tmp_path / "in.onnx")
    record = optimize_file(source, tmp_path / "out.onnx", [ClusterWeights(bits=bits)])
    sizes = record.passes[0].effect["weight_bytes"]
    biases = 4 * (4096 + 10)
    assert record.output.bytes - biases == pytest.approx(sizes["after"], abs=2000)
    # a scale for each of 4,096 outputs with 16 inputs takes 2 bits a weight, for each of 10 nothing
    assert sizes["after"] * 8 == pytest.approx(sizes["before"] / 4 * bits + 8 * 4 * 4106, rel=0.12)


def test_any_model_runs(tmp_path):
    x = builders.samples(4, 3, 8, 8)
    effect, model, notes = clustered(builders.cnn(), bits=8)
    assert (effect["clustered"], effect["of"]) == (1, 3)
    assert {one["node"] for one in effect["refused"]} == {"conv1", "head"}
    assert {one["reason"] for one in effect["refused"]} == {"it would not get smaller"}
    assert effect["label"] == "download size only"
    assert any("more memory" in note for note in notes)
    np.testing.assert_allclose(run(model, image=x), run(builders.cnn(), image=x), atol=0.02)
    ids = np.arange(20).reshape(4, 5)
    _, model, _ = clustered(builders.encoder(), bits=8)
    np.testing.assert_allclose(run(model, ids=ids), run(builders.encoder(), ids=ids), atol=0.03)


def wide_branch(width: int = 64) -> onnx.ModelProto:
    """`builders.branch` with weights worth clustering."""
    proto = builders.branch()
    other = next(a for a in proto.graph.node[0].attribute if a.name == "else_branch").g
    for tensor in (proto.graph.initializer[0], other.initializer[0]):
        tensor.CopyFrom(builders.weight(tensor.name, width, width))
    for face in (*proto.graph.input[:1], *proto.graph.output):
        face.type.tensor_type.shape.dim[1].dim_value = width
    for attribute in proto.graph.node[0].attribute:
        attribute.g.output[0].type.tensor_type.shape.dim[1].dim_value = width
    return proto


def test_subgraphs_and_constant_nodes():
    proto = wide_branch()
    constant = helper.make_node("Constant", [], ["outer"], value=proto.graph.initializer[0])
    proto.graph.node.insert(0, constant)
    del proto.graph.initializer[:]
    effect, model, _ = clustered(proto, bits=8)
    assert effect["clustered"] == 2
    x = builders.samples(2, 64)
    for flag in (np.array(True), np.array(False)):
        np.testing.assert_allclose(run(model, x=x, flag=flag), run(proto, x=x, flag=flag), atol=0.1)


def test_constant_nodes_come_first():
    proto = builders.mlp(width=256)
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    nodes = [*constants, *proto.graph.node]
    model = builders.model(nodes, list(proto.graph.input), list(proto.graph.output))
    effect, made, _ = clustered(model, bits=8)
    assert effect["clustered"] == 2
    x = builders.samples(4, 16)
    np.testing.assert_allclose(run(made, x=x), run(proto, x=x), atol=0.1)


def test_an_old_model_is_raised():
    proto = builders.as_old(builders.mlp(width=64, opset=9))
    effect, model, notes = clustered(proto, bits=8)
    assert effect["clustered"] == 1
    assert model.opset_imports[""] == 11
    assert any("opset raised to 11" in note for note in notes)
    x = builders.samples(4, 16)
    np.testing.assert_allclose(run(model, x=x), run(proto, x=x), atol=0.02)


def test_float16_stays_float16():
    w = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    faces = [[builders.value(n, "n", s, dtype=TensorProto.FLOAT16)] for n, s in (("x", 64), ("y", 96))]
    proto = builders.model([node], *faces, [numpy_helper.from_array(w, "w")])
    effect, model, _ = clustered(proto, bits=6)
    assert effect["weight_bytes"]["before"] == w.nbytes
    x = builders.samples(3, 64).astype(np.float16)
    assert run(model, x=x).dtype == np.float16
    np.testing.assert_allclose(run(model, x=x), run(proto, x=x), atol=1)


def test_what_is_refused(tmp_path):
    source = ir.from_proto(builders.mlp(width=64))
    for options, where in (({"bits": 9}, "bits"), ({"bits": 1}, "bits"), ({"group_size": 0}, "group_size")):
        with pytest.raises(UsageError) as caught:
            optimize(source, [ClusterWeights(**options)])
        assert where in str(caught.value.where)
    with pytest.raises(UsageError, match="no node or module"):
        optimize(source, [ClusterWeights(exclude=("fc9",))])
    with pytest.raises(NoEffectError):
        optimize(source, [ClusterWeights(exclude=("fc1", "fc2"))])
    with pytest.raises(NoEffectError):
        clustered(builders.relu())
    proto = builders.mlp(width=64)
    numpy_broken = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    numpy_broken[3, 3] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(numpy_broken, "w1"))
    with pytest.raises(InvalidModelError, match="NaN"):
        clustered(proto)
    proto = wide_branch()
    proto.graph.input.append(builders.value("outer", 64, 64))
    effect, _, _ = clustered(proto)
    assert {one["reason"] for one in effect["refused"]} == {"a caller may override it"}


def test_random_data_cannot_choose(tmp_path):
    source = builders.save(builders.mlp(width=64), tmp_path / "m.onnx")
    with pytest.raises(DataError):
        optimize_file(source, tmp_path / "o.onnx", [ClusterWeights()], data="random:20")
    assert not (tmp_path / "o.onnx").exists()


def correlated(count: int, seed: int) -> np.ndarray:
    """16 inputs made of five."""
    mix = np.random.default_rng(5).standard_normal((5, 16))
    return (np.random.default_rng(seed).standard_normal((count, 5)) @ mix).astype(np.float32)


@pytest.mark.parametrize("group_size", [None, 8])
def test_data_chooses_better_codes(group_size):
    proto = builders.mlp(width=64)
    model = ir.from_proto(proto)
    data = Batches({"x": correlated(200, 1)}, signature(model).inputs)
    x = correlated(100, 2)
    want = run(proto, x=x)
    errors = []
    for given in (None, data):
        done = optimize(model, [ClusterWeights(bits=3, group_size=group_size, exclude=("fc2",))], data=given)
        errors.append(np.square(run(done.model, x=x) - want).mean())
    assert errors[1] < 0.5 * errors[0]
    chosen = done.passes[0].effect["on_data"]
    assert (chosen["weights"], chosen["of"]) == (1, 1)
    assert chosen["output_error"]["chosen"] < 0.5 * chosen["output_error"]["nearest"]


def test_the_same_bytes_from_external_data_too(tmp_path):
    proto = builders.cnn()
    folder = tmp_path / "in"
    folder.mkdir()
    sources = [builders.save(proto, tmp_path / "m.onnx"), builders.externalize(proto, folder)]
    data = {"image": builders.samples(12, 3, 8, 8)}
    outs = []
    for i, source in enumerate((*sources, sources[0])):
        outs.append(tmp_path / f"{i}.onnx")
        optimize_file(source, outs[-1], [ClusterWeights()], data=data)
        check_loads(outs[-1])
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()


def test_an_intent_transformer(shared, tmp_path):
    """4 bits chosen on 400 calibration sentences keep the accuracy on others."""
    source, arrays = shared / "models" / "snips_transformer.onnx", real_data.samples("snips_transformer", shared)[0]
    calibration = {key: value[:400] for key, value in real_data.snips_calibration(shared / "data").items()}
    record = optimize_file(source, tmp_path / "o.onnx", [ClusterWeights(bits=4)], data=calibration)
    effect = record.passes[0].effect
    assert record.size_ratio < 0.16
    assert effect["on_data"]["output_error"]["chosen"] < 0.5 * effect["on_data"]["output_error"]["nearest"]
    np.savez(tmp_path / "eval.npz", **arrays)
    score = evaluate(tmp_path / "o.onnx", tmp_path / "eval.npz", metric="accuracy", against=source)
    assert score.drop is not None
    assert score.drop.value <= 0.01


@pytest.mark.parametrize(
    "name", ["mlperftiny_resnet8_cifar10", "dtln_model_1", "tribuo_tinybert", "silero_vad_16k_op15"]
)
def test_real_models(name, shared, tmp_path):
    arrays = {key: value[:20] for key, value in real_data.samples(name, shared)[0].items() if key != "labels"}
    source = shared / "models" / f"{name}.onnx"
    try:
        record = optimize_file(source, tmp_path / "o.onnx", [ClusterWeights(bits=8)], data=arrays, batch_size=4)
    except OnnxcompError as error:
        pytest.fail(f"{type(error).__name__}: {error}")
    assert record.size_ratio < 0.75
    assert record.fidelity is not None
    assert min(out.cosine_mean for out in record.fidelity.outputs.values()) > 0.99
    assert inspect(tmp_path / "o.onnx").contents.initializer_bytes < inspect(source).contents.initializer_bytes
    with pytest.raises(OnnxcompError):
        optimize(load(tmp_path / "o.onnx"), [ClusterWeights(bits=8)])
