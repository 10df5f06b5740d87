"""Cut units out of a model: slice what is stored, and write anew what counts channels, parts and shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.base import drop_inner_shapes, drop_unused_initializers
from onnxcomp.passes.fusions.size import Dims, Size, integer
from onnxcomp.passes.prune.analysis import Analysis
from onnxcomp.passes.prune.atoms import RefusedError
from onnxcomp.passes.prune.rules.linear import input_at
from onnxcomp.passes.prune.rules.moving import bounds
from onnxcomp.passes.prune.shapes import SHAPE_INPUTS
from onnxcomp.passes.prune.units import Group

#: initializers of more bytes are sliced when they are written
_LARGE = 1 << 22


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is left of a model.

    Attributes:
        analysis: of the model before the cut.
        mask: whether an atom stays: bool, (atoms,).
    """

    analysis: Analysis
    mask: np.ndarray

    @staticmethod
    def without(analysis: Analysis, units: np.ndarray) -> Kept:
        """Everything but these units (their labels)."""
        gone = np.zeros(int(analysis.labels.max(initial=-1)) + 1, bool)
        gone[units] = True
        return Kept(analysis, ~gone[analysis.labels])

    def units(self, group: Group) -> np.ndarray:
        """Whether each unit of a group stays: bool, (units,)."""
        stays = np.zeros(len(self.analysis.group_of), bool)
        stays[self.analysis.labels] = self.mask
        found: np.ndarray = stays[group.units]
        return found

    def indices(self, value: ir.Value, axis: int) -> np.ndarray | None:
        """The indices of an axis that stay: int64, ascending; None where all do."""
        found = self.mask[self.analysis.atoms.axis(value, axis).atoms]
        return None if found.all() else np.flatnonzero(found)

    def dims(self, value: ir.Value) -> Dims:
        """The sizes after the cut."""
        dims = []
        for i, size in enumerate(self.analysis.atoms.dims(value)):
            left = self.indices(value, i)
            dims.append(size if left is None else Size(len(left), size.names))
        return tuple(dims)

    def cut(self, value: ir.Value | None) -> bool:
        """Whether any axis of a value is."""
        rank = len(self.analysis.atoms.sizes.of(value) or ())
        return value is not None and any(self.indices(value, i) is not None for i in range(rank))

    def of_initializers(self) -> dict[str, dict[int, np.ndarray]]:
        """{initializer: {axis: indices that stay}} of those that are cut."""
        found = {}
        for name, value in self.analysis.model.graph.initializers.items():
            rank = len(self.analysis.atoms.sizes.of(value) or ())
            axes = {i: left for i in range(rank) if (left := self.indices(value, i)) is not None}
            if axes:
                found[name] = axes
        return found


def cut(kept: Kept) -> None:
    """Cut the analysed model in place; shapes of inner values are dropped, and what nothing uses any more.

    Raises RefusedError for a shape that cannot be written anew, with the model half cut: cut a clone.
    """
    graph, stored = kept.analysis.model.graph, kept.of_initializers()
    for node in list(graph):
        rewrite = None if node.domain else _REWRITES.get(node.op_type)
        if rewrite is not None and any(kept.cut(value) for value in (*node.inputs, *node.outputs)):
            rewrite(kept, node)
    for name, axes in stored.items():
        value = graph.initializers[name]
        assert value.const_value is not None
        value.const_value = sliced(value.const_value, axes)
        value.shape = value.const_value.shape  # type: ignore[assignment]
    drop_inner_shapes(kept.analysis.model)
    drop_unused_initializers(kept.analysis.model)


def sliced(tensor: ir.TensorProtocol, axes: Mapping[int, np.ndarray]) -> ir.TensorProtocol:
    """The tensor with these indices of its axes; a large one is made when it is asked for."""
    make = functools.partial(_take, tensor, axes)
    if tensor.nbytes <= _LARGE:
        return make()
    shape = [len(axes[i]) if i in axes else size for i, size in enumerate(tensor.shape.numpy())]
    return ir.LazyTensor(make, tensor.dtype, ir.Shape(shape), name=tensor.name)


def _take(tensor: ir.TensorProtocol, axes: Mapping[int, np.ndarray]) -> ir.TensorProtocol:
    array = tensor.numpy()
    for axis, indices in axes.items():
        array = array.take(indices, axis)
    return ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=tensor.name)


def _group(kept: Kept, node: ir.Node) -> None:
    """Depthwise: a group for each input channel. Other groups lose the same positions, and stay as many."""
    source = node.inputs[0]
    assert source is not None
    if integer(node, "group", 1) == kept.analysis.atoms.dims(source)[1].factor > 1:
        node.attributes["group"] = ir.AttrInt64("group", kept.dims(source)[1].factor)


def _split(kept: Kept, node: ir.Node) -> None:
    """Sizes of the parts."""
    source = node.inputs[0]
    assert source is not None
    axis = integer(node, "axis", 0) % len(kept.dims(source))
    if kept.indices(source, axis) is None:
        return
    sizes = [kept.dims(output)[axis].factor for output in node.outputs]
    if kept.analysis.atoms.opset < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
    else:
        node.attributes.pop("num_outputs", None)
        _set_input(kept, node, 1, sizes)


