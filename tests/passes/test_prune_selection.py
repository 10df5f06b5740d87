"""Structured pruning: which units go, how many, and what they cost."""

from __future__ import annotations

import builders
import hypothesis
import numpy as np
import prune_graphs
import pytest
from hypothesis import strategies as st
from onnx import numpy_helper
from test_prune_units import analysed

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.inspect import measure
from onnxcomp.model import load, signature
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.prune import alignment, importance, selection
from onnxcomp.passes.prune.units import Group
from onnxcomp.pipeline import optimize


def group(units, channels, width=1):
    return Group(np.arange(units), (), (), channels, width)


@pytest.mark.parametrize(
    ("features", "channels", "align", "step"),
    [
        ({"avx512f", "avx2"}, 1, None, 16),
        ({"avx2"}, 1, None, 8),
        (set(), 1, None, 4),
        ({"avx512f"}, 0, None, 1),
        ({"avx512f"}, 4, None, 4),
        ({"avx512f"}, 32, None, 1),
        ({"avx512f"}, 3, None, 16),
        ({"avx512f"}, 1, 5, 5),
        ({"avx512f"}, 0, 8, 8),
    ],
)
def test_a_step_is_a_block_of_channels(features, channels, align, step, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_features", lambda: features)
    assert alignment.step(group(64, channels), align) == step


def test_each_group_of_a_convolution_is_blocked_alone(tmp_path):
    """A position in each of four groups is four channels, of which one is in a block; few are in none."""
    text = "(float[N,3,8,8] x) => (float[N,5,6,6] y) {a = Conv (x, w1) d = Conv <group=4> (a, w2) y = Conv (d, w3)}"
    for each, channels in ((32, 1), (4, 4)):
        weights = {"w1": (4 * each, 3, 1, 1), "w2": (4 * each, each, 3, 3), "w3": (5, 4 * each, 1, 1)}
        found = analysed(prune_graphs.build(text, weights), tmp_path)
        assert [(len(g), g.channels) for g in found.groups] == [(each, channels)] * 2


def test_a_head_is_as_many_channels_as_it_has_columns():
    assert alignment.step(group(12, 0, width=32), 16) == 1
    assert alignment.step(group(12, 0, width=8), 16) == 2


@pytest.mark.parametrize(
    ("wanted", "units", "block", "stay"),
    [(44.8, 64, 16, 48), (22.4, 32, 16, 16), (24, 32, 16, 32), (1, 64, 16, 16), (16.8, 24, 16, 16), (5.6, 8, 16, 8)],
)
def test_counts_are_rounded_to_blocks_and_none_vanishes(wanted, units, block, stay):
    assert alignment.rounded(wanted, units, block) == stay


def test_uniform_keeps_to_the_limit():
    assert selection.uniform([64, 100], [16, 1], 0.9, 0.3) == [48, 70]
    assert selection.uniform([64, 100], [16, 1], 0.25, 0.9) == [48, 75]
    assert selection.uniform([64, 100], [16, 1], 0.9, 0.999) == [16, 10]


def test_of_equal_scores_the_later_go():
    assert selection.least_important(np.array([2.0, 1, 1, 1, 3]), 2).tolist() == [2, 3]
    assert selection.least_important(np.array([2.0, 1, 1, 1, 3]), 0).tolist() == []


def test_groups_are_compared_by_their_share_of_the_mean():
    """The second group is a thousand times as large, and as uneven: both lose alike."""
    scores = [np.array([1.0, 2, 3, 10]), 1000 * np.array([1.0, 2, 3, 10])]
    assert selection.ranked(scores, [1, 1], 0.9, lambda stay: sum(stay) <= 4) == [2, 2]
    uneven = [np.array([1.0, 1, 1, 97]), np.array([25.0, 25, 25, 25])]
    assert selection.ranked(uneven, [1, 1], 0.9, lambda stay: sum(stay) <= 5) == [1, 4]
    assert selection.ranked(uneven, [1, 1], 0.5, lambda stay: sum(stay) <= 5) == [2, 3]


@pytest.mark.parametrize("name", ["conv", "depthwise", "grouped", "transposed", "concat", "flatten", "heads", "tied"])
def test_costs_are_what_inspect_counts(name, tmp_path):
    """The ratio that the ranking predicts for half of the units is the one of the model that comes out."""
    path = builders.save(prune_graphs.cut_graph(name), tmp_path / "m.onnx")
    found = analysed(prune_graphs.cut_graph(name), tmp_path)
    units = [len(g) for g in found.groups]
    done = optimize(load(path), [PruneStructured(sparsity=0.5, align=1)])
    stay = [g["kept"] for g in done.passes[0].effect["groups"]]
    before, after = measure(load(path)), measure(done.model)
    if before.macs is not None and after.macs is not None and not before.macs_unknown:
        predicted = selection.ratio(selection.multiplications(found), units, stay)
        assert predicted == pytest.approx(after.macs / before.macs, rel=0.01)
    floats = [sum(c.bytes_by_dtype.get(d, 0) for d in ("float32",)) for c in (before, after)]
    predicted = selection.ratio(selection.stored(found), units, stay)
    assert predicted == pytest.approx(floats[1] / floats[0], rel=0.08)  # integers and scalars stay


@pytest.mark.parametrize(("key", "measured"), [("target_macs", "macs"), ("target_size", "initializer_bytes")])
def test_a_target_is_reached_with_the_fewest_units(key, measured, tmp_path):
    path = builders.save(prune_graphs.cut_graph("conv"), tmp_path / "m.onnx")
    done = optimize(load(path), [PruneStructured(**{key: 0.5}, align=1)])
    before, after = (getattr(measure(m), measured) for m in (load(path), done.model))
    assert 0.3 * before < after <= 0.5 * before


def planted():
    """x (N, 16) -> 12 neurons -> y; neurons 3 and 7 have small weights, 2 and 9 hardly see any input."""
    up = numpy_helper.to_array(builders.weight("up", 16, 12)).copy()
    down = numpy_helper.to_array(builders.weight("down", 12, 5)).copy()
    up[:, [3, 7]] *= 0.05
    down[[3, 7]] *= 0.05
    up[:, [2, 9]] = 0
    up[0, [2, 9]] = 3.0  # the first input is next to nothing
    return prune_graphs.build(
        "(float[N,16] x) => (float[N,5] y) {a = MatMul (x, up) r = Relu (a) y = MatMul (r, down)}",
        {"up": up, "down": down},
    )


def removed(done):
    cut = next(c for c in done.passes[0].effect["plan"]["cuts"] if c["initializer"] == "down")
    return sorted(set(range(cut["size"])) - set(cut["kept"]))


def test_weights_rank_by_norm_and_activations_by_what_they_add(tmp_path):
    """Without data the small weights go; with data those that never fire much."""
    model = load(builders.save(planted(), tmp_path / "m.onnx"))
    x = builders.samples(64, 16)
    x[:, 0] *= 1e-4
    data = Batches({"x": x}, signature(model).inputs)
    for measure_, expected in (("l2", [3, 7]), ("l1", [3, 7]), ("auto", [3, 7])):
        done = optimize(model, [PruneStructured(sparsity=2 / 12, importance=measure_)])
        assert removed(done) == expected
    ranked = optimize(model, [PruneStructured(sparsity=2 / 12, importance="activation")], data=data)
    assert removed(ranked) == [2, 9]
    assert ranked.passes[0].effect["importance"] == "activation"
    for repair, expected in (("lstsq", "elimination"), ("bias", "activation"), ("none", "activation")):
        done = optimize(model, [PruneStructured(sparsity=2 / 12, repair=repair)], data=data)
        assert done.passes[0].effect["importance"] == expected
    assert removed(optimize(model, [PruneStructured(sparsity=2 / 12, importance="l2")], data=data)) == [3, 7]


def test_activation_scores_are_the_loss_of_one_channel(tmp_path):
    """For a single neuron the score is the mean square of what the output loses, times its size."""
    proto = prune_graphs.cut_graph("grouped")
    found = analysed(proto, tmp_path)
    inputs = signature(found.model).inputs
    data = Batches({"x": builders.samples(8, 3, 8, 8)}, inputs)
    scores = importance.by_activations(found, data, tmp_path, None)
    weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    hidden = np.einsum("nchw,oc->nohw", builders.samples(8, 3, 8, 8).astype(np.float64), weights["w1"][:, :, 0, 0])
    power = np.square(hidden).mean((0, 2, 3))
    expected = np.zeros(4)
    for channel in range(8):
        rows = weights["w2"][6 * (channel // 4) : 6 * (channel // 4) + 6, channel % 4]
        expected[channel % 4] += power[channel] * np.square(rows).sum()
    assert scores[0] == pytest.approx(expected, rel=1e-4)


def test_squares_go_on_where_they_stopped():
    array = builders.samples(6, 4, 3)
    whole, part = importance.Squares(1), importance.Squares(1)
    whole.update(array)
    part.update(array[:2])
    again = importance.Squares(1)
    again.restore(part.state())
    again.update(array[2:])
    assert again.mean == pytest.approx(np.square(array).mean((0, 2)), rel=1e-6)
    assert again.mean == pytest.approx(whole.mean)
    assert again.count == whole.count


def test_narrow_groups_stay_whole_where_wide_ones_give_less():
    narrow, wide = np.ones(32), np.concatenate([np.full(64, 0.01), np.ones(64)])
    scores = [narrow, narrow, wide, wide]
    assert selection.uniform([32, 32, 128, 128], [16] * 4, 0.9, 0.3) == [16, 16, 96, 96]
    assert selection.balanced(scores, [16] * 4, 0.9, 0.3) == [32, 32, 80, 80]


def test_what_gives_nothing_goes_first():
    scores = [np.full(32, 1e-3), np.r_[np.zeros(16), np.ones(16)], np.ones(128)]
    assert selection.balanced(scores, [16] * 3, 0.9, 0.3) == [32, 16, 80]


def test_without_blocks_each_group_loses_the_share():
    scores = [np.arange(10.0), np.arange(100.0)]
    assert selection.balanced(scores, [1, 1], 0.9, 0.3) == [7, 70]


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 16)), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
    st.floats(0.05, 0.95),
)
def test_balanced_keeps_to_blocks_limits_and_the_share(groups, sparsity, limit):
    units = [n for n, _ in groups]
    steps = [b for _, b in groups]
    scores = [np.random.default_rng(n).random(n) for n in units]
    stay = selection.balanced(scores, steps, limit, sparsity)
    fewest = selection.uniform(units, steps, limit, 1.0)
    for left, n, block, least in zip(stay, units, steps, fewest, strict=True):
        assert left == n or left % block == 0
        assert least <= left <= n
    gone, wanted = sum(units) - sum(stay), min(sparsity, limit) * sum(units)
    most = sum(min(s, n) for s, n in zip(steps, units, strict=True))
    assert gone <= wanted + max(steps) / 2 + 1e-6
    assert gone >= wanted - most - 1e-6


def test_what_rounding_took_too_much_of_comes_back_where_it_gives_most():
    flat, steep = np.ones(32), np.r_[np.full(16, 9.0), np.full(16, 0.1)]
    stay = selection.evenly([flat, steep], [16, 16], 0.9, lambda stay: sum(stay) <= 50)
    assert stay == [32, 16]
    assert selection.evenly([flat, steep], [16, 16], 0.9, lambda stay: sum(stay) <= 40) == [16, 16]
