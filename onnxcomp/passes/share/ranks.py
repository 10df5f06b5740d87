"""How many directions of each weight stay: the same share, what a share of the energy needs, or what a budget buys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onnxcomp.errors import GateError
from onnxcomp.passes.share.matrices import Family

#: halvings of the price of a parameter, over 24 powers of ten
_HALVINGS = 80
_PRICES = (1e-24, 1.0)


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is lost of a family's outputs, by rank.

    Attributes:
        family: of matrices.
        lost: share of the outputs' energy that rank r loses: float64, (most + 1,).
        block: ranks are multiples of it.
        lowest: rank that may be chosen, rounded down to blocks.
        weight: square error of the model's outputs for each share that is lost.
    """

    family: Family
    lost: np.ndarray
    block: int = 1
    lowest: int = 1
    weight: float = 1.0

    @property
    def ranks(self) -> np.ndarray:
        """Those that may be chosen, ascending: int64."""
        return np.arange(max(self.lowest // self.block, 1) * self.block, len(self.lost), self.block)

    def nearest(self, rank: float) -> int:
        """The highest rank that may be chosen up to this one, and at least the lowest."""
        return int(self.ranks[max(int(np.searchsorted(self.ranks, rank, side="right")) - 1, 0)])

    def for_energy(self, energy: float) -> int | None:
        """The lowest rank that keeps this share of the energy; None where no rank that may be chosen does."""
        enough = self.ranks[self.lost[self.ranks] <= 1 - energy]
        return int(enough[0]) if len(enough) else None


def within(curves: Sequence[Curve], budget: float) -> list[int | None]:
    """The rank of each family, None for one that stays whole, with the least sum of losses for `budget` bytes.

    Every family takes what is best for it at one price of a byte, and the price is as low as the budget allows
    (Everett 1963, generalized Lagrange multipliers): optimal but for the last step. Raises GateError for a budget
    below the lowest ranks.
    """
    low, high = _PRICES
    if _bytes(curves, _at(curves, high)) > budget:
        least = _bytes(curves, [int(curve.ranks[0]) for curve in curves])
        raise GateError(
            f"the target cannot be reached: the matrices take {least:,} bytes at the lowest ranks, and may take "
            f"{max(budget, 0):,.0f}",
            hint="a higher target",
        )
    for _ in range(_HALVINGS):
        price = math.sqrt(low * high)
        fits = _bytes(curves, _at(curves, price)) <= budget
        low, high = (low, price) if fits else (price, high)
    return _at(curves, high)


def _at(curves: Sequence[Curve], price: float) -> list[int | None]:
    """What is best at a price, in shares of the sum of all weights."""
    whole = sum(curve.weight for curve in curves) or 1.0
    found: list[int | None] = []
    for curve in curves:
        family = curve.family
        costs = curve.lost[curve.ranks] * curve.weight / whole
        costs += price * family.itemsize * family.per_rank * curve.ranks
        best = int(costs.argmin())
        stays = price * family.itemsize * family.dense <= costs[best]
        found.append(None if stays else int(curve.ranks[best]))
    return found


def _bytes(curves: Sequence[Curve], ranks: Sequence[int | None]) -> int:
    return sum(
        curve.family.itemsize * (curve.family.dense if rank is None else curve.family.per_rank * rank)
        for curve, rank in zip(curves, ranks, strict=True)
    )
