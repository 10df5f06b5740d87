"""Nearest neighbours that embeddings keep."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcomp.evaluate import compare, neighbours
from onnxcomp.evaluate.neighbours import Neighbours, nearest


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def circle(*degrees):
    angles = np.radians(degrees)
    return np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)


def kept(reference, candidate, size=3):
    found = Neighbours()
    for low in range(0, len(reference), size):
        part = reference[low : low + size]
        found.add(part, candidate[low : low + size], len(part))
    return found.kept()


def test_the_nearest_by_hand():
    assert nearest(circle(0, 10, 100, 130, 170)).tolist() == [1, 0, 3, 2, 3]
    assert nearest(5 * circle(0, 10, 100)).tolist() == [1, 0, 1]


def test_blocks_do_not_show(monkeypatch):
    rows = unit(np.random.default_rng(0).normal(size=(50, 8)))
    whole = nearest(rows)
    near = rows @ rows.T
    np.fill_diagonal(near, -2)
    np.testing.assert_array_equal(whole, near.argmax(1))
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    np.testing.assert_array_equal(nearest(rows), whole)


def test_rows_without_a_direction_are_near_to_none():
    rows = circle(0, 10, 100, 5)
    rows[3] = np.nan
    assert nearest(rows).tolist() == [1, 0, 1, -1]
    rows[3] = 0
    assert nearest(rows).tolist() == [1, 0, 1, -1]


def test_the_share_that_stays():
    reference = circle(0, 10, 100, 130, 170)
    found = kept(reference, circle(0, 10, 100, 150, 170))  # 130 moves: its nearest and that of 100 change or stay
    assert found.value == pytest.approx(4 / 5)  # 150 now has 170 for its nearest; 100 still has 150
    assert kept(reference, reference).value == 1
    assert found.low < found.value < found.high
    assert kept(reference, reference, size=1) == kept(reference, reference, size=5)


def test_a_candidate_of_other_lengths_is_judged_by_cosine():
    reference = circle(0, 10, 100, 130, 170)
    assert kept(reference, reference * np.array([[1], [9], [2], [0.1], [3]], np.float32)).value == 1


@pytest.mark.parametrize(
    "rows",
    [
        np.random.default_rng(0).normal(size=(9, 4)),  # of any length: class scores
        np.eye(9),  # certain probabilities
        unit(np.random.default_rng(0).normal(size=(9, 4))).astype(np.int64),
        unit(np.random.default_rng(0).normal(size=(9, 4)))[:, :, None],
        unit(np.random.default_rng(0).normal(size=(2, 4))),
    ],
)
def test_what_is_no_embedding_has_no_neighbours(rows):
    assert kept(rows, rows) is None


def test_one_batch_of_other_rows_is_enough():
    rows = circle(0, 10, 100, 130, 170, 180)
    rows[5] *= 2
    assert kept(rows, rows) is None


def test_the_first_samples_are_compared(monkeypatch):
    reference, candidate = circle(0, 10, 100, 130, 170), circle(0, 10, 100, 130, 5)
    assert kept(reference, candidate).value < 1
    monkeypatch.setattr(neighbours, "MOST", 4)
    assert kept(reference, candidate).value == 1


def test_compare_tells_it_for_embeddings(tmp_path):
    def encoder(noise):
        weight = np.random.default_rng(0).normal(size=(6, 4)) + noise * np.random.default_rng(1).normal(size=(6, 4))
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("LpNormalization", ["h"], ["y"], axis=-1, p=2),
        ]
        graph = helper.make_graph(
            nodes,
            "encoder",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor("w", TensorProto.FLOAT, (6, 4), weight.astype(np.float32).ravel())],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return builders.save(model, tmp_path / f"{noise}.onnx")

    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(2).normal(size=(200, 6)).astype(np.float32))
    near, far = (compare(encoder(0.0), encoder(noise), data) for noise in (0.01, 0.5))
    assert (near.nearest_output, far.nearest_output) == ("y", "y")
    assert 0.2 < far.nearest.value < near.nearest.value < 1
    assert near.to_json()["nearest"]["value"] == near.nearest.value
