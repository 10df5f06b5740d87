"""Masks as MultiHeadAttention takes them: one tensor (1 or B, 1 or H, S, L), or its own causal one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.attention import Attention
from onnxcomp.passes.fusions.causal import is_causal, keeps_lower
from onnxcomp.passes.fusions.finite import is_finite, largest
from onnxcomp.passes.fusions.reading import Refusal, given, made_by
from onnxcomp.passes.fusions.size import ONE, Dims
from onnxcomp.passes.fusions.sizes import Sizes
from onnxcomp.passes.fusions.views import identity, views
from onnxcomp.passes.fusions.writer import Writer


@dataclasses.dataclass(frozen=True)
class Mask:
    """Added to the scores. With a `constant`, `value` is the condition under which a score is kept, or not."""

    value: ir.Value
    keeps: bool = True
    constant: float | None = None

    def is_causal(self, sizes: Sizes) -> bool:
        """Whether it is what the operator does by itself for a query as long as the key."""
        if self.constant is None:
            return is_causal(self.value, sizes)
        return keeps_lower(self.value, sizes) is self.keeps

    def is_finite(self, *, alone: bool) -> bool:
        """Whether it is proven to be finite, and so is its sum with others of this kind if it is not `alone`."""
        if self.constant is not None:
            return alone and bool(np.isfinite(self.constant))
        return is_finite(self.value) if alone else largest(self.value) is not None


def masks_of(found: Attention, full: Dims, sizes: Sizes) -> list[Mask]:
    """The masks, each as small as it was before it was expanded.

    Args:
        found: the attention.
        full: sizes of the scores, (B, H, S, L).
        sizes: of all values.

    Raises Refusal where a mask is not proven to broadcast to the scores.
    """
    masks = [Mask(m) for m in found.masks] + [Mask(c, keeps, number) for c, keeps, number in found.replaced]
    merged = found.rank == 3
    wanted = (full[0] * full[1], *full[2:]) if merged else full
    for mask in masks:
        dims = sizes.of(mask.value)
        if dims is None or len(dims) > len(wanted):
            raise Refusal("the rank of the mask is not known")
        if any(d not in (ONE, w) for d, w in zip(reversed(dims), reversed(wanted), strict=False)):
            raise Refusal("an axis of the mask is not proven to be 1 or as long as that of the scores")
    return [dataclasses.replace(mask, value=_smallest(mask.value, sizes, merged=merged)) for mask in masks]


def _smallest(mask: ir.Value, sizes: Sizes, *, merged: bool) -> ir.Value:
    dims = sizes.of(mask) or ()
    if merged and len(dims) == 3 and dims[0] != ONE:
        for view in views(mask, sizes):
            apart = identity(sizes.of(view.source) or ())
            if len(apart) == 4 and view.axes == ((*apart[0], *apart[1]), *apart[2:]):
                return _smallest(view.source, sizes, merged=False)
        raise Refusal("batch and heads of the mask cannot be told apart")
    for view in views(mask, sizes):
        if view.source is not mask and not view.chosen and view.axes == identity(sizes.of(view.source) or ()):
            return _smallest(view.source, sizes, merged=False)
    node = made_by(mask, "Expand")
    if node is not None and sizes.of(node.inputs[0]) is not None:
        return _smallest(given(node.inputs[0]), sizes, merged=False)
    return mask


def bias(
    masks: Sequence[Mask],
    full: Dims,
    origins: tuple[tuple[ir.Value, int], tuple[ir.Value, int]],
    writer: Writer,
    before: ir.Node,
) -> ir.Value:
    """The sum of the masks, expanded where the operator does not broadcast.

    Args:
        masks: one at least.
        full: sizes of the scores, (B, H, S, L).
        origins: a value and its axis as long as the query, and as long as the key.
        writer: adds nodes.
        before: where to add them.
    """
    key = ("bias", tuple(masks), full[2:])
    dims = writer.sizes.broadcast([writer.sizes.of(mask.value) or () for mask in masks])
    values = [_added(mask, writer, before) for mask in masks]
    total = values[0]
    for value in values[1:]:
        (total,) = writer.add(before, "Add", [total, value], key=("sum", total, value))
    if len(dims) == 4 and dims[2:] == full[2:]:
        return total
    have = (ONE,) * (4 - len(dims)) + dims
    needed = [ONE if h == f or i < 2 else f for i, (h, f) in enumerate(zip(have, full, strict=True))]
    shape = writer.shape(needed, (None, None, *origins), before)
    return writer.add(before, "Expand", [total, shape], key=key)[0]


def _added(mask: Mask, writer: Writer, before: ir.Node) -> ir.Value:
    if mask.constant is None:
        return mask.value
    numbers = [writer.constant(np.asarray(n, np.float32)) for n in (0.0, mask.constant)]
    branches = numbers if mask.keeps else numbers[::-1]
    return writer.add(before, "Where", [mask.value, *branches], key=("mask", mask))[0]
