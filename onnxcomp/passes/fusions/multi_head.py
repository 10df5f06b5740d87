"""From a found attention to com.microsoft's MultiHeadAttention: where query, key and value come from.

The operator takes query, key and value as (B, S, H * D), which is what the projections give, and
gives the same; so the Reshapes and Transposes between are left out where `views` proves that they
only split the last axis into heads. Key and value may also be (B, H, L, D), as a cache keeps them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import MODULE
from onnxcomp.passes.fusions.attention import Attention, Refusal, is_finite, scalar
from onnxcomp.passes.fusions.causal import is_causal
from onnxcomp.passes.fusions.sizes import ONE, Size, Sizes, product
from onnxcomp.passes.fusions.views import Axes, Part, identity, moved, View, views, whole

DOMAIN = "com.microsoft"

_SWAP_SEQUENCE = (1, 0, 2)
_SWAP_HEADS = (0, 2, 1, 3)


@dataclasses.dataclass(frozen=True)
class Heads:
    """A tensor of heads: where it comes from, and its sizes.

    Attributes:
        source: (B, L, parts * H * D), (L, B, ...) where `sequence_first`; the tensor itself where
            `parts` is 0, (B, H, L, D).
        parts, index: which equal piece of the source's last axis it is.
    """

    source: ir.Value
    sequence_first: bool
    parts: int
    index: int
    batch: Size
    heads: int
    length: Size
    head_size: Size

    def same(self, other: Heads, *names: str) -> bool:
        """Whether these sizes are equal."""
        return all(getattr(self, name) == getattr(other, name) for name in names)


def heads_of(value: ir.Value, sizes: Sizes, what: str, *, transposed: bool = False) -> Heads:
    """Where (..., L, D), or (..., D, L) if `transposed`, comes from. Raises Refusal."""
    dims = sizes.of(value)
    if dims is None or len(dims) not in (3, 4):
        raise Refusal(f"the rank of the {what} is not known to be 3 or 4")
    head_size = dims[-2 if transposed else -1]
    found = [h for view in views(value, sizes) if (h := _projected(view, sizes, head_size, transposed)) is not None]
    if found:
        return next((h for h in reversed(found) if not h.sequence_first), found[-1])
    if len(dims) == 3 or dims[1].number is None:
        raise Refusal(f"the number of heads of the {what} is not known")
    length = dims[-1 if transposed else -2]
    return Heads(value, False, 0, 0, dims[0], dims[1].number, length, head_size)


def _projected(view: View, sizes: Sizes, head_size: Size, transposed: bool) -> Heads | None:
    dims = sizes.of(view.source)
    if dims is None or len(dims) != 3 or len(view.chosen) > 1 or dims[2].number is None:
        return None
    parts, index = 1, 0
    for part, index in view.chosen.items():
        if part.axis != 2 or part.outer != ONE or part.size.number is None:
            return None
        parts = part.size.number
    width = dims[2].over(Size(parts))
    heads = None if width is None else width.over(head_size)
    if heads is None or heads.number is None:
        return None
    head = _piece(2, Size(parts), heads, head_size)
    within = _piece(2, Size(parts) * heads, head_size, ONE)
    for first in (False, True):
        batch, length = (1, 0) if first else (0, 1)
        lead, last = view.axes[:-2], view.axes[-2:]
        rows = whole(length, dims[length])
        wanted = (within, rows) if transposed else (rows, within)
        if tuple(p for axis in lead for p in axis) == (*whole(batch, dims[batch]), *head) and last == wanted:
            return Heads(view.source, first, parts, index, dims[batch], heads.number, dims[length], head_size)
    return None


def _piece(axis: int, outer: Size, size: Size, inner: Size) -> tuple[Part, ...]:
    return () if size == ONE else (Part(axis, outer, size, inner),)


class Rewriter:
    """Replaces attention in one graph; what layers share is made once."""

    def __init__(self, graph: ir.Graph | ir.Function, sizes: Sizes, opset: int) -> None:
        self._graph, self._sizes, self._opset = graph, sizes, opset
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def replace(self, found: Attention) -> None:
        """Put a MultiHeadAttention in the place of what was found. Raises Refusal before any change."""
        query = heads_of(found.query, self._sizes, "query")
        key = heads_of(found.key, self._sizes, "key", transposed=True)
        value = heads_of(found.value, self._sizes, "value")
        if not (query.same(key, "batch", "heads", "head_size") and value.same(key, "batch", "heads", "length")):
            raise Refusal("query, key and value are not known to agree in batch, heads, head size and length")
        causal, masks = self._masks(found, query, key)
        way_out = self._way_out(found.product.outputs[0], query, value)
        width = value.head_size * Size(value.heads)
        if way_out is None and (len(self._sizes.of(found.product.outputs[0]) or ()) != 4 or width.number is None):
            raise Refusal("the heads of the output are not brought together again")

        before = found.product
        inputs: list[ir.Value | None] = [self._flat(query, before)]
        if key.parts and value.parts:
            inputs += [self._flat(key, before), self._flat(value, before)]
        else:
            inputs += [self._apart(found.key, before, transposed=True), self._apart(found.value, before)]
        bias = self._bias(masks, inputs, query, key, before)
        inputs += [None, None, bias] if bias is not None else []
        attributes: dict[str, int | float] = {"num_heads": query.heads, "scale": found.scale}
        if causal:
            attributes["unidirectional"] = 1
        made = self._op(before, "MultiHeadAttention", inputs, attributes, domain=DOMAIN)
        node = made.producer()
        assert node is not None
        node.name = found.softmax.name
        if MODULE in found.softmax.metadata_props:
            node.metadata_props[MODULE] = found.softmax.metadata_props[MODULE]
        if found.guarded and not all(is_finite(m) for m in masks):
            made = self._guard(made, before)
        self._connect(made, way_out, found.product.outputs[0], value, before)

    def _masks(self, found: Attention, query: Heads, key: Heads) -> tuple[bool, list[ir.Value]]:
        """(whether the mask is the operator's own, else the masks), after checking that they fit."""
        if len(found.masks) + len(found.replaced) == 1 and query.length == key.length:
            if found.masks and is_causal(found.masks[0], self._sizes):
                return True, []
        ...
