"""Structured pruning: how groups share what goes, and the damage that decides it."""

from __future__ import annotations

import builders
import numpy as np
import prune_graphs
import pytest
import real_data
from onnx import numpy_helper
from test_prune_units import analysed

from onnxcomp.data import Batches
from onnxcomp.errors import GateError
from onnxcomp.evaluate import evaluate
from onnxcomp.inspect import measure
from onnxcomp.model import load, signature, write_to
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.base import temporary_context
from onnxcomp.passes.prune import damage, equivalence, importance, selection
from onnxcomp.passes.prune.cut import Kept
from onnxcomp.pipeline import optimize
from onnxcomp.runtime import open_session


def batches(model, count=12):
    inputs = signature(model).inputs
    sizes = dict.fromkeys((d for spec in inputs for d in (spec.shape or ())[1:] if isinstance(d, str)), 7)
    parts = [batch.feeds for batch in Batches(f"random:{count}", inputs, batch_size=2, sizes=sizes)]
    return Batches({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, inputs, batch_size=2)


@pytest.mark.parametrize("name", prune_graphs.CUT)
def test_damage_is_that_of_the_masked_model(name, tmp_path):
    """One session with switches says what a model with zeros in its weights does, on all samples."""
    analysis = analysed(prune_graphs.cut_graph(name), tmp_path)
    data = batches(analysis.model)
    scores = [importance.by_weights(analysis, group, "l2") for group in analysis.groups]
    with temporary_context(data) as context:
        curves = damage.measured(analysis, scores, 0.9, data, context)
    whole = [open_session(write_to(analysis.model, tmp_path, "whole")).run(b.feeds) for b in data]
    for group, score, curve in zip(analysis.groups, scores, curves, strict=True):
        assert curve.counts[0] == 0 == curve.errors[0]
        gone = group.units[selection.least_important(score, curve.counts[-1])]
        masked = write_to(equivalence.masked(Kept.without(analysis, gone)), tmp_path, "masked")
        found = [open_session(masked).run(b.feeds) for b in data]
        errors = []
        for key in whole[0]:
            r, c = (np.concatenate([run[key] for run in runs]).astype(np.float64) for runs in (whole, found))
            errors.append(np.linalg.norm(r - c) / np.linalg.norm(r))
        assert curve.errors[-1] >= max(errors) * (1 - 1e-4)  # never falling: a smaller cut may have done more
        assert curve.errors[-1] == pytest.approx(max(errors), rel=1e-4) or curve.errors[-1] == curve.errors[-2]


def test_a_ruined_output_counts_and_is_null_in_the_record():
    curve = damage.Curve(np.array([0, 2]), np.array([0.0, np.inf]))
    assert curve.at(2) == 1e6
    assert curve.to_json() == {"counts": [0, 2], "errors": [0.0, None]}


def test_the_cheapest_damage_per_cost_goes_first():
    """Two groups of equal cost: the harmless one goes until it hurts as much."""
    terms = [selection.Term(100.0, ((10, {0: 1.0}),)), selection.Term(100.0, ((10, {1: 1.0}),))]
    losses = [lambda k: 0.01 * k**2, lambda k: 0.04 * k**2]

    def cheapest(target, limit=0.9, steps=(1, 1)):
        return selection.cheapest(losses, [10, 10], steps, limit, terms=terms, target=target)

    assert cheapest(0.75) == [6, 9]
    assert cheapest(0.75, steps=(2, 2)) in ([5, 10], [6, 8], [4, 10])
    assert cheapest(0.75, limit=0.2) == [8, 8]  # all that may go: not enough
    assert cheapest(0.99) == [9, 10]


def test_a_last_stride_is_given_back_as_far_as_the_target_allows():
    terms = [selection.Term(1.0, ((640, {0: 1.0}),))]
    assert selection.cheapest([float], [640], [1], 0.9, terms=terms, target=0.75) == [480]


def planted():
    """Two layers of 32 neurons; half of the second one's is never read downstream."""
    up, middle, down = (
        numpy_helper.to_array(builders.weight(name, *shape, scale=0.4)).copy()
        for name, shape in (("up", (16, 32)), ("middle", (32, 32)), ("down", (32, 5)))
    )
    down[16:] *= 1e-3
    return prune_graphs.build(
        "(float[N,16] x) => (float[N,5] y) {a = MatMul (x, up) r = Relu (a) b = MatMul (r, middle) s = Relu (b) "
        "y = MatMul (s, down)}",
        {"up": up, "middle": middle, "down": down},
    )


@pytest.mark.parametrize("goal", [{"sparsity": 0.25}, {"target_macs": 0.6}, {"target_size": 0.6}])
def test_each_way_reaches_the_same_goal(goal, tmp_path):
    """As many MACs, or bytes, as the same share of each group; the layer that does nothing pays with data."""
    model = load(builders.save(planted(), tmp_path / "m.onnx"))
    data = Batches({"x": builders.samples(64, 16)}, signature(model).inputs)
    kept, costs = {}, {}
    key = "initializer_bytes" if "target_size" in goal else "macs"
    for kind in ("uniform", "global", "sensitivity"):
        done = optimize(model, [PruneStructured(**goal, allocation=kind)], data=data)
        kept[kind] = [group["kept"] for group in done.passes[0].effect["groups"]]
        costs[kind] = getattr(measure(done.model), key) / getattr(measure(model), key)
        assert done.passes[0].effect["allocation"] == kind
        assert ("damage" in done.passes[0].effect) == (kind == "sensitivity")
    most = costs["uniform"] if "sparsity" in goal else 0.6
    assert all(0.85 * most < cost <= most * 1.001 for cost in costs.values()), costs
    assert kept["uniform"][0] == kept["uniform"][1]
    assert kept["sensitivity"][0] > 28
    assert kept["sensitivity"][1] <= 22
    auto = optimize(model, [PruneStructured(**goal, repair="none")], data=data).passes[0].effect
    assert [group["kept"] for group in auto["groups"]] == kept["sensitivity"]
    for repaired, some in (("lstsq", data), (None, None)):
        found = optimize(model, [PruneStructured(**goal, repair=repaired)], data=some).passes[0].effect
        assert found["allocation"] == "uniform"


@pytest.mark.parametrize("kind", ["uniform", "global", "sensitivity"])
def test_a_target_that_cannot_be_reached(kind, tmp_path):
    model = load(builders.save(planted(), tmp_path / "m.onnx"))
    data = Batches({"x": builders.samples(64, 16)}, signature(model).inputs)
    with pytest.raises(GateError, match=r"cannot be reached: 0\.349 is left"):
        optimize(model, [PruneStructured(target_macs=0.1, limit=0.5, allocation=kind)], data=data)


@pytest.mark.shared
def test_snips_keeps_its_accuracy(shared, tmp_path):
    """70 % of neurons and heads, by norms: in equal shares 91 %, by damage 97 % of 98.4 % at the same MACs."""
    path = shared / "models/snips_transformer.onnx"
    model = load(path)
    calibration = Batches(real_data.snips_calibration(shared / "data"), signature(model).inputs, batch_size=32)
    scores = {}
    for kind in ("uniform", "sensitivity"):
        step = PruneStructured(sparsity=0.7, importance="l2", allocation=kind, repair="none")
        done = optimize(model, [step], data=calibration)
        made = write_to(done.model, tmp_path, kind)
        np.savez(tmp_path / "test.npz", **real_data.samples("snips_transformer", shared)[0])
        scores[kind] = evaluate(made, tmp_path / "test.npz").value.value
    assert scores["sensitivity"] > scores["uniform"] + 0.03
    assert scores["sensitivity"] > 0.95
