"""Sizes of axes as products of numbers and names, and the attributes that speak of axes."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Size:
    """`factor` times the product of `names`, which are sorted; a number has no names."""

    factor: int
    names: tuple[str, ...] = ()

    @property
    def number(self) -> int | None:
        """The size where it is a number."""
        return None if self.names else self.factor

    def __mul__(self, other: Size) -> Size:
        """The product."""
        return Size(self.factor * other.factor, tuple(sorted((*self.names, *other.names))))

    def over(self, other: Size) -> Size | None:
        """The quotient where it is a whole number for all values of the names, else None."""
        left = collections.Counter(self.names)
        left.subtract(other.names)
        if not other.factor or self.factor % other.factor or any(n < 0 for n in left.values()):
            return None
        return Size(self.factor // other.factor, tuple(sorted(left.elements())))


ONE = Size(1)

Dims = tuple[Size, ...]


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The `perm` of a Transpose."""
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else tuple(range(rank))[::-1]


def product(sizes: Iterable[Size]) -> Size:
    """The product of all."""
    return math.prod(sizes, start=ONE)
