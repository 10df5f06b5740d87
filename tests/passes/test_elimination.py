"""Ranking by elimination: what others can stand in for goes first, however large it is."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import prune_graphs
import pytest

from onnxcomp.data import Batches
from onnxcomp.errors import UsageError
from onnxcomp.model import load, signature
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.prune.analysis import analyse
from onnxcomp.passes.prune.repair import elimination
from onnxcomp.passes.prune.repair.elimination import by_elimination
from onnxcomp.pipeline import optimize

RNG = np.random.default_rng(3)


def ranked(text, weights, x, tmp_path):
    model = load(builders.save(prune_graphs.build(text, weights), tmp_path / "m.onnx"))
    data = Batches({"x": x}, signature(model).inputs)
    return by_elimination(analyse(model), data, tmp_path, None)


DENSE = "(float[N,6] x) => (float[N,5] y) { a = MatMul (x, w1) y = MatMul (a, w2) }"


def test_a_large_unit_that_others_can_stand_in_for_goes_first(tmp_path):
    w1 = np.diag([1.0, 1, 1, 1, 1, 1]).astype(np.float32)
    w1 = np.concatenate([w1, 3 * w1[:, :1] + 3 * w1[:, 1:2]], axis=1)  # the seventh is the sum of the first two
    w2 = RNG.normal(0, 1, (7, 5)).astype(np.float32)
    x = builders.samples(400, 6)
    (scores,) = ranked(DENSE, {"w1": w1, "w2": w2}, x, tmp_path).values()
    alone = np.square(x @ w1).mean(0) * np.square(w2).sum(1)  # what each one adds to the outputs
    first = np.argmin(scores)
    assert first in (0, 1, 6)
    assert scores[first] < 0.1 * alone[first]


def test_the_first_to_go_is_the_one_that_costs_least_of_all(tmp_path):
    w1, w2 = (RNG.normal(0, 1, s).astype(np.float32) for s in ((6, 8), (8, 5)))
    x = RNG.normal(0, 1, (300, 6)).astype(np.float32)
    (scores,) = ranked(DENSE, {"w1": w1, "w2": w2}, x, tmp_path).values()
    hidden = x.astype(np.float64) @ w1
    covariance = np.cov(hidden.T, bias=True) + np.eye(8) * 1e-2 * np.mean(hidden**2)
    losses = np.square(w2.astype(np.float64)).sum(1) / np.diagonal(np.linalg.inv(covariance))
    assert np.argmin(scores) == np.argmin(losses)
    assert scores.min() == pytest.approx(losses.min(), rel=1e-4)


def test_channels_of_grouped_convolutions_go_together(tmp_path):
    text = """(float[N,3,6,6] x) => (float[N,6,6,6] y) {
        a = Conv (x, w1)
        r = Relu (a)
        y = Conv <pads=[1,1,1,1], group=2> (r, w2)
    }"""
    w2 = RNG.normal(0, 1, (6, 4, 3, 3)).astype(np.float32)
    w2[:, 2] *= 1e-3  # position 2 of both groups hardly matters
    found = ranked(text, {"w1": (8, 3, 1, 1), "w2": w2}, builders.samples(64, 3, 6, 6), tmp_path)
    (scores,) = found.values()
    assert len(scores) == 4
    assert np.argmin(scores) == 2


@pytest.mark.parametrize(
    ("options", "importance"),
    [
        ({"importance": "elimination", "repair": "none"}, "elimination"),
        ({}, "elimination"),
        ({"repair": "bias"}, "activation"),
        ({"repair": "none"}, "activation"),
        ({"importance": "activation"}, "activation"),
        ({"importance": "l2"}, "l2"),
    ],
)
def test_it_is_what_ranks_where_least_squares_repairs(options, importance, tmp_path):
    model = load(builders.save(prune_graphs.cut_graph("conv"), tmp_path / "m.onnx"))
    data = Batches({"x": builders.samples(40, 3, 8, 8)}, signature(model).inputs)
    step = PruneStructured(sparsity=0.5, align=1, **options)
    assert optimize(model, [step], data=data).passes[0].effect["importance"] == importance
    if options.get("importance") == "elimination":
        with pytest.raises(UsageError, match="'elimination' needs data"):
            optimize(model, [step])
    else:
        assert (
            optimize(model, [dataclasses.replace(step, importance="auto", repair=None)]).passes[0].effect["importance"]
            == "l2"
        )


def test_a_wide_sum_is_ranked_in_parts(tmp_path, monkeypatch):
    w1 = RNG.normal(0, 1, (6, 64)).astype(np.float32)
    w1[:, 32:] = w1[:, :32]  # every unit is there twice
    weights = {"w1": w1, "w2": RNG.normal(0, 1, (64, 5)).astype(np.float32)}
    x = builders.samples(400, 6)
    (whole,) = ranked(DENSE, weights, x, tmp_path).values()
    monkeypatch.setattr(elimination, "_WIDEST", 16)
    seen = []
    real = elimination.solve
    monkeypatch.setattr(
        elimination, "solve", lambda gram, *rest, **more: seen.append(len(gram)) or real(gram, *rest, **more)
    )
    (parts,) = ranked(DENSE, weights, x, tmp_path).values()
    assert max(seen) == 16
    assert np.isfinite(parts).all()
    assert len(set(np.argsort(whole)[:32]) & set(np.argsort(parts)[:32])) > 20


def test_what_is_too_wide_goes_by_activations(tmp_path, monkeypatch):
    monkeypatch.setattr(elimination, "_LARGEST", 8 * 8**2)
    text = """(float[N,6] x) => (float[N,5] y) {
        a = MatMul (x, w1)
        r = Relu (a)
        c = MatMul (r, w2)
        s = Relu (c)
        y = MatMul (s, w3)
    }"""
    model = load(
        builders.save(prune_graphs.build(text, {"w1": (6, 8), "w2": (8, 12), "w3": (12, 5)}), tmp_path / "m.onnx")
    )
    x = builders.samples(400, 6)
    data = Batches({"x": x}, signature(model).inputs)
    assert list(by_elimination(analyse(model), data, tmp_path, None)) == [0]
    done = optimize(model, [PruneStructured(sparsity=0.5)], data=data)
    assert done.passes[0].effect["importance"] == "elimination"
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    hidden = np.maximum(np.maximum(x @ stored["w1"], 0) @ stored["w2"], 0)
    adds = np.square(hidden).mean(0) * np.square(stored["w3"]).sum(1)
    kept = {cut["initializer"]: cut["kept"] for cut in done.passes[0].effect["plan"]["cuts"]}
    assert kept["w3"] == sorted(np.argsort(adds)[6:])
