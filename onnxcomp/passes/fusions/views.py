"""Where the axes of a tensor come from, through operators that only move elements.

A Transpose, a Reshape and their like are followed symbolically: every axis is a row of parts of the
source's axes. Two chains of them do the same if they end in the same parts, however they are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxcomp.passes.fusions.size import ONE, Size, integer, permutation
from onnxcomp.passes.fusions.sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Part:
    """A factor of an axis of the source: the axis has `outer * size * inner` elements, row-major."""

    axis: int
    outer: Size
    size: Size
    inner: Size


#: moves in a row that are followed
_LONGEST = 16

#: one entry per axis: its parts from the outermost to the innermost; an axis of size 1 has none
Axes = tuple[tuple[Part, ...], ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor as seen from a source: its axes, and which parts were fixed to one index on the way."""

    source: ir.Value
    axes: Axes
    chosen: Mapping[Part, int]


def whole(axis: int, size: Size) -> tuple[Part, ...]:
    """All of one axis."""
    return () if size == ONE else (Part(axis, ONE, size, ONE),)


def identity(dims: Sequence[Size]) -> Axes:
    """The axes of a tensor seen from itself."""
    return tuple(whole(i, size) for i, size in enumerate(dims))


def views(value: ir.Value, sizes: Sizes) -> Iterator[View]:
    """`value` as seen from itself, from what it was made of, and so on, while elements only move."""
    chain: list[ir.Value] = []
    source: ir.Value | None = value
    while source is not None and len(chain) <= _LONGEST:
        dims = sizes.of(source)
        if dims is not None:
            view: View | None = View(source, identity(dims), {})
            for step in reversed(chain):
                view = None if view is None else moved(view, step, sizes)
            if view is not None:
                yield view
        node = source.producer()
        if node is None or node.domain or node.op_type not in _MOVES:
            return
        chain.append(source)
        source = node.inputs[0]


def moved(view: View, output: ir.Value, sizes: Sizes) -> View | None:
    """The view after the operator that makes `output`; None where it does more than move elements."""
    node = output.producer()
    if node is None or node.domain or node.op_type not in _MOVES:
        return None
    axes = view.axes
    match node.op_type:
        case "Identity":
            return view
        case "Transpose":
            return dataclasses.replace(view, axes=tuple(axes[i] for i in permutation(node, len(axes))))
        case "Unsqueeze" | "Squeeze":
            return _fitted(view, node, sizes)
        case "Reshape":
            dims = sizes.of(output)
            regrouped = None if dims is None else _regrouped([p for axis in axes for p in axis], dims)
            return None if regrouped is None else dataclasses.replace(view, axes=regrouped)
    return _selected(view, output, sizes)


def _fitted(view: View, node: ir.Node, sizes: Sizes) -> View | None:
    """Axes of size 1 come or go."""
    axes, places = list(view.axes), sizes.axes(node)
    if places is None:
        return None
    if node.op_type == "Unsqueeze":
        for place in sorted(p % (len(axes) + len(places)) for p in places):
            axes.insert(place, ())
        return dataclasses.replace(view, axes=tuple(axes))
    gone = {p % len(axes) for p in places}
    if any(axes[i] for i in gone):
        return None
    return dataclasses.replace(view, axes=tuple(a for i, a in enumerate(axes) if i not in gone))


def _regrouped(parts: list[Part], dims: Sequence[Size]) -> Axes | None:
    """Deal the parts out to axes of the given sizes, in order; None where they do not fit."""
    axes = []
    for size in dims:
        axis, need = [], size
        while need != ONE:
            if not parts:
                return None
            first = parts.pop(0)
            more, rest = need.over(first.size), first.size.over(need)
            if more is None and rest is None:
                return None
            if more is None and rest is not None:
                parts.insert(0, Part(first.axis, first.outer * need, rest, first.inner))
                first = Part(first.axis, first.outer, need, rest * first.inner)
            axis.append(first)
            need = more or ONE
        axes.append(tuple(axis))
    return None if parts else tuple(axes)


def _selected(view: View, output: ir.Value, sizes: Sizes) -> View | None:
    """One index of an axis that is a single part: Gather, Slice or Split of one element."""
    node, axes = output.producer(), list(view.axes)
    assert node is not None
    place, index, keep = _selection(node, output.index() or 0, sizes)
    if place is None or index is None or not axes or len(axes[place % len(axes)]) != 1:
        return None
    place %= len(axes)
    (part,) = axes[place]
    if part.size.number is None or not -part.size.number <= index < part.size.number:
        return None
    axes[place : place + 1] = [()] if keep else []
    return View(view.source, tuple(axes), {**view.chosen, part: index % part.size.number})


def _selection(node: ir.Node, output: int, sizes: Sizes) -> tuple[int | None, int | None, bool]:
    """(axis, index, whether the axis stays with size 1)."""
    nothing = (None, None, False)
    if node.op_type == "Gather":
        index = sizes.constants(node.inputs[1])
        if index is None or sizes.of(node.inputs[1]) != ():
            return nothing
        return integer(node, "axis", 0), index[0], False
    if node.op_type == "Split":
        dims = sizes.of(node.outputs[output])
        axis = integer(node, "axis", 0)
        ones = all((d := sizes.of(o)) is not None and d[axis] == ONE for o in node.outputs)
        return (axis, output, True) if dims is not None and ones else nothing
    bounds = [sizes.constants(v) for v in node.inputs[1:]]
    if len(bounds) < 3 or any(b is None or len(b) != 1 for b in bounds):
        return nothing
    (start,), (end,), (axis,) = (b or (0,) for b in bounds[:3])
    step = (bounds[3] or (1,))[0] if len(bounds) > 3 else 1
    return (axis, start, True) if end == start + 1 and step == 1 and start >= 0 else nothing


_MOVES = {"Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
