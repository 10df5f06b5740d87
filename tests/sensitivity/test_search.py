"""The search alone: candidates are made up, so that what it must find is known."""

from __future__ import annotations

import pytest

from onnxcomp.sensitivity.judge import Verdict
from onnxcomp.sensitivity.search import Tried, drops_when_put_back, search

RANKED = [f"n{i}" for i in range(60)]


class Attempts:
    """A candidate fits when all of `needed` are in float; it cannot be made with more than `most`."""

    def __init__(self, *needed: str, most: int = 59) -> None:
        self.needed, self.most, self.made = set(needed), most, []

    def __call__(self, excluded: frozenset[str]) -> Tried:
        self.made.append(excluded)
        if len(excluded) > self.most:
            return Tried(excluded, None, False, "nothing left")
        missing = len(self.needed - excluded)
        return Tried(excluded, Verdict(missing / 10, None, None), missing == 0)


def find(attempts, tries=100, weight_bytes=lambda node: 0, ranked=RANKED):
    return search(lambda: ranked, attempts, weight_bytes=weight_bytes, tries=tries)


def test_nothing_is_left_out_where_all_fits():
    def never():
        raise AssertionError("the ranking is not needed")

    attempts = Attempts()
    found = search(never, attempts, weight_bytes=lambda n: 0, tries=5)
    assert found.best.excluded == frozenset()
    assert attempts.made == [frozenset()]


def test_one_node_on_top_takes_two_candidates():
    attempts = Attempts("n0")
    found = find(attempts)
    assert found.best.excluded == {"n0"}
    assert len(attempts.made) == 2
    assert found.complete


@pytest.mark.parametrize("needed", [("n5",), ("n0", "n7"), ("n3", "n30", "n31"), ("n58",)])
def test_the_fewest_are_found_far_down_the_ranking(needed):
    attempts = Attempts(*needed)
    found = find(attempts)
    assert found.best.excluded == set(needed)
    assert len(attempts.made) < 45
    assert len(set(attempts.made)) == len(attempts.made)
    assert drops_when_put_back(found) == {node: pytest.approx(0.1) for node in needed}


def test_of_two_that_can_stand_for_each_other_the_larger_is_put_back():
    class Either(Attempts):
        def __call__(self, excluded):
            fits = {"n0", "n3"} <= excluded and bool({"n1", "n2"} & excluded)
            return Tried(excluded, Verdict(0.0 if fits else 1.0, None, None), fits)

    assert find(Either(), weight_bytes=lambda n: 100 if n == "n1" else 1).best.excluded == {"n0", "n2", "n3"}
    assert find(Either(), weight_bytes=lambda n: 100 if n == "n2" else 1).best.excluded == {"n0", "n1", "n3"}


def test_a_candidate_that_cannot_be_made_has_too_many_in_float():
    found = find(Attempts("n17", most=20))
    assert found.best.excluded == {"n17"}


def test_steps_of_few_samples_do_not_end_the_search():
    """8 and 16 miss by chance, and from 20 on nothing can be made: 12 is found between them."""

    class Steps(Attempts):
        def __call__(self, excluded):
            self.made.append(excluded)
            count = len(excluded)
            if count >= 20:
                return Tried(excluded, None, False, "nothing left")
            fits = 10 <= count <= 13
            return Tried(excluded, Verdict(0.0 if fits else 1 / (1 + count), None, None), fits)

    attempts = Steps()
    assert len(find(attempts).best.excluded) == 10
    assert len(attempts.made) < 45


def test_nothing_fits():
    found = find(Attempts("elsewhere"), tries=30)
    assert found.best is None
    assert found.nearest.verdict.drop == pytest.approx(0.1)


def test_tries_are_bounded_and_what_was_found_is_kept():
    attempts = Attempts("n3", "n30", "n31")
    found = find(attempts, tries=9)
    assert len(attempts.made) == 9
    assert not found.complete
    assert {"n3", "n30", "n31"} <= found.best.excluded


def test_a_single_node_cannot_be_left_out():
    assert find(Attempts("n0"), ranked=["n0"]).best is None