def _slice(kept: Kept, node: ir.Node) -> None:
    """Where the part starts and ends, counted in what stays."""
    source = node.inputs[0]
    assert source is not None
    cuts = bounds(kept.analysis.atoms, node)
    changed = {axis: left for axis in cuts if (left := kept.indices(source, axis)) is not None}
    if not changed:
        return
    old = "starts" in node.attributes
    starts, ends = (
        list(node.attributes[name].as_ints() if old else kept.analysis.atoms.sizes.constants(node.inputs[i]) or ())
        for i, name in ((1, "starts"), (2, "ends"))
    )
    for i, axis in enumerate(cuts):  # in the order of the node's axes
        if axis in changed:
            low, high, _ = cuts[axis]
            starts[i], ends[i] = (int(np.searchsorted(changed[axis], bound)) for bound in (low, high))
    if old:
        node.attributes["starts"] = ir.AttrInt64s("starts", starts)
        node.attributes["ends"] = ir.AttrInt64s("ends", ends)
    else:
        _set_input(kept, node, 1, starts)
        _set_input(kept, node, 2, ends)


def _shape(kept: Kept, node: ir.Node) -> None:
    """The shape of a Reshape, Expand or Resize: numbers as they are now, names as the graph computes them."""
    index, output = SHAPE_INPUTS[node.op_type], node.outputs[0]
    given = input_at(node, index)
    if given is None:
        return  # a Resize by scales
    sizes = kept.analysis.atoms.sizes
    stored = sizes.constants(given)
    length = (sizes.of(given) or (Size(len(kept.dims(output))),))[0].factor
    axes = node.attributes.get_ints("axes", None) or range(len(kept.dims(output)))[-length:]
    before, after = ([dims[i] for i in axes] for dims in (kept.analysis.atoms.dims(output), kept.dims(output)))
    copies = node.op_type == "Reshape" and not integer(node, "allowzero", 0)
    wanted: list[int | None] = []
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        said = stored[i] if stored is not None else None
        if said is not None and (old == new or said == -1 or (said == 0 and copies)):
            wanted.append(said)
        elif new.number is not None:
            wanted.append(new.number if said != 1 else 1)
        elif old == new:
            wanted.append(None)
        else:
            wanted.append(-1)
    if wanted.count(-1) > 1 or (-1 in wanted and node.op_type != "Reshape"):
        raise RefusedError("its shape cannot be written anew")
    if stored is not None and list(stored) == wanted:
        return
    if None not in wanted:
        _set_input(kept, node, index, [w for w in wanted if w is not None])
    else:
        _assemble(kept, node, index, wanted)


def _assemble(kept: Kept, node: ir.Node, index: int, wanted: list[int | None]) -> None:
    """A shape of numbers and of elements that the graph computes."""
    graph, given = kept.analysis.model.graph, node.inputs[index]
    parts = []
    for i, number in enumerate(wanted):
        if number is not None:
            parts.append(_numbers(kept, [number]))
            continue
        pick = ir.node("Gather", [given, _numbers(kept, [i])], {"axis": 0})
        pick.outputs[0].name = _free_name(kept, f"{node.outputs[0].name}_size")
        graph.insert_before(node, pick)
        parts.append(pick.outputs[0])
    joined = ir.node("Concat", parts, {"axis": 0})
    joined.outputs[0].name = _free_name(kept, f"{node.outputs[0].name}_shape")
    graph.insert_before(node, joined)
    node.replace_input_with(index, joined.outputs[0])


def _set_input(kept: Kept, node: ir.Node, index: int, numbers: list[int]) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    narrow = old is not None and old.const_value is not None and old.const_value.dtype == ir.DataType.INT32
    node.replace_input_with(index, _numbers(kept, numbers, ir.DataType.INT32 if narrow else ir.DataType.INT64))


def _numbers(kept: Kept, numbers: list[int], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    """An initializer of these numbers, one for all that need them."""
    graph = kept.analysis.model.graph
    name = "pruned_" + "_".join(map(str, numbers)).replace("-", "m")
    there = graph.initializers.get(name)
    if there is not None and there.const_value is not None and there.const_value.dtype == dtype:
        held = there.const_value.numpy()
        if held.ndim == 1 and held.tolist() == numbers:
            return there
    name = _free_name(kept, name)
    tensor = ir.tensor(np.array(numbers, dtype.numpy()), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape([len(numbers)]), type=ir.TensorType(dtype))
    graph.register_initializer(value)
    return value


def _free_name(kept: Kept, base: str) -> str:
    graph = kept.analysis.model.graph
    taken = {value.name for node in graph.all_nodes() for value in node.outputs} | set(graph.initializers)
    taken |= {value.name for value in graph.inputs}
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


_REWRITES: Mapping[str, Callable[[Kept, ir.Node], None]] = {
    "Conv": _group,
    "ConvTranspose": _group,
    "Expand": _shape,
    "Reshape": _shape,
    "Resize": _shape,
    "Slice": _slice,
    "Split": _split,
}
