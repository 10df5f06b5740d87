"""Weights ranked with what they meet in the data (Wanda), against the plain way to compute it."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import real_data
from block_graphs import parsed
from test_patterns import one

from onnxcomp.data import Batches
from onnxcomp.errors import DataError, NoEffectError, UsageError
from onnxcomp.evaluate import compare, evaluate
from onnxcomp.model import load, signature
from onnxcomp.passes import PruneMagnitude
from onnxcomp.pipeline import optimize, optimize_file

GENERATOR = np.random.default_rng(3)


def pruned(path, arrays, **options):
    """(weights by name, effect, notes)."""
    data = Batches(arrays, signature(load(path)).inputs, batch_size=4)
    done = optimize(path, [PruneMagnitude(score="activation", **options)], data=data)
    stored = {n: v.const_value.numpy() for n, v in done.model.graph.initializers.items()}
    return stored, done.passes[0].effect, [note.reason for note in done.passes[0].notes]


def uneven(*shape, axis):
    """Activations whose channels differ in size."""
    factors = np.exp(np.linspace(-2, 2, shape[axis])).reshape(
        [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    )
    return (GENERATOR.standard_normal(shape) * GENERATOR.permuted(factors, axis=axis)).astype(np.float32)


CASES = {
    "MatMul": (one("MatMul", 8, 6), (12, 8), -1, 0),
    "Gemm transB": (one("Gemm", 6, 8, transB=1), (12, 8), -1, 1),
    "Gemm transA": (one("Gemm", 12, 6, transA=1), (12, 8), 0, 0),
    "weight first": (one("MatMul", 6, 12, weight_first=True), (12, 5), 0, 1),
    "weight first, transB": (one("Gemm", 6, 8, weight_first=True, transB=1), (12, 8), 1, 1),
    "Conv": (one("Conv", 6, 8, 3, 3, rank=4), (12, 8, 5, 5), 1, 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_scores(name, pattern, tmp_path):
    proto, shape, channel, axis = CASES[name]
    path = builders.save(proto, tmp_path / "m.onnx")
    x = uneven(*shape, axis=channel)
    data = {"x": x if name not in ("Gemm transA", "weight first", "weight first, transB") else x[np.newaxis]}
    options = {"sparsity": 0.5} if pattern is None else {"pattern": pattern}
    found, effect, _ = pruned(path, data, **options)
    weight = load(path).graph.initializers["w"].const_value.numpy()
    others = tuple(i for i in range(x.ndim) if i != channel % x.ndim)
    rms = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=others))
    score = np.moveaxis(np.moveaxis(np.abs(weight), axis, -1) * rms, -1, axis)
    if pattern is None and name == "Conv":
        rows, out = score.reshape(6, -1), found["w"].reshape(6, -1)
    else:
        rows, out = (np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in (score, found["w"]))
    if pattern is not None:
        rows, out = rows.reshape(-1, 4), out.reshape(-1, 4)
    ranks = np.argsort(np.argsort(rows, axis=1), axis=1)
    np.testing.assert_array_equal(out == 0, ranks < rows.shape[1] // 2)
    assert effect["sparsity"] == 0.5


def test_half_precision_and_large_factors(tmp_path):
    """Products beyond float16, and one channel that is silent: its weights go first."""
    proto = parsed(
        """(float[N,8] x) => (float[N,4] y) {
            c = Cast <to=10> (x)
            m = MatMul (c, w)
            y = Cast <to=1> (m)
        }"""
    )
    proto.graph.initializer.append(builders.numpy_helper.from_array(np.full((8, 4), 4, np.float16), "w"))
    x = np.ones((12, 8), np.float32) * np.array([30000, 1, 1, 0, 1, 1, 1, 30000], np.float32)
    found, _, _ = pruned(builders.save(proto, tmp_path / "m.onnx"), {"x": x}, sparsity=0.125)
    assert found["w"].dtype == np.float16
    assert np.flatnonzero((found["w"] == 0).all(1)).tolist() == [3]
    assert np.count_nonzero(found["w"]) == 28


def test_what_is_not_observed_stays_whole(tmp_path):
    path = builders.save(builders.encoder(), tmp_path / "m.onnx")
    ids = {"ids": GENERATOR.integers(0, 50, (12, 5))}
    found, effect, notes = pruned(path, ids, sparsity=0.25)
    assert np.count_nonzero(found["table"]) == 800
    assert effect["parameters"] == 2 * 16 * 32
    assert effect["removed_parameters"] == 32 * 4 + 16 * 8
    assert sum("not observed" in reason for reason in notes) == 1
    deep = builders.save(one("Conv", 8, 1, 3, 3, rank=4, group=8), tmp_path / "d.onnx")
    with pytest.raises(NoEffectError, match="no float weights"):
        pruned(deep, {"x": builders.samples(8, 8, 4, 4)})


def test_options(tmp_path):
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="needs data"):
        optimize(path, [PruneMagnitude(score="activation")])
    with pytest.raises(UsageError, match="no scope"):
        pruned(path, {"x": builders.samples(8, 16)}, scope="per_tensor")
    noise = Batches("random:8", signature(load(path)).inputs)
    with pytest.raises(DataError, match="real data"):
        optimize(path, [PruneMagnitude(score="activation")], data=noise)


def test_samples_calibrate_only_where_they_rank(tmp_path):
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    for score, count in (("magnitude", 0), ("activation", 16)):
        step = PruneMagnitude(score=score)
        record = optimize_file(path, tmp_path / f"{score}.onnx", [step], data={"x": builders.samples(20, 16)})
        assert record.data["calibration"] == count


def test_half_the_weights(tmp_path):
    """Channels of uneven size, as transformers have them: half the weights by score do far less harm."""
    proto = parsed(
        "(float[N,64] x) => (float[N,64] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }",
        w=(64, 64),
        v=(64, 64),
    )
    path = builders.save(proto, tmp_path / "m.onnx")
    arrays = {"x": uneven(200, 64, axis=1)}
    cosines = {}
    for score in ("magnitude", "activation"):
        out = tmp_path / f"{score}.onnx"
        optimize_file(path, out, [PruneMagnitude(score=score)], data=arrays)
        batches = Batches(arrays, signature(load(path)).inputs)
        cosines[score] = compare(path, out, batches).outputs["y"].cosine_mean
    assert cosines["activation"] > cosines["magnitude"] + 0.02


def test_snips(shared, tmp_path):
    """98.43 % with all weights: with half of those in products at zero, by any ranking, hardly less."""
    source = shared / "models/snips_transformer.onnx"
    judge = Batches(real_data.samples("snips_transformer", shared)[0], signature(load(source)).inputs)
    calibration = real_data.snips_calibration(shared / "data")
    for options in ({"sparsity": 0.5}, {"pattern": "2:4"}):
        out = tmp_path / f"{len(options)}{next(iter(options))}.onnx"
        record = optimize_file(source, out, [PruneMagnitude(score="activation", **options)], data=calibration)
        effect = record.passes[0].effect
        assert effect["parameters"] == 263040
        assert effect["sparsity"] == 0.5
        assert effect["download_ratio"] < 0.56
        assert evaluate(out, judge).value.value >= 0.983
