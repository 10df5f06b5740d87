"""Weights in blocks of 4 and 8 bits: the numbers are checked by hand, the models on real sentences."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
import real_data
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import InvalidModelError, NoEffectError, UnsupportedError, UsageError
from onnxcomp.evaluate import evaluate
from onnxcomp.model import load, signature
from onnxcomp.passes import CastFloat, QuantizeDynamic, QuantizeWeights
from onnxcomp.passes.quantize import _nbits, weights
from onnxcomp.pipeline import optimize_file

ROWS, COLUMNS = 9, 45  # an odd number of blocks, the last one padded


def matrix(dtype=np.float32, rows=ROWS, columns=COLUMNS):
    made = np.random.default_rng(0).standard_normal((rows, columns)).astype(dtype)
    made[3] = 0  # blocks of zeros
    made[4, :16] = 2.5  # and of one number
    return made


def unpacked(packed, bits):
    """Numbers as they are stored, one byte or one half of it each."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def restored(blocks, w):
    """What the format says the stored numbers stand for."""
    rows, count = blocks.scales.shape
    numbers = unpacked(blocks.numbers(w), blocks.bits).reshape(rows, count, blocks.size).astype(np.float64)
    zeros = blocks.packed_zero_points()
    zeros = np.full((rows, count), 2 ** (blocks.bits - 1)) if zeros is None else unpacked(zeros, blocks.bits)[:, :count]
    wide = (numbers - zeros[..., np.newaxis]) * blocks.scales[..., np.newaxis].astype(np.float64)
    return wide.reshape(rows, -1)[:, : w.shape[1]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_is_further_off_than_half_a_step(bits, symmetric):
    w = matrix()
    blocks = _nbits.fit(w, bits=bits, size=16, symmetric=symmetric, search=False)
    assert blocks.scales.shape == (ROWS, 3)
    assert (blocks.zero_points is None) == symmetric
    steps = np.repeat(np.abs(blocks.scales), 16, axis=1)[:, :COLUMNS]
    # one value of a symmetric block may want +half, which is out of reach
    allowed = 1.0 if symmetric else 0.5
    assert np.all(np.abs(restored(blocks, w) - w) <= allowed * steps + 1e-6)
    assert np.all(restored(blocks, w)[3] == 0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_search_is_never_worse_in_any_block(bits, symmetric):
    w = matrix(rows=200, columns=64)
    w[:, ::7] *= 3
    errors = []
    for search in (False, True):
        blocks = _nbits.fit(w, bits=bits, size=32, symmetric=symmetric, search=search)
        errors.append(np.square(restored(blocks, w) - w).reshape(-1, 32).sum(axis=1))
    assert np.all(errors[1] <= errors[0] * 1.0001 + 1e-12)
    assert errors[1].sum() < 0.97 * errors[0].sum()


@pytest.mark.parametrize("scale", [1e-28, 1e25])
def test_very_small_and_very_large_weights_keep_their_accuracy(scale):
    w = matrix()
    factor = np.float32(scale)
    got = restored(_nbits.fit(w * factor, bits=8, size=16, symmetric=False, search=True), w * factor) / scale
    assert np.abs(got - w).max() < 0.02


def test_slices_give_what_the_whole_gives(monkeypatch):
    w = matrix(rows=100)
    whole = _nbits.fit(w, bits=4, size=16, symmetric=False, search=True)
    numbers = whole.numbers(w)
    monkeypatch.setattr(_nbits, "_SLICE", 7 * 48)
    sliced = _nbits.fit(w, bits=4, size=16, symmetric=False, search=True)
    assert np.array_equal(sliced.scales, whole.scales)
    assert np.array_equal(sliced.numbers(w), numbers)


def run(proto, tmp_path, feeds=None, **options):
    """(record, outputs before, outputs after, the model written)."""
    path = builders.save(proto, tmp_path / "m.onnx")
    record = optimize_file(path, tmp_path / "o.onnx", [QuantizeWeights(**options)], allow_larger=True)
    outputs = [runtime.open_session(tmp_path / name).run(feeds) if feeds else None for name in ("m.onnx", "o.onnx")]
    return record, *outputs, onnx.load(tmp_path / "o.onnx")


def ops(proto):
    return [node.op_type for node in proto.graph.node]


def product(op, rows, columns, *, dtype=np.float32, bias=False, **attributes):
    """x (batch, rows) times w (rows, columns), or its transpose by transB, plus c."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = (columns, rows) if attributes.get("transB") else (rows, columns)
    w = numpy_helper.from_array(builders.samples(*stored).astype(dtype), "w")
    c = [numpy_helper.from_array(builders.samples(columns, seed=2).astype(dtype), "c")] if bias else []
    return builders.model(
        [helper.make_node(op, ["x", "w", *(["c"] if bias else [])], ["y"], name="node", **attributes)],
        [builders.value("x", "batch", rows, dtype=kind)],
        [builders.value("y", "batch", columns, dtype=kind)],
        [w, *c],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("op", "bias", "attributes"),
    [("MatMul", False, {}), ("Gemm", False, {"transB": 1}), ("Gemm", True, {}), ("Gemm", True, {"transB": 1})],
)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (8, False)])
def test_products_are_those_of_the_restored_weights(op, bias, attributes, bits, symmetric, dtype, tmp_path):
    rows = 77  # no multiple of a block
    x = builders.samples(5, rows, seed=1).astype(dtype)
    proto = product(op, rows, 24, dtype=dtype, bias=bias, **attributes)
    options = {"bits": bits, "symmetric": symmetric, "block_size": 16, "accuracy_level": 0}
    record, _, got, written = run(proto, tmp_path, {"x": x}, **options)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    w = stored["w"] if attributes else np.ascontiguousarray(stored["w"].T)
    by_hand = restored(_nbits.fit(w, bits=bits, size=16, symmetric=symmetric, search=True), w)
    want = x.astype(np.float64) @ by_hand.T + (stored["c"] if bias else 0)
    assert np.abs(got["y"] - want).max() < (1e-4 if dtype == np.float32 else 0.1)
    assert ops(written) == (["MatMulNBits", "Add"] if bias else ["MatMulNBits"])
    assert record.passes[0].effect["quantized_weights"] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_looked_up_are_the_restored_rows(bits, symmetric, dtype, tmp_path):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    w = matrix(dtype, rows=30, columns=50)
    proto = builders.model(
        [helper.make_node("Gather", ["w", "ids"], ["y"], name="embed")],
        [builders.value("ids", "batch", "seq", dtype=TensorProto.INT64)],
        [builders.value("y", "batch", "seq", 50, dtype=kind)],
        [numpy_helper.from_array(w, "w")],
    )
    ids = np.array([[0, 29, -1], [3, -30, 7]])
    _, _, got, written = run(proto, tmp_path, {"ids": ids}, bits=bits, symmetric=symmetric)
    size = 64 if bits == 8 else 32  # 8 bits: one scale a row
    blocks = _nbits.fit(w, bits=bits, size=size, symmetric=symmetric, search=True)
    assert np.abs(got["y"] - restored(blocks, w)[ids]).max() < (1e-6 if dtype == np.float32 else 5e-3)
    assert ops(written) == ["GatherBlockQuantized"]
    stored = {t.name: list(t.dims) for t in written.graph.initializer}
    assert stored["w_quantized"] == [30, 50 * bits // 8]
    assert stored["w_scale"] == [30, 1 if bits == 8 else 2]


def tied(*, perm=None, back=False):
    """ids -> row of w -> times w turned -> y, and back through w itself."""
    turn = helper.make_node("Transpose", ["w"], ["t"], name="turn", **({"perm": perm} if perm else {}))
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"], name="embed"),
        turn,
        helper.make_node("MatMul", ["e", "t"], ["h"], name="head"),
    ]
    if back:
        nodes.append(helper.make_node("MatMul", ["h", "w"], ["b"], name="back"))
    return builders.model(
        nodes,
        [builders.value("ids", "batch", dtype=TensorProto.INT64)],
        [builders.value("b" if back else "h", "batch", 64)],
        [builders.weight("w", 64, 64)],
    )


@pytest.mark.parametrize("back", [False, True])
def test_a_tied_table_is_stored_once_for_each_way_of_reading_it(back, tmp_path):
    ids = {"ids": np.arange(0, 64, 5)}
    _, before, after, written = run(tied(back=back), tmp_path, ids, block_size=64)
    (want,), (got,) = before.values(), after.values()
    assert np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)
    names = [t.name for t in written.graph.initializer]
    assert len(names) == len(set(names)) == (9 if back else 6)
    assert "Transpose" not in ops(written)


def test_a_transpose_that_turns_nothing_is_not_taken_for_one_that_does(tmp_path):
    proto = tied(perm=[0, 1])
    feeds = {"ids": np.arange(4)}
    path = builders.save(proto, tmp_path / "m.onnx")
    try:
        optimize_file(path, tmp_path / "o.onnx", [QuantizeWeights()], allow_larger=True)
    except NoEffectError:
        return
    want, got = (runtime.open_session(tmp_path / n).run(feeds)["h"] for n in ("m.onnx", "o.onnx"))
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


def test_weights_in_branches(tmp_path):
    proto = builders.branch()
    inner = [a.g for a in proto.graph.node[0].attribute]
    for graph in (proto.graph, *inner):
        for tensor in graph.initializer:
            tensor.CopyFrom(builders.weight(tensor.name, 64, 64))
        for info in (*graph.input[:1], *graph.output):
            info.CopyFrom(builders.value(info.name, 2, 64))
    for flag in (True, False):
        feeds = {"x": builders.samples(2, 64), "flag": np.array(flag)}
        for file in tmp_path.iterdir():
            file.unlink()
        record, before, after, _ = run(proto, tmp_path, feeds)
        assert np.linalg.norm(after["y"] - before["y"]) < 0.02 * np.linalg.norm(before["y"])
        assert record.passes[0].effect["quantized_weights"] == 2


def reasons(record):
    return {s["node"]: s["reason"] for s in record.passes[0].effect["skipped"]}


def test_what_stays_in_float_says_why(tmp_path):
    def pair(name, **attributes):
        return helper.make_node("Gemm", ["x", name, "c"], [f"y_{name}"], name=name, **attributes)

    nodes = [
        pair("plain"),
        pair("halved", alpha=0.5),
        pair("left_out"),
        helper.make_node("MatMul", ["first", "x"], ["y_first"], name="first"),
        helper.make_node("Conv", ["image", "kernel"], ["y_kernel"], name="conv"),
        helper.make_node("Gather", ["odd", "ids"], ["y_odd"], name="odd"),
        helper.make_node("MatMul", ["x", "thin"], ["y_thin"], name="thin"),
    ]
    proto = builders.model(
        nodes,
        [
            builders.value("x", 64, 64),
            builders.value("image", 1, 4, 8, 8),
            builders.value("ids", 3, dtype=TensorProto.INT64),
        ],
        [builders.value(n.output[0], *(None for _ in range(4 if n.op_type == "Conv" else 2))) for n in nodes],
        [
            *(builders.weight(name, 64, 64) for name in ("plain", "halved", "left_out", "first")),
            builders.weight("c", 64),
            builders.weight("kernel", 8, 4, 3, 3),
            builders.weight("odd", 64, 63),
            builders.weight("thin", 64, 64),
        ],
    )
    path = builders.save(proto, tmp_path / "m.onnx")
    record = optimize_file(path, tmp_path / "o.onnx", [QuantizeWeights(bits=4, exclude=("left_out",))])
    found = reasons(record)
    assert set(found) == {"halved", "left_out", "first", "conv", "odd"}
    assert "alpha" in found["halved"]
    assert found["left_out"] == "excluded by the user"
    assert "second factor" in found["first"]
    assert "Conv is not among" in found["conv"]
    assert "odd number of columns" in found["odd"]


def test_a_shared_weight_stays_when_one_user_must(tmp_path):
    inputs = (("x", "w"), ("z", "w"), ("x", "v"))
    proto = builders.model(
        [helper.make_node("MatMul", names, [f"y{i}"], name=f"mm{i}") for i, names in enumerate(inputs)],
        [builders.value("x", 2, 64), builders.value("z", 2, 64)],
        [builders.value(f"y{i}", 2, 64) for i in range(3)],
        [builders.weight("w", 64, 64), builders.weight("v", 64, 64)],
    )
    record, *_ = run(proto, tmp_path, exclude=("mm1",))
    assert list(reasons(record)) == ["mm0"]
    assert reasons(record)["mm0"] == "mm1 uses it too, and stays in float"


def test_what_does_not_get_smaller_has_no_effect(tmp_path):
    proto = product("MatMul", 3, 5)
    with pytest.raises(NoEffectError, match="would not get smaller"):
        run(proto, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("step", [QuantizeWeights(), QuantizeDynamic()])
def test_a_quantized_model_is_refused(step, tmp_path):
    path = builders.save(builders.mlp(width=256), tmp_path / "m.onnx")
    optimize_file(path, tmp_path / "o.onnx", [step])
    with pytest.raises(UnsupportedError, match="quantized already"):
        optimize_file(tmp_path / "o.onnx", tmp_path / "p.onnx", [QuantizeWeights()])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_weights_name_tensor_and_index(value, tmp_path):
    proto = product("MatMul", 64, 32)
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[1, 2] = value
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    with pytest.raises(InvalidModelError, match="NaN or infinity") as error:
        run(proto, tmp_path)
    assert "tensor w, index (1, 2)" in error.value.where


def test_unknown_operator_types_are_errors(tmp_path):
    with pytest.raises(UsageError, match="MatMull") as error:
        run(product("MatMul", 64, 32), tmp_path, op_types=("MatMull",))
    assert "MatMul" in error.value.hint


def test_the_slow_combination_is_noted(tmp_path):
    record, *_ = run(product("MatMul", 64, 32), tmp_path, accuracy_level=0)
    assert any("slower" in note.reason for note in record.passes[0].notes)
    for file in tmp_path.iterdir():
        file.unlink()
    record, *_ = run(product("MatMul", 64, 32), tmp_path)
    assert not record.passes[0].notes


def test_large_weights_are_computed_when_written(tmp_path, monkeypatch):
    small = tmp_path / "small"
    large = tmp_path / "large"
    for folder, limit in ((small, 1 << 30), (large, 1)):
        folder.mkdir()
        monkeypatch.setattr(weights, "_LAZY_FROM", limit)
        run(builders.mlp(width=256), folder, bits=4)
    assert (small / "o.onnx").read_bytes() == (large / "o.onnx").read_bytes()


#: bits -> at least this SQNR, at most this size and drop of accuracy, on 700 real sentences
SNIPS = {8: (48, 0.30, 0.002), 4: (28, 0.19, 0.006)}


@pytest.mark.parametrize("bits", SNIPS)
def test_sentences_keep_their_intent(bits, shared, tmp_path):
    arrays, _ = real_data.samples("snips_transformer", shared)
    source = shared / "models/snips_transformer.onnx"
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        record = optimize_file(source, file, [QuantizeWeights(bits=bits)], data={"ids": arrays["ids"]}, batch_size=50)
    (fidelity,) = record.fidelity.outputs.values()
    sqnr, size, drop = SNIPS[bits]
    assert fidelity.sqnr_db > sqnr
    assert record.size_ratio < size
    assert record.passes[0].effect["skipped"] == []
    data = Batches(arrays, signature(load(source)).inputs, batch_size=50)
    score = evaluate(files[0], data, metric="accuracy", against=source)
    assert score.drop.value <= drop
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("half", [False, True])
def test_an_encoder(half, shared, tmp_path):
    data = {key: value[:20] for key, value in real_data.samples("tribuo_tinybert", shared)[0].items()}
    source = shared / "models/tribuo_tinybert.onnx"
    passes = [CastFloat()] if half else []
    record = optimize_file(source, tmp_path / "o.onnx", [*passes, QuantizeWeights()], data=data, batch_size=4)
    assert record.passes[-1].effect["quantized_weights"] > 8
    assert record.size_ratio < 0.31
    assert all(output.sqnr_db > 35 for output in record.fidelity.outputs.values())
