"""How many units each group loses: the same share, by one ranking of all, or by the damage that it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from onnxcomp.errors import GateError, UsageError
from onnxcomp.passes.base import Context
from onnxcomp.passes.prune import alignment, damage, selection
from onnxcomp.passes.prune.analysis import Analysis
from onnxcomp.passes.prune.cut import Kept

Kind = Literal["uniform", "global", "sensitivity"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """How much goes; one of three.

    Attributes:
        sparsity: share of the units of each group; where groups do not lose the same, as many MACs.
        macs, size: share of the multiply-accumulates, of the bytes of the weights, that is left at most.
    """

    sparsity: float | None = None
    macs: float | None = None
    size: float | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """What decides which units go.

    Attributes:
        scores: importance of the units of each group.
        steps: units of each group that go together.
        limit: largest share of a group that may go.
        kind: how groups share what is to go.
        curves: what each group's cut does to the outputs, for 'sensitivity'.
        losses: whether the scores are measured losses, which add up, and not norms of weights.
    """

    analysis: Analysis
    scores: Sequence[np.ndarray]
    steps: Sequence[int]
    limit: float
    kind: Kind
    curves: Sequence[damage.Curve] = ()
    losses: bool = False

    @property
    def units(self) -> list[int]:
        """Of each group."""
        return [len(score) for score in self.scores]

    @property
    def least(self) -> float:
        """The share of the MACs that is left when all that may go is gone."""
        fewest = selection.uniform(self.units, self.steps, self.limit, 1.0)
        return selection.ratio(selection.multiplications(self.analysis), self.units, fewest)

    def stay(self, goal: Goal) -> list[int]:
        """How many units of each group stay. Raises GateError for a target that is too low."""
        units = self.units
        target = goal.macs if goal.size is None else goal.size
        terms = selection.multiplications(self.analysis) if goal.size is None else selection.stored(self.analysis)
        if target is None:
            assert goal.sparsity is not None
            if self.kind == "uniform" and self.losses:
                return selection.balanced(self.scores, self.steps, self.limit, goal.sparsity)
            even = selection.uniform(units, self.steps, self.limit, goal.sparsity)
            if self.kind == "uniform":
                return even
            target = selection.ratio(terms, units, even)
        reached = self._until(terms, target)
        if (left := selection.ratio(terms, units, reached)) > target:
            raise GateError(
                f"the target of {target:g} cannot be reached: {left:.3f} is left when all that may go is gone",
                where="target_macs" if goal.size is None else "target_size",
                hint="a higher limit, a smaller align, or a target that is not as low",
            )
        return reached

    def kept(self, stay: Sequence[int]) -> Kept:
        """What the model keeps, the least important units of each group gone."""
        gone = [
            group.units[selection.least_important(score, len(score) - left)]
            for group, score, left in zip(self.analysis.groups, self.scores, stay, strict=True)
        ]
        return Kept.without(self.analysis, np.concatenate(gone) if gone else np.zeros(0, np.int64))

    def _until(self, terms: Sequence[selection.Term], target: float) -> list[int]:
        units = self.units
        if self.kind == "sensitivity":
            losses = [curve.at for curve in self.curves]
            return selection.cheapest(losses, units, self.steps, self.limit, terms=terms, target=target)

        def low_enough(stay: Sequence[int]) -> bool:
            return selection.ratio(terms, units, stay) <= target

        if self.kind == "global":
            return selection.ranked(self.scores, self.steps, self.limit, low_enough)
        return selection.evenly(self.scores, self.steps, self.limit, low_enough)


def choose(
    analysis: Analysis,
    scores: Sequence[np.ndarray],
    context: Context,
    *,
    kind: Kind,
    align: int | None,
    limit: float,
    losses: bool,
) -> Choice:
    """Measure what the kind needs; `losses` as in `Choice`. Raises UsageError for 'sensitivity' without data."""
    data = context.data
    steps = [alignment.step(group, align) for group in analysis.groups]
    if kind != "sensitivity":
        return Choice(analysis, scores, steps, limit, kind, losses=losses)
    if data is None:
        raise UsageError("allocation 'sensitivity' needs data", where="allocation", hint="give --data")
    data.require_real("pruning")
    curves = damage.measured(analysis, scores, limit, data, context) if analysis.groups else []
    return Choice(analysis, scores, steps, limit, kind, curves)
