"""Zeros where the smallest weights were."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp.errors import InvalidModelError, NoEffectError, UsageError
from onnxcomp.model import load
from onnxcomp.passes import PruneMagnitude
from onnxcomp.pipeline import optimize, optimize_file


@pytest.fixture
def path(tmp_path):
    return builders.save(builders.mlp(width=64), tmp_path / "m.onnx")


def weights_of(model):
    return {n: model.graph.initializers[n].const_value.numpy() for n in ("w1", "w2")}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93])
def test_the_smallest_go_globally(path, sparsity):
    before = weights_of(load(path))
    after = weights_of(optimize(path, [PruneMagnitude(sparsity=sparsity)]).model)
    every = np.abs(np.concatenate([w.ravel() for w in before.values()]))
    limit = np.sort(every)[int(sparsity * every.size) - 1]
    for name, old in before.items():
        np.testing.assert_array_equal(after[name], np.where(np.abs(old) > limit, old, 0))


def test_per_tensor_prunes_each(path):
    done = optimize(path, [PruneMagnitude(sparsity=0.5, scope="per_tensor")])
    for array in weights_of(done.model).values():
        assert np.mean(array == 0) == pytest.approx(0.5, abs=0.01)


def test_effect_counts_and_label(path, tmp_path):
    record = optimize_file(path, tmp_path / "o.onnx", [PruneMagnitude(sparsity=0.8)])
    effect = record.passes[0].effect
    assert effect["parameters"] == 64 * 26
    assert effect["removed_parameters"] == int(0.8 * 64 * 26)
    assert effect["label"] == "download size only"
    assert effect["download_bytes"]["after"] < 0.5 * effect["download_bytes"]["before"]
    assert record.size_ratio <= 1
    assert any("download size only" in n.reason for n in record.passes[0].notes)


def test_excluded_nodes_stay(path):
    done = optimize(path, [PruneMagnitude(exclude=("fc2",))])
    np.testing.assert_array_equal(weights_of(done.model)["w2"], weights_of(load(path))["w2"])
    assert [n.node for n in done.passes[0].notes if n.reason == "excluded"] == ["fc2"]


def test_bad_input(path, tmp_path):
    for sparsity in (0.0, 1.0, -1.0):
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
