"""Zeros where the smallest weights were: exactly as many as asked for."""

from __future__ import annotations

import functools

import builders
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxcomp.errors import InvalidModelError, NoEffectError, UsageError
from onnxcomp.model import load
from onnxcomp.passes import PruneMagnitude
from onnxcomp.passes.prune.zeros import smallest as ranking
from onnxcomp.passes.prune.zeros.download import LEVEL
from onnxcomp.passes.prune.zeros.smallest import smallest
from onnxcomp.pipeline import optimize, optimize_file

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.fixture
def path(tmp_path):
    return builders.save(builders.mlp(width=64), tmp_path / "m.onnx")


def weights_of(model, names=("w1", "w2")):
    return {n: model.graph.initializers[n].const_value.numpy() for n in names}


def product(array: np.ndarray, *, name: str = "w") -> onnx.ModelProto:
    """x times one stored matrix."""
    return builders.model(
        [helper.make_node("MatMul", ["x", name], ["y"], name="mm")],
        [builders.value("x", "n", array.shape[0])],
        [builders.value("y", "n", array.shape[1])],
        [numpy_helper.from_array(array.astype(np.float32), name)],
    )


def first_of_sorted(arrays, count):
    """The plain way: a stable sort of all magnitudes, the first go."""
    flat = np.concatenate([a.ravel().astype(np.float64) for a in arrays])
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0
    parts = np.split(flat, np.cumsum([a.size for a in arrays])[:-1])
    return [part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    share=st.floats(0, 1),
    steps=st.sampled_from([1, 3, 1000]),
)
def test_exactly_the_first_of_the_smallest(seed, sizes, share, steps):
    """Ties within and across tensors, mixed types, chunks smaller than a tensor, both signs of zero."""
    generator = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_CHUNK", 7)
        arrays = [
            (generator.integers(-steps, steps + 1, (n, 2)) / 8).astype(FLOATS[generator.integers(len(FLOATS))])
            for n in sizes
        ]
        count = round(share * sum(a.size for a in arrays))
        cuts = smallest([functools.partial(np.asarray, a) for a in arrays], count)
        for cut, array, expected in zip(cuts, arrays, first_of_sorted(arrays, count), strict=True):
            found = cut.zeroed(array)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found.astype(np.float64), expected)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93])
