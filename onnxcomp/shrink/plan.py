"""What is tried, in which order: cheap things first, then deeper cuts of what has held.

A conversation: it proposes candidates, is told how each went, and proposes the next. It looks at nothing else, so
that with the same answers it goes the same way: an interrupted search is resumed by telling it again what is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

from onnxcomp.shrink.candidates import CUTS, NUMBERS, Candidate
from onnxcomp.shrink.kind import Kind
from onnxcomp.shrink.outcome import Outcome

#: proposes candidates, is sent how they went
Conversation = Generator[Sequence[Candidate], Sequence[Outcome], None]

#: a share of weight bytes below this is not worth a pass of its own
_WORTH = 0.05

#: amounts that a ladder begins with, and how many candidates it may make
_FIRST = {"layers": 1, "channels": 0.3, "matrices": 0.3}
_FIRST_TRAINED = 0.5
_RUNGS = 4
_LARGEST = 0.9

#: sums in a graph that may be residual branches; fewer are no layers to take out
_LAYERS = 4

_WHOLLY = 0.9


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is in question for a model, and what is not, with the reason.

    Attributes:
        numbers, cuts: to be tried, cheap first.
        fuse: whether fusions may find something.
        raw: whether what trains begins with the graph as it is: with BatchNormalization.
        left_out: (what, why).
    """

    numbers: tuple[str, ...]
    cuts: tuple[str, ...]
    fuse: bool
    raw: bool
    left_out: tuple[tuple[str, str], ...]


def choose(kind: Kind, *, smallest: bool, provider: str, passes: Sequence[str] | None) -> Choice:
    """What may pay for this kind of model.

    Args:
        kind: of the model.
        smallest: whether the size of the file is what counts.
        provider: where it runs.
        passes: names of the passes that may be used; None: all.
    """
    left: list[tuple[str, str]] = []
    numbers: list[str] = []
    cuts: list[str] = []

    def offer(into: list[str], names: Sequence[str], holds: bool, why: str) -> None:
        if holds:
            into.extend(names)
        else:
            left.extend((name, why) for name in names)

    if not kind.weights:
        why = "the model holds no matrix, kernel or table"
        return Choice((), (), False, False, tuple((name, why) for name in (*list(NUMBERS)[1:], *CUTS)))
    if kind.quantized >= _WHOLLY:
        why = f"{kind.quantized:.0%} of the weights are in 8 bits or fewer already"
        return Choice((), (), False, False, tuple((name, why) for name in (*list(NUMBERS)[1:], *CUTS)))
    flowing = kind.products + kind.recurrent + kind.tables
    statics = ["static int8", "static int8, sums too", "static int8, widest ranges", "static int8, ranges by error"]
    offer(
        numbers,
        ["dynamic int8"],
        flowing >= _WORTH,
        f"{kind.convolutions:.0%} of the weights are kernels: ONNX Runtime convolves dynamic int8 several times slower",
    )
    offer(numbers, ["dynamic int8, smoothed"], kind.transformer, "it is for outliers of transformers")
    offer(numbers, statics[:2], kind.convolutions >= _WORTH or kind.products >= _WORTH, "nothing to do with ranges")
    offer(numbers, statics[2:], kind.convolutions >= _WORTH, "ranges decide little where matrices are multiplied")
    offer(
        numbers,
        ["8-bit blocks", "4-bit blocks"],
        smallest and kind.products + kind.tables >= _WORTH,
        "blocks of weights are for the smallest file, and for matrices",
    )
    offer(
        numbers,
        ["float16"],
        smallest or provider != "cpu",
        "on a CPU float16 is computed in float32, more slowly",
    )
    heavy = kind.convolutions + kind.products
    offer(cuts, ["channels"], heavy >= _WORTH, "no convolutions and matrices to speak of")
    offer(cuts, ["layers"], kind.sums >= _LAYERS, f"{kind.sums} sums: too few for layers to take out")
    offer(cuts, ["matrices"], kind.products >= 0.3, "few of the weights are matrices")
    if passes is not None:
        numbers, cuts = _allowed(numbers, cuts, set(passes), left)
    fuse = kind.products >= _WORTH and (passes is None or "fuse" in passes)
    return Choice(tuple(numbers), tuple(cuts), fuse, kind.normalizes, tuple(left))


