"""The fewest nodes to leave in float so that a candidate fits its budget.

First nothing is left out; then 1, 2, 4, 8 ... nodes from the top of the ranking (bisection from the
whole would try many halves of a long ranking first, where a few nodes mostly decide), and bisection
between the last two; then what the ranking drew in without need is put back, in halves of halves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from onnxcomp.sensitivity.judge import Verdict, to_json

Excluded = frozenset[str]


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate.

    Attributes:
        excluded: nodes left in float.
        verdict: None when it could not be made.
        fits: whether the drop is within the budget.
        reason: why it could not be made.
    """

    excluded: Excluded
    verdict: Verdict | None
    fits: bool
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """`{excluded, drop, low, high, fits, reason}`."""
        found = {"excluded": sorted(self.excluded), **to_json(self.verdict), "fits": self.fits}
        return found if self.reason is None else {**found, "reason": self.reason}


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search found.

    Attributes:
        best: the candidate with the fewest nodes left in float that fits; None when none does.
        tried: every candidate, in order.
        complete: whether no single node of `best` can be put back; False when the tries ran out.
    """

    best: Tried | None
    tried: tuple[Tried, ...]
    complete: bool

    @property
    def nearest(self) -> Tried | None:
        """The candidate with the smallest drop, whether it fits or not."""
        return next(iter(_by_drop(self.tried)), None)


class _OutOfTriesError(Exception):
    """Ends the search."""


def search(
    ranking: Callable[[], Sequence[str]],
    attempt: Callable[[Excluded], Tried],
    *,
    weight_bytes: Callable[[str], int],
    tries: int,
) -> Found:
    """Find the fewest nodes to leave in float.

    Args:
        ranking: gives all nodes that can be left out, most harmful first; asked only when all of them
            quantized do not fit.
        attempt: makes and judges a candidate.
        weight_bytes: of a node; the largest are put back first.
        tries: how many candidates may be made.
    """
    return _Search(attempt, weight_bytes, tries).run(ranking)


class _Search:
    def __init__(self, attempt: Callable[[Excluded], Tried], weight_bytes: Callable[[str], int], tries: int) -> None:
        self._attempt, self._bytes, self._tries = attempt, weight_bytes, tries
        self._made: dict[Excluded, Tried] = {}
        self._best: Tried | None = None

    def run(self, ranking: Callable[[], Sequence[str]]) -> Found:
        complete = True
        try:
            if not self._fits(frozenset()):
                ranked = ranking()
                self._shortest_prefix(ranked)
                if self._best is not None:
                    # of equal size the least harmful comes first
                    least_first = self._in_order(ranked)[::-1]
                    order = sorted(least_first, key=lambda n: -self._bytes(n))
                    self._put_back_halves(order)
                    self._put_back_singly(order)
        except _OutOfTriesError:
            complete = False
        return Found(self._best, tuple(self._made.values()), complete)

    def _in_order(self, ranked: Sequence[str]) -> list[str]:
        best = self._best.excluded if self._best else frozenset()
        return [node for node in ranked if node in best]

    def _shortest_prefix(self, ranked: Sequence[str]) -> None:
        """The shortest prefix that fits, if the drop falls with its length."""
        low, high = 0, 1
        while high < len(ranked) and self._falls_short(ranked[:high]):
            low, high = high, high * 2
        high = min(high, len(ranked))  # the whole of it would be the float model
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._falls_short(ranked[:middle]) else (low, middle)
        while self._best is None and (middle := self._beside_nearest(ranked)):
            self._falls_short(ranked[:middle])

    def _falls_short(self, excluded: Sequence[str]) -> bool:
        """Whether more nodes must stay in float; one that could not be made has too many there."""
        tried = self._try(frozenset(excluded))
        return not tried.fits and tried.verdict is not None

    def _beside_nearest(self, ranked: Sequence[str]) -> int:
        """The middle of a gap beside the length with the smallest drop that has a gap; 0 without any.

        Few samples make steps: the drop does not always fall with the length.
        """
        lengths = sorted(len(excluded) for excluded in self._made)
        above = dict(zip(lengths, [*lengths[1:], len(ranked)], strict=True))
        below = dict(zip(lengths[1:], lengths, strict=False))
        for tried in _by_drop(self._made.values()):
            here = len(tried.excluded)
            gaps = [(above[here] - here, here), (here - below.get(here, here), below.get(here, here))]
            width, low = max(gaps)
            if width > 1:
                return low + width // 2
        return 0

    def _put_back_halves(self, nodes: list[str]) -> None:
        if len(nodes) > 1:
            self._put_back(nodes[: len(nodes) // 2])
            self._put_back(nodes[len(nodes) // 2 :])

    def _put_back(self, nodes: list[str]) -> None:
        assert self._best is not None
        if not self._fits(self._best.excluded - set(nodes)):
            self._put_back_halves(nodes)

    def _put_back_singly(self, nodes: list[str]) -> None:
        """Until none can be: this proves the result, and tells what each node in float is worth."""
        assert self._best is not None
        before = None
        while before != self._best.excluded:
            before = self._best.excluded
            for node in nodes:
                if node in self._best.excluded:
                    self._try(self._best.excluded - {node})

    def _fits(self, excluded: Excluded) -> bool:
        return self._try(excluded).fits

    def _try(self, excluded: Excluded) -> Tried:
        if excluded not in self._made:
            if len(self._made) >= self._tries:
                raise _OutOfTriesError
            self._made[excluded] = self._attempt(excluded)
        tried = self._made[excluded]
        if tried.fits and (self._best is None or len(excluded) < len(self._best.excluded)):
            self._best = tried
        return tried


def _by_drop(tried: Iterable[Tried]) -> list[Tried]:
    """Those that could be judged, the smallest drop first."""
    made = [(t.verdict.drop, t) for t in tried if t.verdict is not None and not math.isnan(t.verdict.drop)]
    return [t for _, t in sorted(made, key=lambda pair: pair[0])]


def drops_when_put_back(found: Found) -> Mapping[str, float]:
    """{node of the best candidate: the drop of the same candidate with this node quantized too}, where tried."""
    if found.best is None:
        return {}
    seen = {t.excluded: t.verdict for t in found.tried}
    drops = {}
    for node in found.best.excluded:
        verdict = seen.get(found.best.excluded - {node})
        if verdict is not None:
            drops[node] = verdict.drop
    return drops
