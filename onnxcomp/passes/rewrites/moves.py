"""Rewrites that move, reshape or drop data, and are exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.rewrites.graph import array_of, constant, only_maker, replace, sizes_of

_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")

#: 'to the end', as exporters write it
_END = 2**31 - 1


def reshape_of_view(node: ir.Node, opset: int) -> bool:
    """Reshape to a stored shape does not care how what it gets was shaped before."""
    del opset
    target = _target(node)
    if target is None:
        return False
    source = node.inputs[0]
    while source is not None and (maker := source.producer()) is not None and _keeps_order(maker):
        source = maker.inputs[0]
    if source is None or source is node.inputs[0]:
        return False
    node.replace_input_with(0, source)
    return True


def reshape_to_itself(node: ir.Node, opset: int) -> bool:
    """Reshape to the shape that is there already; one size may be what is left."""
    del opset
    target, sizes = _target(node), sizes_of(node.inputs[0])
    if target is None or sizes is None or len(target) != len(sizes) or target.count(-1) > 1:
        return False
    return all(new in (-1, old) for new, old in zip(target, sizes, strict=True)) and _becomes_input(node)


def reshape_to_computed(node: ir.Node, opset: int) -> bool:
    """A shape put together while running: sizes of the input are 0, stored ones stand, one may be what is left."""
    del opset
    maker = _behind_casts(node.inputs[1] if len(node.inputs) > 1 else None)
    if maker is None or node.attributes.get_int("allowzero", 0) != 0:
        return False
    target: list[int] = []
    if maker.op_type == "Shape" and not maker.attributes:
        sizes = sizes_of(maker.inputs[0])
        target = [-1 if size is None else size for size in sizes] if sizes else [0]
        if 0 in target:
            return False
    elif maker.op_type == "Concat":
        for part in maker.inputs:
            stored, size_of = array_of(part), _size_of(part)
            if stored is not None and stored.ndim == 1 and (stored > 0).all():
                target += [int(size) for size in stored]
            elif size_of is not None and size_of == (node.inputs[0], len(target)):
                target.append(0)
            elif stored is None and sizes_of(part) == [1]:
                target.append(-1)
            else:
                return False
    if not target or target.count(-1) > 1:
        return False
    node.replace_input_with(1, constant(node, np.array(target, np.int64)))
    return True


def unsqueeze_of_reshape(node: ir.Node, opset: int) -> bool:
    """Unsqueeze, or Squeeze of stored ones, of a Reshape that nobody else uses: another Reshape."""
    del opset
    maker, axes = only_maker(node), _axes(node)
    target = None if maker is None or maker.op_type != "Reshape" else _target(maker)
    if maker is None or target is None or axes is None:
        return False
    if node.op_type == "Unsqueeze":
        rank = len(target) + len(axes)
        places = {axis % rank for axis in axes}
        rest = iter(target)
        shape = [1 if i in places else next(rest) for i in range(rank)]
    else:
        places = {axis % len(target) for axis in axes}
        if any(target[i] != 1 for i in places):
            return False
        shape = [size for i, size in enumerate(target) if i not in places]
    if not shape:
        return False
    return replace(node, "Reshape", [maker.inputs[0], constant(node, np.array(shape, np.int64))])


def unsqueeze_of_unsqueeze(node: ir.Node, opset: int) -> bool:
    """Two in a row are one, with the axes of both."""
    maker, outer = only_maker(node), _axes(node)
    inner = None if maker is None or maker.op_type != "Unsqueeze" else _axes(maker)
    if maker is None or inner is None or outer is None or min(*inner, *outer) < 0:
        return False
    free = [axis for axis in range(max(inner) + len(outer) + 1) if axis not in outer]
    axes = sorted([*outer, *(free[axis] for axis in inner)])
    if opset < 13:
        return replace(node, "Unsqueeze", [maker.inputs[0]], {"axes": axes})
    return replace(node, "Unsqueeze", [maker.inputs[0], constant(node, np.array(axes, np.int64))])


def squeeze_of_unsqueeze(node: ir.Node, opset: int) -> bool:
    """Axes that were put in and are taken out."""
    del opset
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if maker is None or maker.domain or maker.op_type != "Unsqueeze":
        return False
    inner, outer = _axes(maker), _axes(node)
    if inner is None or outer is None or sorted(inner) != sorted(outer):
        return False
    return replace(node, "Identity", [maker.inputs[0]])


def slice_of_slice(node: ir.Node, opset: int) -> bool:
    """Slices along different axes are one, if all that the first gives is sliced like that."""
    if opset < 10 or node.inputs[0] is None:
        return False
    middle = node.inputs[0]
    maker = middle.producer()
    if maker is None or maker.domain or maker.op_type != "Slice" or middle.is_graph_output():
        return False
    first = _ranges(maker)
    users = {
        use.node: _ranges(use.node) if use.node.op_type == "Slice" and use.idx == 0 else None for use in middle.uses()
    }
    if (
        first is None
        or any(r is None or {*r} & {*first} for r in users.values())
        or not _same_graph(node, *users, maker)
    ):
        return False
    mine = users[node]
    assert mine is not None
    both = {**first, **mine}
    columns = [[both[axis][i] for axis in both] for i in range(2)] + [[*both], [both[axis][2] for axis in both]]
    parameters = [constant(node, np.array(column, np.int64)) for column in columns]
    return replace(node, "Slice", [maker.inputs[0], *parameters])


def slice_of_all(node: ir.Node, opset: int) -> bool:
    """From the first to the last."""
    ranges = None if opset < 10 else _ranges(node, negative=True)
    if ranges is None:
        return False
    sizes = sizes_of(node.inputs[0])
    for axis, (start, end, step) in ranges.items():
        size = None if sizes is None else sizes[axis]
        if start != 0 or step != 1 or (end < _END and (size is None or end < size)):
            return False
    return _becomes_input(node)


def pad_by_nothing(node: ir.Node, opset: int) -> bool:
    """Pads that are all 0."""
    pads = array_of(node.inputs[1]) if opset >= 11 else np.array(node.attributes.get_ints("pads", [1]))
    return pads is not None and not pads.any() and _becomes_input(node)


def split_in_one(node: ir.Node, opset: int) -> bool:
    """One part is the whole."""
    del opset
    return len(node.outputs) == 1 and _becomes_input(node)


def idle_dropout(node: ir.Node, opset: int) -> bool:
    """Dropout of a model that does not train; before opset 12 there is no other."""
    mask_used = len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
    if mask_used or (opset >= 12 and len(node.inputs) > 2 and node.inputs[2] is not None):
        return False
    return _becomes_input(node)


def concat_of_concat(node: ir.Node, opset: int) -> bool:
    """A Concat along the same axis that nobody else uses is spliced in; a Concat of one is none."""
    del opset
    axis = node.attributes.get_int("axis", 0)
    parts: list[ir.Value | None] = []
    for value in node.inputs:
        maker = None if value is None else value.producer()
        ours = (
            maker is not None
            and value is not None
            and maker.op_type == "Concat"
            and not maker.domain
            and maker.attributes.get_int("axis", 0) == axis
            and len(value.uses()) == 1
            and not value.is_graph_output()
            and maker.graph is node.graph
        )
        parts += maker.inputs if ours and maker is not None else [value]
    if len(node.inputs) == 1:
        return _becomes_input(node)
    return len(parts) > len(node.inputs) and replace(node, "Concat", parts, {"axis": axis})


def _behind_casts(value: ir.Value | None) -> ir.Node | None:
    """The node of onnx's own domain that makes a shape, whatever integers it was cast to."""
    maker = None if value is None else value.producer()
    while maker is not None and maker.op_type == "Cast" and not maker.domain and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return None if maker is None or maker.domain else maker