def test_the_smallest_go_globally(path, sparsity):
    before = weights_of(load(path))
    after = weights_of(optimize(path, [PruneMagnitude(sparsity=sparsity)]).model)
    expected = first_of_sorted(list(before.values()), round(sparsity * 64 * 26))
    for found, wanted in zip(after.values(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_per_tensor_prunes_each(path):
    done = optimize(path, [PruneMagnitude(sparsity=0.3, scope="per_tensor")])
    for array in weights_of(done.model).values():
        assert array.size - np.count_nonzero(array) == round(0.3 * array.size)


def test_equal_magnitudes_fall_one_by_one(tmp_path):
    source = builders.save(product(np.full((4, 6), -0.5)), tmp_path / "m.onnx")
    done = optimize(source, [PruneMagnitude(sparsity=0.4)])
    flat = weights_of(done.model, ("w",))["w"].ravel()
    np.testing.assert_array_equal(flat, [0] * 10 + [-0.5] * 14)


def test_zeros_that_are_there_count(tmp_path):
    array = np.concatenate([np.zeros((6, 4)), np.arange(1, 25).reshape(6, 4)])
    source = builders.save(product(array), tmp_path / "m.onnx")
    done = optimize(source, [PruneMagnitude(sparsity=0.75)])
    assert done.passes[0].effect["removed_parameters"] == 12
    assert done.passes[0].effect["sparsity"] == 0.75
    with pytest.raises(NoEffectError):
        optimize(source, [PruneMagnitude(sparsity=0.5)])


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
def test_other_floats(path, dtype):
    model = load(path)
    value = model.graph.initializers["w1"]
    narrow = value.const_value.numpy().astype(dtype.numpy())
    value.const_value = ir.Tensor(narrow, name="w1", dtype=dtype)
    after = weights_of(optimize(model, [PruneMagnitude(sparsity=0.7)]).model)
    assert after["w1"].dtype == dtype.numpy()
    arrays = [narrow, model.graph.initializers["w2"].const_value.numpy()]
    for found, wanted in zip(after.values(), first_of_sorted(arrays, round(0.7 * 64 * 26)), strict=True):
        np.testing.assert_array_equal(found.astype(np.float64), wanted)


def test_effect_counts_and_label(path, tmp_path):
    record = optimize_file(path, tmp_path / "o.onnx", [PruneMagnitude(sparsity=0.8)])
    effect = record.passes[0].effect
    assert effect["parameters"] == 64 * 26
    assert effect["removed_parameters"] == round(0.8 * 64 * 26)
    assert effect["label"] == "download size only"
    after = effect["download_bytes"]["after"]
    assert after < 0.5 * effect["download_bytes"]["before"]
    assert effect["download_ratio"] == after / (4 * 64 * 26)
    held = b"".join(w.tobytes() for w in weights_of(load(tmp_path / "o.onnx")).values())
    assert after == pytest.approx(len(zstandard.compress(held, LEVEL)), rel=0.02)
    assert record.size_ratio <= 1
    assert any("download size only" in n.reason for n in record.passes[0].notes)


def test_a_large_weight_is_zeroed_when_it_is_read(tmp_path):
    array = np.random.default_rng(0).standard_normal((1024, 300)).astype(np.float32)
    source = builders.save(product(array), tmp_path / "m.onnx")
    done = optimize(source, [PruneMagnitude(sparsity=0.5)])
    assert isinstance(done.model.graph.initializers["w"].const_value, ir.LazyTensor)
    record = optimize_file(source, tmp_path / "o.onnx", [PruneMagnitude(sparsity=0.5)])
    found = weights_of(load(tmp_path / "o.onnx"), ("w",))["w"]
    assert found.size - np.count_nonzero(found) == 1024 * 150 == record.passes[0].effect["removed_parameters"]
    assert not onnx.load(tmp_path / "o.onnx").graph.sparse_initializer


def test_excluded_nodes_stay(path):
    done = optimize(path, [PruneMagnitude(exclude=("fc2",))])
    np.testing.assert_array_equal(weights_of(done.model)["w2"], weights_of(load(path))["w2"])
    assert [n.node for n in done.passes[0].notes if n.reason == "excluded"] == ["fc2"]


def test_a_weight_of_an_excluded_node_stays_where_another_uses_it_first(tmp_path):
    proto = product(np.arange(16).reshape(4, 4))
    proto.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"], name="again"))
    proto.graph.output[0].CopyFrom(builders.value("z", "n", 4))
    with pytest.raises(NoEffectError, match="no float weights"):
        optimize(builders.save(proto, tmp_path / "m.onnx"), [PruneMagnitude(exclude=("again",))])


def test_bad_input(path, tmp_path):
    for sparsity in (0.0, 1.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="sparsity"):
            optimize(path, [PruneMagnitude(sparsity=sparsity)])
    with pytest.raises(UsageError, match="fc3") as error:
        optimize(path, [PruneMagnitude(exclude=("fc3",))])
    assert "fc" in error.value.hint
    with pytest.raises(NoEffectError, match="no float weights"):
        optimize(builders.save(builders.relu(), tmp_path / "r.onnx"), [PruneMagnitude()])
    broken = builders.mlp()
    array = numpy_helper.to_array(broken.graph.initializer[0]).copy()
    array[3, 4] = np.nan
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w1"))
    with pytest.raises(InvalidModelError, match="NaN") as broken_error:
        optimize(builders.save(broken, tmp_path / "b.onnx"), [PruneMagnitude()])
    assert "w1" in broken_error.value.where
