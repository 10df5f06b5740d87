"""What is proposed for which model, and in which order: with answers given, no model is made."""

from __future__ import annotations

import dataclasses

import pytest

from onnxcomp.errors import UsageError
from onnxcomp.evaluate.intervals import Interval
from onnxcomp.shrink.candidates import CUTS, NUMBERS, Candidate
from onnxcomp.shrink.kind import Kind
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.plan import choose, converse
from onnxcomp.shrink.wanted import Wanted

CNN = Kind(1_000_000, 10, 0.0, 0.98, 0.02, 0.0, 0.0, transformer=False, sums=6, normalizes=True, operators={})
ENCODER = Kind(90_000_000, 38, 0.0, 0.0, 0.5, 0.0, 0.5, transformer=True, sums=40, normalizes=False, operators={})
INT8 = dataclasses.replace(CNN, quantized=1.0)
TREES = dataclasses.replace(CNN, weights=0)

WANTED = Wanted(max_drop=0.01)


def outcome(candidate, *, drop=0.0, speed=2.0, size=1000, reason=None):
    return Outcome(
        candidate,
        reason=reason,
        path=f"{candidate.name}.onnx",
        bytes=size,
        score=Interval(0.9, 0.8, 1.0),
        drop=Interval(drop, drop - 0.001, drop + 0.001),
        speed=Interval(speed, speed - 0.01, speed + 0.01),
        sha256=candidate.name,
    )


def is_cut(one):
    return any(getattr(one, cut) for cut in CUTS)


def follow(kind, answer, *, epochs=0, wanted=WANTED, passes=None, most=60):
    """All candidates proposed when `answer(candidate)` says how each went."""
    choice = choose(kind, smallest=wanted.minimize == "size", provider="cpu", passes=passes)
    plan = converse(choice, better=wanted.better, holds=wanted.holds, epochs=epochs)
    asked = [next(plan)]
    try:
        while sum(map(len, asked)) < most:
            asked.append(plan.send([answer(one) for one in asked[-1]]))
    except StopIteration:
        return asked
    raise AssertionError("the plan does not end")


def test_a_cnn_gets_static_int8_and_an_encoder_dynamic():
    cnn = choose(CNN, smallest=False, provider="cpu", passes=None)
    encoder = choose(ENCODER, smallest=False, provider="cpu", passes=None)
    assert "dynamic int8" not in cnn.numbers or cnn.numbers[0] != "dynamic int8"
    assert "static int8" in cnn.numbers
    assert encoder.numbers[:2] == ("dynamic int8", "dynamic int8, smoothed")
    assert encoder.cuts == ("channels", "layers", "matrices")
    assert "several times slower" in dict(cnn.left_out)["dynamic int8"]
    assert "float32, more slowly" in dict(encoder.left_out)["float16"]


@pytest.mark.parametrize(("kind", "why"), [(INT8, "already"), (TREES, "no matrix")])
def test_where_nothing_can_help_only_clean_ups_are_tried(kind, why):
    assert follow(kind, outcome) == [[Candidate("clean")]]
    left = choose(kind, smallest=False, provider="cpu", passes=None).left_out
    assert len(left) == len(NUMBERS) - 1 + len(CUTS)
    assert all(why in reason for _, reason in left)


def test_cuts_are_made_of_the_best_numbers_within_the_budget():
    def answer(one):
        if one.numbers == "static int8, sums too":
            return outcome(one, speed=3.0)
        return outcome(one, speed=4.0, drop=0.5) if one.numbers == "static int8" else outcome(one)

    cut = [one for asked in follow(CNN, answer) for one in asked if is_cut(one)]
    assert any(one.channels for one in cut)
    assert any(one.layers for one in cut)
    assert not any(one.matrices for one in cut)
    assert {one.numbers for one in cut} == {"static int8, sums too"}


def test_a_ladder_climbs_while_the_budget_holds_and_then_halves():
    def answer(one):
        return outcome(one, drop=0.02 if one.channels > 0.6 or one.layers > 1 else 0.0, speed=2 + one.channels)

    cut = [one for asked in follow(CNN, answer) for one in asked if is_cut(one)]
    assert [one.channels for one in cut if not one.layers] == [0.3, 0.58, 0.75, 0.67]
    assert [one.layers for one in cut if not one.channels] == [1, 2]