def _size_of(value: ir.Value | None) -> tuple[ir.Value | None, int] | None:
    """(x, axis) if the value is one number, the size of x along an axis."""
    maker = _behind_casts(value)
    while maker is not None and maker.op_type in _VIEWS:
        maker = _behind_casts(maker.inputs[0])
    if maker is None or maker.op_type not in ("Gather", "Slice"):
        return None
    shape = _behind_casts(maker.inputs[0])
    if shape is None or shape.op_type != "Shape" or shape.attributes:
        return None
    if maker.op_type == "Slice":
        ranges = _ranges(maker)
        start, end, step = (ranges or {}).get(0, (-1, 0, 0))
        return (shape.inputs[0], start) if start >= 0 and end == start + 1 and step == 1 else None
    index = array_of(maker.inputs[1])
    return None if index is None or index.size != 1 or index.item() < 0 else (shape.inputs[0], int(index.item()))


def _keeps_order(node: ir.Node) -> bool:
    """Whether the elements come out in the order in which they came in."""
    if node.domain:
        return False
    if node.op_type in _VIEWS:
        return True
    sizes = sizes_of(node.inputs[0]) if node.op_type == "Transpose" else None
    if sizes is None:
        return False
    order = node.attributes.get_ints("perm", range(len(sizes))[::-1])
    moving = [axis for axis in order if sizes[axis] != 1]
    return moving == sorted(moving)


def _target(node: ir.Node) -> list[int] | None:
    """The stored shape of a Reshape; None if it takes sizes from its input (0)."""
    stored = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if stored is None or (stored == 0).any() else [int(size) for size in stored]


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze, an attribute before opset 13, then an input."""
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes", []))
    stored = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if stored is None or not stored.size else [int(axis) for axis in stored]


def _ranges(node: ir.Node, *, negative: bool = False) -> dict[int, tuple[int, int, int]] | None:
    """{axis: (start, end, step)} of a Slice with stored parameters; axes from the end only if asked for."""
    arrays = [array_of(value) for value in node.inputs[1:]]
    if len(arrays) < 2 or any(v is not None and a is None for v, a in zip(node.inputs[1:], arrays, strict=True)):
        return None
    starts, ends, axes, steps = [*arrays, None, None][:4]
    if starts is None or ends is None:
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    if (axes < 0).any() and not negative:
        return None
    columns = zip(axes, starts, ends, steps, strict=True)
    return {int(axis): (int(start), int(end), int(step)) for axis, start, end, step in columns}


def _becomes_input(node: ir.Node) -> bool:
    return replace(node, "Identity", [node.inputs[0]])


def _same_graph(*nodes: ir.Node) -> bool:
    return len({id(node.graph) for node in nodes}) == 1
