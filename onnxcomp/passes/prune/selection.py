"""Which units go: the same share of each group, or those of the whole model that cost most for what they give."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.size import integer
from onnxcomp.passes.prune.alignment import rounded
from onnxcomp.passes.prune.analysis import Analysis
from onnxcomp.passes.prune.units import CONVOLUTIONS

#: strides in which `cheapest` walks through a group
_MOVES = 32

_MULTIPLYING = CONVOLUTIONS | {"Gemm", "MatMul"}


@dataclasses.dataclass(frozen=True)
class Term:
    """Something whose cost is the product of the sizes of some axes: a multiplication, or a stored tensor.

    Attributes:
        cost: of the whole.
        axes: for each axis its size, and {group: indices of the axis that one unit is}.
    """

    cost: float
    axes: tuple[tuple[int, dict[int, float]], ...]

    def left(self, gone: Sequence[int]) -> float:
        """The cost with so many units less in each group."""
        cost = self.cost
        for size, groups in self.axes:
            cost *= (size - sum(gone[g] * each for g, each in groups.items())) / size
        return cost


def uniform(units: Sequence[int], steps: Sequence[int], limit: float, sparsity: float) -> list[int]:
    """How many units stay in each group, `sparsity` of them gone (at most `limit`), rounded to blocks."""
    share = min(sparsity, limit)
    return [_floored(n * (1 - share), n, block, limit) for n, block in zip(units, steps, strict=True)]


def balanced(scores: Sequence[np.ndarray], steps: Sequence[int], limit: float, sparsity: float) -> list[int]:
    """`uniform`, but rounded up here and down there: of all units together `sparsity` goes.

    Those groups are rounded down whose next block gives least, for each unit, of what its group gives to
    the sums that it leaves through: `scores` are losses that add up. Narrow groups of few blocks would
    else all lose more than was asked for, or all of them less.
    """
    share = min(sparsity, limit)
    stay, moves = [], []
    for g, (score, block) in enumerate(zip(scores, steps, strict=True)):
        n = len(score)
        wanted = n * (1 - share)
        more = min(math.ceil(wanted / block - 1e-9) * block, n)
        less = _floored(max(math.floor(wanted / block + 1e-9), 1) * block, n, block, limit)
        stay.append(more)
        if less < more:
            given = np.sort(score)[n - more : n - less].sum() / (score.sum() or 1.0)
            moves.append((given / (more - less), g, less))
    missing = share * sum(map(len, scores)) - sum(len(s) - left for s, left in zip(scores, stay, strict=True))
    for _, g, less in sorted(moves):
        step = stay[g] - less
        if abs(missing - step) < abs(missing):
            stay[g], missing = less, missing - step
    return stay


def ranked(
    scores: Sequence[np.ndarray],
    steps: Sequence[int],
    limit: float,
    reached: Callable[[list[int]], bool],
) -> list[int]:
    """How many units stay in each group, the least important of all groups gone until `reached` is true.

    Scores are compared by their share of the group's mean: layers differ in scale. Of each group at most
    the share `limit` goes. Where the target cannot be reached, all that may go is gone.
    """
    normal = [score / (score.mean() or 1.0) for score in scores]
    group = np.concatenate([np.full(len(score), g) for g, score in enumerate(normal)])
    order = np.argsort(np.concatenate(normal), kind="stable")

    def stay(count: int) -> list[int]:
        gone = np.bincount(group[order[:count]], minlength=len(scores))
        return [_floored(len(score) - int(gone[g]), len(score), steps[g], limit) for g, score in enumerate(scores)]

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if reached(stay(middle)):
            high = middle
        else:
            low = middle + 1
    return stay(low)


def evenly(
    scores: Sequence[np.ndarray], steps: Sequence[int], limit: float, reached: Callable[[list[int]], bool]
) -> list[int]:
    """`uniform` with the smallest share, in thousandths, for which `reached` is true; else with the limit.

    What rounding took too much of comes back, a block at a time, first where it gives the largest share of
    what its group gives.
    """
    units = [len(score) for score in scores]
    shares = [i / 1000 for i in range(1, 1000) if i / 1000 < limit] + [limit]
    first = bisect.bisect_left(shares, True, key=lambda share: reached(uniform(units, steps, limit, share)))
    stay = uniform(units, steps, limit, shares[min(first, len(shares) - 1)])
    given = [np.sort(score)[::-1] / (score.sum() or 1.0) for score in scores]
    moves = sorted(
        (-float(given[g][stay[g] : more].sum()), g, more)
        for g, block in enumerate(steps)
        if (more := min(stay[g] + block, units[g])) > stay[g]
    )
    for _, g, more in moves:
        trial = [*stay[:g], more, *stay[g + 1 :]]
        if reached(trial):
            stay = trial
    return stay


def cheapest(
    losses: Sequence[Callable[[int], float]],
    units: Sequence[int],
    steps: Sequence[int],
    limit: float,
    *,
    terms: Sequence[Term],
    target: float,
) -> list[int]:
    """How many units stay in each group when `target` of the cost of the terms is left.

    Greedily, what does least damage for what it saves: `losses` give the damage of cutting so many units of a
    group, and damages add up. Where the target cannot be reached, all that may go is gone.
    """
    stay, left = list(units), 1.0
    fewest = [_floored(0, n, block, limit) for n, block in zip(units, steps, strict=True)]
    strides = [max(n // _MOVES // block, 1) * block for n, block in zip(units, steps, strict=True)]

    def moved(group: int, count: int) -> tuple[list[int], float]:
        trial = [*stay[:group], count, *stay[group + 1 :]]
        return trial, ratio(terms, units, trial)

    last = 0
    while left > target:
        best: tuple[float, int, int] | None = None
        for g, (n, now) in enumerate(zip(units, stay, strict=True)):
            fewer = max((now - 1) // strides[g] * strides[g], fewest[g])
            if fewer < now and (saved := left - moved(g, fewer)[1]) > 0:
                price = (losses[g](n - fewer) - losses[g](n - now)) / saved
                if best is None or price < best[0]:
                    best = price, g, fewer
        if best is None:
            break
        last = best[1]
        stay, left = moved(last, best[2])
    while stay[last] + steps[last] <= units[last] and moved(last, stay[last] + steps[last])[1] <= target:
        stay[last] += steps[last]
    return stay


def _floored(wanted: float, units: int, block: int, limit: float) -> int:
    """`rounded`, but so many that no more than the share `limit` goes."""
    fewest = math.ceil(units * (1 - limit) / block - 1e-9) * block
    return min(max(rounded(wanted, units, block), fewest), units)


def least_important(score: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest scores; of equal ones the later go first: int64, ascending."""
    order = np.lexsort((-np.arange(len(score)), score))
    return np.sort(order[:count])


