"""From a found attention to com.microsoft's MultiHeadAttention: where query, key and value come from.

The operator takes query, key and value as (B, S, H * D), which is what the projections give, and
gives the same; so the Reshapes and Transposes between are left out where `views` proves that they
only split the last axis into heads. Key and value may also be (B, H, L, D), as a cache keeps them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.attention import Attention
from onnxcomp.passes.fusions.masks import bias, masks_of
from onnxcomp.passes.fusions.reading import Refusal, only_use
from onnxcomp.passes.fusions.size import ONE, Dims, Size
from onnxcomp.passes.fusions.sizes import Sizes
from onnxcomp.passes.fusions.views import Part, View, moved, views, whole
from onnxcomp.passes.fusions.writer import Attribute, Writer

DOMAIN = "com.microsoft"

_MOVING_OUT = {"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


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


def heads_of(value: ir.Value, sizes: Sizes, what: str, *, transposed: bool = False) -> list[Heads]:
    """Where (..., L, D), or (..., D, L) if `transposed`, may come from, the best last. Raises Refusal."""
    dims = sizes.of(value)
    if dims is None or len(dims) not in (3, 4):
        raise Refusal(f"the rank of the {what} is not known to be 3 or 4")
    head_size, length = dims[-2 if transposed else -1], dims[-1 if transposed else -2]
    if head_size.number is None:
        raise Refusal(f"the head size of the {what} is not a constant")
    found = [h for view in views(value, sizes) if (h := _projected(view, sizes, head_size, transposed)) is not None]
    if len(dims) == 4 and dims[1].number is not None:
        found.insert(0, Heads(value, False, 0, 0, dims[0], dims[1].number, length, head_size))
    if not found:
        raise Refusal(f"the heads of the {what} are not known")
    return sorted(found, key=lambda heads: (heads.parts > 0, not heads.sequence_first))


def _agreed(query: list[Heads], key: list[Heads], value: list[Heads]) -> tuple[Heads, Heads, Heads]:
    """The best of each with the same number of heads, and that as large as may be. Raises Refusal."""
    for count in sorted({heads.heads for heads in query}, reverse=True):
        best = [next((h for h in reversed(some) if h.heads == count), None) for some in (query, key, value)]
        q, k, v = best
        if q is None or k is None or v is None:
            continue
        if q.same(k, "batch", "head_size") and v.same(k, "batch", "length"):
            return q, k, v
    raise Refusal("query, key and value are not proven to agree in batch, heads, head size and length")


def _projected(view: View, sizes: Sizes, head_size: Size, transposed: bool) -> Heads | None:
    dims = sizes.of(view.source)
    if dims is None or len(dims) != 3 or len(view.chosen) > 1 or dims[2].number is None:
        return None
    parts, index = 1, 0
    for part in view.chosen:
        if part.axis != 2 or part.outer != ONE or part.size.number is None:
            return None
        parts, index = part.size.number, view.chosen[part]
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


def replace(found: Attention, writer: Writer) -> None:
    """Put a MultiHeadAttention in the place of what was found. Raises Refusal before any change."""
    sizes, before = writer.sizes, found.product
    query, key, value = _agreed(
        heads_of(found.query, sizes, "query"),
        heads_of(found.key, sizes, "key", transposed=True),
        heads_of(found.value, sizes, "value"),
    )
    full: Dims = (query.batch, Size(query.heads), query.length, key.length)
    masks = masks_of(found, full, sizes)
    way_out = _way_out(found.product.outputs[0], full, value.head_size, sizes)
    # fully masked rows exist only where there is another mask
    causal = query.length == key.length and len(masks) == 1 and masks[0].is_causal(sizes)

    q = _flat(query, writer, before)
    if key.parts and value.parts:
        k, v, axis = _flat(key, writer, before), _flat(value, writer, before), 1
    else:
        k, v, axis = _untransposed(found.key, writer, before), found.value, 2
    inputs: list[ir.Value | None] = [q, k, v]
    if masks and not causal:
        inputs += [None, None, bias(masks, full, ((q, 1), (k, axis)), writer, before)]
    attributes: dict[str, Attribute] = {"num_heads": query.heads, "scale": found.scale}
    if causal:
        attributes["unidirectional"] = 1
    (made,) = writer.add(before, "MultiHeadAttention", inputs, attributes, domain=DOMAIN)
    writer.call(made, found.softmax)
    if found.guarded and not causal and not all(mask.is_finite(alone=len(masks) == 1) for mask in masks):
        (bad,) = writer.add(before, "IsNaN", [made])
        (made,) = writer.add(before, "Where", [bad, writer.constant(np.asarray(0, np.float32)), made])
    _lead_out(made, way_out, value, writer, before)


def _flat(heads: Heads, writer: Writer, before: ir.Node) -> ir.Value:
    """(B, L, H * D)."""
    width = heads.heads * heads.head_size.factor
    if not heads.parts:
        apart = writer.transposed(heads.source, (0, 2, 1, 3), before)
        return writer.add(before, "Reshape", [apart, writer.integers(0, 0, width)], key=("flat", apart))[0]
    value = writer.transposed(heads.source, (1, 0, 2), before) if heads.sequence_first else heads.source
    return value if heads.parts == 1 else writer.piece(value, heads.index, heads.parts, width, before)


def _untransposed(key: ir.Value, writer: Writer, before: ir.Node) -> ir.Value:
    """(B, H, L, D) of (B, H, D, L)."""
    for view in views(key, writer.sizes):
        dims = writer.sizes.of(view.source) or ()
        if len(dims) == 4 and not view.chosen and view.axes == tuple(whole(i, dims[i]) for i in (0, 1, 3, 2)):
            return view.source
    return writer.transposed(key, (0, 1, 3, 2), before)


#: how heads are brought together after the product: (the value, whether the sequence comes first, whether in two axes)
_WayOut = tuple[ir.Value, bool, bool] | None


def _way_out(product: ir.Value, full: Dims, head_size: Size, sizes: Sizes) -> _WayOut:
    """Follow the product to where (B, H, S, D) has become (B, S, H * D), or that in another order."""
    batch, heads, rows = (whole(i, full[i]) for i in range(3))
    last = whole(3, head_size)
    merged = len(sizes.of(product) or ()) == 3
    view = View(product, ((*batch, *heads), rows, last) if merged else (batch, heads, rows, last), {})
    both = (*heads, *last)
    goals = {
        (rows, batch, both): (True, False),
        ((*rows, *batch), both): (True, True),
        (batch, rows, both): (False, False),  # where one of them is 1, nothing need move
        ((*batch, *rows), both): (False, True),
    }
    value = product
    while view.axes not in goals:
        node, index = only_use(value) or (None, 0)
        after = moved(view, node.outputs[0], sizes) if node is not None and node.op_type in _MOVING_OUT else None
        if node is None or index or after is None:
            if merged:
                raise Refusal("the heads of the output are not brought together again")
            return None
        value, view = node.outputs[0], after
    return value, *goals[view.axes]


def _lead_out(made: ir.Value, way_out: _WayOut, value: Heads, writer: Writer, before: ir.Node) -> None:
    if way_out is None:
        apart = writer.integers(0, 0, value.heads, value.head_size.factor)
        (made,) = writer.add(before, "Reshape", [made, apart])
        writer.take_over(before.outputs[0], writer.transposed(made, (0, 2, 1, 3), before))
        return
    target, sequence_first, flat = way_out
    if sequence_first:
        made = writer.transposed(made, (1, 0, 2), before)
    width = value.heads * value.head_size.factor
    if flat:
        (made,) = writer.add(before, "Reshape", [made, writer.integers(-1, width)])
    elif not sequence_first:
        # to the same shape, but ORT no longer knows the batch, and so does not fuse SkipLayerNormalization,
        # which on CPUs costs more than the rest gains; see `base.drop_inner_shapes`
        (made,) = writer.add(before, "Reshape", [made, writer.integers(-1, 0, width)])
    writer.take_over(target, made)
