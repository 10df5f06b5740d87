"""Ranking by gradients: what the outputs change by when a unit goes, to first order, without labels."""

from __future__ import annotations

import importlib.util
import json

import builders
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser

from onnxcomp import runtime
from onnxcomp.cli import main
from onnxcomp.data import Batches
from onnxcomp.errors import DataError, UnsupportedError, UsageError
from onnxcomp.model import load, signature, write_to
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.base import Context
from onnxcomp.passes.prune.analysis import analyse
from onnxcomp.passes.prune.damage import SWITCH, switched
from onnxcomp.pipeline import optimize
from onnxcomp.pytorch.importance import PruneFirstOrder, output_change, with_gradients

RNG = np.random.default_rng(5)

MIXED = """(float[N,3,6,6] x) => (float[N,{outputs}] y) {{
    a = Conv <pads=[1,1,1,1]> (x, w1)
    s = Sigmoid (a)
    b = Conv <group=2> (s, w2)
    t = Tanh (b)
    f = Flatten (t)
    y = MatMul (f, w3)
}}"""


def saved(tmp_path, text, weights):
    """The path of a graph whose weights are given as arrays or as shapes."""
    graph = parser.parse_graph(f"graph {text}")
    for name, given in weights.items():
        array = np.asarray(given, np.float32)
        made = builders.weight(name, *given, scale=0.5) if isinstance(given, tuple) else None
        graph.initializer.append(made or numpy_helper.from_array(array, name))
    opsets = [onnx.helper.make_opsetid("", 17)]
    return builders.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")


def mixed_file(tmp_path, outputs):
    weights = {"w1": (8, 3, 3, 3), "w2": (6, 4, 3, 3), "w3": (96, outputs)}
    return saved(tmp_path, MIXED.format(outputs=outputs), weights)


def mixed(tmp_path, outputs):
    return load(mixed_file(tmp_path, outputs))


def data_of(model, x):
    return Batches({"x": x}, signature(model).inputs)


def images(count):
    return RNG.normal(0, 1, (count, 3, 6, 6)).astype(np.float32)


def run_switched(analysis, tmp_path, data):
    """(function of the factors that gives the outputs of each sample, number of units)."""
    session = runtime.open_session(write_to(switched(analysis), tmp_path, "switched"))
    feeds = next(iter(data)).feeds

    def outputs(factors):
        return np.asarray(session.run({**feeds, SWITCH: factors.astype(np.float32)})["y"], np.float64)

    return outputs, sum(map(len, analysis.groups))


def test_scores_are_squares_of_finite_differences(tmp_path):
    """One output: the random direction is only a sign."""
    model = mixed(tmp_path, 1)
    analysis, data = analyse(model), data_of(model, images(20))
    outputs, units = run_switched(analysis, tmp_path, data)
    whole, step, wanted = outputs(np.ones(units + 1)), 1e-2, []
    for unit in range(units):
        ends = [np.ones(units + 1), np.ones(units + 1)]
        ends[0][unit], ends[1][unit] = 1 + step, 1 - step
        slope = (outputs(ends[0]) - outputs(ends[1])) / (2 * step)
        wanted.append(np.mean(np.square(slope / whole)))
    scores = output_change(analysis, data, Context(tmp_path))
    assert [len(score) for score in scores] == [len(group) for group in analysis.groups]
    np.testing.assert_allclose(np.concatenate(scores), wanted, rtol=1e-2)