def test_what_a_cut_has_left_is_cut_in_another_way_while_that_pays():
    def answer(one):
        lossy = one.channels > 0.3 or one.layers > 1 or one.matrices > 0.3
        return outcome(one, drop=0.02 if lossy else 0.0, speed=2 + one.channels + one.layers - one.matrices)

    tried = [one for asked in follow(ENCODER, answer) for one in asked]
    best = max((one for one in tried if answer(one).drop.value == 0), key=lambda one: answer(one).speed.value)
    assert (best.layers, best.channels, best.matrices) == (1, 0.3, 0.0)
    assert any(one.layers and one.channels and one.matrices for one in tried)
    assert len(tried) == len(set(tried))


def test_what_cannot_be_cut_is_tried_once():
    def answer(one):
        return outcome(one, reason="UnsupportedError: no") if is_cut(one) else outcome(one)

    cut = [one for asked in follow(CNN, answer) for one in asked if is_cut(one)]
    assert [(one.channels, one.layers) for one in cut] == [(0.3, 0), (0.0, 1)]


def test_where_no_int8_holds_nodes_are_left_in_float():
    def answer(one):
        if one.rescue:
            return outcome(dataclasses.replace(one, rescue=False, exclude=("conv",)))
        return outcome(one, drop=0.1 if "int8" in one.numbers and not one.exclude else 0.0)

    rounds = follow(CNN, answer)
    assert [len(asked) for asked in rounds if asked[0].rescue] == [1]
    cut = [one for asked in rounds for one in asked if is_cut(one)]
    assert cut
    assert all(one.exclude == ("conv",) for one in cut)
    options = [step.options() for step in cut[0].recipe().passes if step.name == "quantize-static"]
    assert [given["exclude"] for given in options] == [["conv"]]


def test_what_trains_keeps_batch_normalization_and_is_cut_deeper():
    trained = [one for asked in follow(CNN, outcome, epochs=3) for one in asked if one.epochs]
    assert trained[0] == Candidate("as it is", trained[0].numbers, channels=0.5, epochs=3)
    recipe = [step.name for step in trained[0].recipe().passes]
    assert recipe == ["prune-structured", "distill", "quantize-static", "distill"]


def test_passes_limit_what_is_tried():
    rounds = follow(CNN, outcome, passes=["quantize-static"])
    assert not any(is_cut(one) for asked in rounds for one in asked)
    left = dict(choose(CNN, smallest=False, provider="cpu", passes=["quantize-static"]).left_out)
    assert left["channels"] == "--passes leaves it out"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_every_candidate_has_a_recipe_and_comes_back_from_json(cut, numbers):
    amount = {cut: 1 if cut == "layers" else 0.25}
    one = Candidate("fused", numbers, epochs=2, exclude=("a", "b"), **amount)
    recipe = one.recipe()
    assert recipe.allow_no_effect
    assert type(recipe).parse(recipe.to_toml()).passes == recipe.passes
    assert Candidate.from_json(one.to_json()) == one
    assert Outcome.from_json(outcome(one).to_json()) == outcome(one)


def test_the_same_answers_lead_the_same_way():
    assert follow(ENCODER, outcome, epochs=2) == follow(ENCODER, outcome, epochs=2)


def test_what_is_wanted_is_checked():
    with pytest.raises(UsageError, match="unknown minimize"):
        Wanted(max_drop=0.1, minimize="latncy")
    with pytest.raises(UsageError, match="must not be negative"):
        Wanted(max_drop=-0.1)
    wanted = Wanted(max_drop=0.01, max_bytes=500, min_speedup=3.0)
    assert "500 are allowed" in wanted.allowed(outcome(Candidate()))
    assert "3 times is asked for" in wanted.allowed(outcome(Candidate(), size=400))
    assert wanted.allowed(outcome(Candidate(), size=400, speed=3.0)) is None
    assert "over the budget" in wanted.allowed(outcome(Candidate(), drop=0.0095))
    assert Wanted(max_drop=0.01, gate="mean").allowed(outcome(Candidate(), drop=0.0095)) is None