def multiplications(analysis: Analysis) -> list[Term]:
    """The multiply-accumulates of Conv, Gemm and MatMul, as far as their sizes are known (a name counts as 1)."""
    atoms, terms = analysis.atoms, []
    for node in analysis.model.graph:
        if node.op_type not in _MULTIPLYING or node.domain or len(node.inputs) < 2:
            continue
        left, right, out = node.inputs[0], node.inputs[1], node.outputs[0]
        if left is None or right is None or None in [atoms.sizes.of(value) for value in (left, right, out)]:
            continue
        if node.op_type in CONVOLUTIONS:
            spatial = out if node.op_type == "Conv" else left
            axes = [(spatial, i) for i in range(2, atoms.rank(out))] + [(right, i) for i in range(atoms.rank(right))]
        else:
            turned = node.op_type == "Gemm" and integer(node, "transA", 0)
            axes = [(out, i) for i in range(atoms.rank(out))]
            axes.append((left, 0 if turned else atoms.rank(left) - 1))
        cost = math.prod(atoms.dims(value)[i].factor for value, i in axes)
        terms.append(Term(float(cost), _shares(analysis, axes)))
    return terms


def stored(analysis: Analysis) -> list[Term]:
    """The bytes of every initializer."""
    terms = []
    for value in analysis.model.graph.initializers.values():
        if value.const_value is not None:
            axes = [(value, i) for i in range(len(analysis.atoms.sizes.of(value) or ()))]
            terms.append(Term(float(value.const_value.nbytes), _shares(analysis, axes)))
    return terms


def ratio(terms: Sequence[Term], units: Sequence[int], stay: Sequence[int]) -> float:
    """The cost with so many units left over the cost of the whole."""
    gone = [n - left for n, left in zip(units, stay, strict=True)]
    whole = sum(term.cost for term in terms)
    return sum(term.left(gone) for term in terms) / whole if whole else 1.0


def _shares(analysis: Analysis, axes: Sequence[tuple[ir.Value, int]]) -> tuple[tuple[int, dict[int, float]], ...]:
    found = []
    for value, axis in axes:
        groups = analysis.group_of[analysis.axis_labels(value, axis)]
        counts = np.bincount(groups[groups >= 0])
        shares = {int(g): counts[g] / len(analysis.groups[g]) for g in np.flatnonzero(counts)}
        if shares:
            found.append((len(groups), shares))
    return tuple(found)