def _allowed(
    numbers: list[str], cuts: list[str], passes: set[str], left: list[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """Those made of allowed passes only."""
    needs = {name: {step for step, _ in NUMBERS[name]} for name in numbers}
    needs |= {cut: {step} for cut, step in CUTS.items()}
    left += [(name, "--passes leaves it out") for name in (*numbers, *cuts) if not needs[name] <= passes]
    return [n for n in numbers if needs[n] <= passes], [c for c in cuts if needs[c] <= passes]


def converse(
    choice: Choice,
    *,
    better: Callable[[Outcome], float],
    holds: Callable[[Outcome], bool],
    epochs: int,
) -> Conversation:
    """Propose candidates in rounds, until nothing is left to try.

    Args:
        choice: what is in question.
        better: what counts, of an outcome; higher is better.
        holds: whether an outcome is within the budget.
        epochs: of training; 0: nothing trains.

    Yields the candidates of a round; is sent an outcome for each.
    """
    plain = [Candidate("clean"), *([Candidate("fused")] if choice.fuse else [])]
    cleaned = yield plain
    cleanup = max((one for one in cleaned if one.made), key=better, default=cleaned[0]).candidate.cleanup
    stored: Sequence[Outcome] = []
    if choice.numbers:
        stored = yield [Candidate(cleanup, numbers) for numbers in choice.numbers]
    within = [one for one in stored if one.made and holds(one)]
    if stored and not within:
        rescued = _rescued(stored)
        if rescued is not None:
            within = [one for one in (yield [rescued]) if one.made and holds(one)]
    numbers = max(within, key=better).candidate if within else Candidate(cleanup)
    ladders = [_Ladder(numbers, cut, _FIRST[cut]) for cut in choice.cuts]
    if epochs and "channels" in choice.cuts:
        trained = dataclasses.replace(numbers, epochs=epochs, cleanup="as it is" if choice.raw else cleanup)
        ladders.append(_Ladder(trained, "channels", _FIRST_TRAINED))
    best = max((yield from _climb(ladders, holds)), key=better, default=None)
    while best is not None:  # what it has left may bear another kind of cut
        free = [cut for cut in choice.cuts if not getattr(best.candidate, cut)]
        climbed = yield from _climb([_Ladder(best.candidate, cut, _FIRST[cut]) for cut in free], holds)
        best = max((one for one in climbed if better(one) > better(best)), key=better, default=None)


def _climb(
    ladders: Sequence[_Ladder], holds: Callable[[Outcome], bool]
) -> Generator[Sequence[Candidate], Sequence[Outcome], list[Outcome]]:
    """Climb all ladders side by side; what held."""
    held: list[Outcome] = []
    while any(ladder.open for ladder in ladders):
        climbing = [ladder for ladder in ladders if ladder.open]
        for ladder, outcome in zip(climbing, (yield [ladder.next() for ladder in climbing]), strict=True):
            good = outcome.made and holds(outcome)
            ladder.heard(made=outcome.made, held=good)
            held += [outcome] if good else []
    return held


def _rescued(stored: Sequence[Outcome]) -> Candidate | None:
    """The quantization that loses least, with some nodes in float; None where none was made."""
    told = [one for one in stored if one.made and "int8" in one.candidate.numbers]
    if not told:
        return None
    least = min(told, key=lambda one: one.drop.value if one.drop else float("inf"))
    return dataclasses.replace(least.candidate, rescue=True)


class _Ladder:
    """Amounts of one cut: more while the budget holds, less when it does not, then in between."""

    def __init__(self, candidate: Candidate, cut: str, first: float) -> None:
        self._candidate, self._cut, self._amount = candidate, cut, first
        self._whole = cut == "layers"
        self._low, self._high = 0.0, float("inf")
        self._rungs = _RUNGS

    @property
    def open(self) -> bool:
        """Whether there is another amount worth a try."""
        gap = self._high - self._low
        return self._rungs > 0 and (gap > 1 if self._whole else gap > 0.1 and self._low < _LARGEST)

    def next(self) -> Candidate:
        """The next rung."""
        self._rungs -= 1
        change: dict[str, Any] = {self._cut: self._amount}
        return dataclasses.replace(self._candidate, **change)

    def heard(self, *, made: bool, held: bool) -> None:
        """How the last rung went. What could not be made ends the ladder where nothing was made before."""
        if held:
            self._low = self._amount
        else:
            self._high = self._amount
            if not made and self._low == 0:
                self._rungs = 0
        if self._whole:
            self._amount = int(self._low) + 1
        elif self._high == float("inf"):
            self._amount = round(self._low + (1 - self._low) * 0.4, 2)
        else:
            self._amount = round((self._low + self._high) / 2, 2)