def test_they_rank_as_the_damage_of_each_unit_alone(tmp_path):
    model = mixed(tmp_path, 5)
    analysis, data = analyse(model), data_of(model, images(200)).in_batches_of(200)
    outputs, units = run_switched(analysis, tmp_path, data)
    whole, damage = outputs(np.ones(units + 1)), []
    for unit in range(units):
        factors = np.ones(units + 1)
        factors[unit] = 0
        change = np.square(outputs(factors) - whole).sum(1) / np.square(whole).mean(1)
        damage.append(change.mean())
    scores = np.concatenate(output_change(analysis, data, Context(tmp_path)))
    assert len(scores) == units
    ranks = [np.argsort(np.argsort(values)) for values in (scores, damage)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9


def test_an_activation_that_the_outputs_hardly_feel_goes_first(tmp_path):
    """Behind a saturated Tanh nothing matters, however large it is."""
    text = """(float[N,6] x) => (float[N,4] y) {
        a = MatMul (x, w1)
        b = MatMul (a, w2)
        t = Tanh (b)
        y = MatMul (t, w3)
    }"""
    w2 = RNG.normal(0, 0.1, (6, 8)).astype(np.float32)
    w2[0] = [0, 0, 0, 0, 9, 9, 9, 9]  # a[0] is 5 and more: the last four tanh are 1 whatever else
    w2[1] = [0, 0, 0, 0, 2, 2, 2, 2]
    model = load(saved(tmp_path, text, {"w1": np.eye(6), "w2": w2, "w3": (8, 4)}))
    x = RNG.normal(0, 1, (64, 6)).astype(np.float32)
    x[:, 0] = 5 + np.abs(x[:, 0])
    kept = {}
    for importance, cls in (("activation", PruneStructured), ("first-order", PruneFirstOrder)):
        step = cls(importance=importance, sparsity=0.2, allocation="uniform", repair="none")
        effect = optimize(model, [step], data=data_of(model, x)).passes[0].effect
        assert effect["importance"] == importance
        kept[importance] = next(c["kept"] for c in effect["plan"]["cuts"] if c["initializer"] == "w1")
    assert 1 in kept["activation"]
    assert 1 not in kept["first-order"]


def test_the_same_scores_on_every_run_and_torch_as_it_was(tmp_path):
    model = mixed(tmp_path, 5)
    data = data_of(model, images(300))  # more than are looked at
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (output_change(analyse(model.clone()), data, Context(tmp_path)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_the_command_and_a_recipe_cut_the_same(tmp_path):
    path = mixed_file(tmp_path, 5)
    np.savez(tmp_path / "d.npz", x=builders.samples(40, 3, 6, 6))
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[[pass]]\nname = "prune-structured"\nimportance = "first-order"\nsparsity = 0.5\nalign = 1\nrepair = "none"\n'
    )
    common = ["--data", str(tmp_path / "d.npz"), "--json"]
    options = ["--structure", "channels", "--importance", "first-order", "--sparsity", "0.5", "--align", "1"]
    runs = {
        "cut": ["prune", str(path), *options, "--repair", "none", "--no-measure"],
        "again": ["run", str(recipe), str(path)],
    }
    for name, arguments in runs.items():
        with pytest.raises(SystemExit) as done:
            main([*arguments, "-o", str(tmp_path / f"{name}.onnx"), *common])
        assert done.value.code == 0
    record = json.loads((tmp_path / "cut.onnx.record.json").read_text())
    assert record["passes"][0]["name"] == "prune-structured"
    assert record["passes"][0]["options"]["importance"] == "first-order"
    assert record["passes"][0]["effect"]["importance"] == "first-order"
    assert (tmp_path / "cut.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_what_it_needs_and_where_it_runs(tmp_path, monkeypatch):
    path = mixed_file(tmp_path, 5)
    model = load(path)
    data = data_of(model, builders.samples(40, 3, 6, 6))
    plain = PruneStructured(importance="first-order", sparsity=0.5, align=1)
    with pytest.raises(UsageError, match="'first-order' needs data"):
        optimize(model, [plain])
    with pytest.raises(UnsupportedError, match="gradients") as refused:
        optimize(model, [plain], data=data)
    assert "PruneFirstOrder" in refused.value.hint
    made = with_gradients([plain, PruneStructured()])
    assert [type(step) for step in made] == [PruneFirstOrder, PruneStructured]
    assert made[0].options() == plain.options()
    with pytest.raises(DataError, match="real data"):
        optimize(model, made[:1], data=Batches("random:8", signature(model).inputs))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="torch") as refused:
        optimize(model, made[:1], data=data)
    assert "pip install 'onnxcomp[torch]'" in refused.value.hint


def test_outputs_without_a_gradient_are_refused(tmp_path):
    text = (
        "(float[N,6] x) => (int64[N] y) { a = MatMul (x, w1) b = MatMul (a, w2) y = ArgMax <axis=1, keepdims=0> (b) }"
    )
    model = load(saved(tmp_path, text, {"w1": (6, 8), "w2": (8, 4)}))
    with pytest.raises(UnsupportedError, match="none of the outputs has a gradient"):
        output_change(analyse(model), data_of(model, builders.samples(4, 6)), Context(tmp_path))


def test_samples_without_a_finite_gradient_are_left_out(tmp_path):
    text = "(float[N,6] x) => (float[N,4] y) { a = MatMul (x, w1) r = Sqrt (a) y = MatMul (r, w2) }"
    weights = {"w1": np.abs(RNG.normal(0, 1, (6, 8))), "w2": (8, 4)}
    model = load(saved(tmp_path, text, weights))
    x = np.abs(builders.samples(10, 6))
    x[3] = np.nan
    context = Context(tmp_path)
    (scores,) = output_change(analyse(model), data_of(model, x), context)
    assert np.isfinite(scores).all()
    assert "1 of 10 samples are left out" in context.notes[0].reason
