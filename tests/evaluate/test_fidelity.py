"""Fidelity of a candidate to a reference."""

from __future__ import annotations

import math

import builders
import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcomp.errors import DataError
from onnxcomp.evaluate import compare


@pytest.fixture
def pair(tmp_path):
    """(reference, candidate whose head bias is off by 0.1 in one class)."""
    reference = builders.mlp()
    candidate = builders.mlp()
    bias = numpy_helper.to_array(candidate.graph.initializer[3]).copy()
    bias[0] += 0.1
    candidate.graph.initializer[3].CopyFrom(numpy_helper.from_array(bias, "b2"))
    return builders.save(reference, tmp_path / "r.onnx"), builders.save(candidate, tmp_path / "c.onnx")


def test_figures_by_hand(pair):
    data = {"x": builders.samples(200, 16)}
    found = compare(*pair, _batches(pair[0], data))
    from onnxcomp.runtime import open_session

    r, c = (open_session(p).run(data)["y"].astype(np.float64) for p in pair)
    out = found.outputs["y"]
    assert out.sqnr_db == pytest.approx(10 * math.log10((r**2).sum() / ((r - c) ** 2).sum()), rel=1e-6)
    cosine = (r * c).sum(1) / np.linalg.norm(r, axis=1) / np.linalg.norm(c, axis=1)
    assert out.cosine_mean == pytest.approx(cosine.mean())
    assert out.cosine_p1 == pytest.approx(np.percentile(cosine, 1))
    assert out.max_abs == pytest.approx(0.1, rel=1e-4)
    assert out.max_rel == pytest.approx(np.abs(r - c).max() / np.abs(r).max())
    assert found.agreement.value == np.mean(r.argmax(1) == c.argmax(1))
    assert found.agreement.low < found.agreement.value < found.agreement.high


def test_figures_do_not_depend_on_the_batch_size(pair):
    data = {"x": builders.samples(101, 16)}
    one, other = (compare(*pair, _batches(pair[0], data, size)) for size in (1, 64))
    assert one.agreement == other.agreement
    assert one.outputs["y"].sqnr_db == pytest.approx(other.outputs["y"].sqnr_db, rel=1e-5)


def test_equal_models_are_equal(pair):
    found = compare(pair[0], pair[0], _batches(pair[0], {"x": builders.samples(10, 16)}))
    assert found.to_json()["outputs"]["y"]["sqnr_db"] is None
    assert found.outputs["y"].max_abs == 0
    assert found.agreement.value == 1
    assert found.agreement.low < 1  # ten samples prove little


def test_random_data_is_refused(pair):
    with pytest.raises(DataError, match="real data"):
        compare(*pair, "random:8")


def test_different_outputs_are_refused(pair, tmp_path):
    other = builders.save(builders.two_inputs(), tmp_path / "o.onnx")
    with pytest.raises(DataError, match="different inputs"):
        compare(pair[0], other, _batches(pair[0], {"x": builders.samples(4, 16)}))


def _batches(path, data, size=32):
    from onnxcomp.data import Batches
    from onnxcomp.runtime import open_session

    return Batches(data, open_session(path).signature.inputs, batch_size=size)


def test_an_infinite_candidate_is_no_crash(tmp_path):
    big = builders.model(
        [helper.make_node("Exp", ["x"], ["y"])], [builders.value("x", "n", 4)], [builders.value("y", "n", 4)]
    )
    small = builders.model(
        [helper.make_node("Neg", ["x"], ["y"])], [builders.value("x", "n", 4)], [builders.value("y", "n", 4)]
    )
    reference, candidate = builders.save(small, tmp_path / "r.onnx"), builders.save(big, tmp_path / "c.onnx")
    data = _batches(reference, {"x": np.full((3, 4), 200, np.float32)})
    found = compare(reference, candidate, data).outputs["y"]
    assert found.max_abs == np.inf
    assert found.sqnr_db == -np.inf
