"""What the version converters of onnx and onnxscript leave out: operators whose meaning changed, and maps.

Each function is named after what it mends; without it the converters give a wrong model, or one that
does not load, and no word about it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import helper

from onnxcomp.errors import UnsupportedError
from onnxcomp.inspect import all_nodes, infer_shapes
from onnxcomp.model.load import TYPE_PROTO

#: at which Resize got its coordinate transformations
RESIZE = 11

_HARDMAX = 13
_MASK_TYPE, _MASK_VALUE = 10, 12
_GROUP_NORM = 21

_HINT = "re-export the model at a newer opset"


def ir_version(opset: int) -> int:
    """The file format that came with an opset: older ones cannot hold what its operators may need."""
    return int(helper.OP_SET_ID_VERSION_MAP["ai.onnx", opset])


def prepare(model: ir.Model, opset: int) -> None:
    """Rewrite in place what would be converted wrongly on the way to `opset`, or refuse it.

    Rules:
        1. Hardmax took all axes from `axis` on as one until opset 12, and takes one since: it
           stands between Flatten and Reshape then, as onnx's converter does for Softmax.
        2. A mask of Dropout that is used is refused: its type changed in opset 10, its value in 12.
        3. GroupNormalization has a scale per channel since opset 21, one per group before: shapes are
           inferred for the converter, and it is refused where the channels are not known.

    Raises UnsupportedError naming the node.
    """
    before = model.opset_imports[""]
    if before < _HARDMAX <= opset:
        taken = _names(model)
        for node in _all(model, "Hardmax"):
            _flatten(node, taken)
    if any(before < changed <= opset for changed in (_MASK_TYPE, _MASK_VALUE)):
        for node in _all(model, "Dropout"):
            if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
                raise _refusal(node, "its mask is used, and means something else in newer opsets")
    if before < _GROUP_NORM <= opset and _all(model, "GroupNormalization"):
        infer_shapes(model)
        for node in _all(model, "GroupNormalization"):
            if not all(_sizes(value) for value in node.inputs[:3]):
                raise _refusal(node, "the number of its channels is not known")


def has_old_resize(model: ir.Model) -> bool:
    """Whether there is an Upsample, or a Resize, of an opset before `RESIZE`."""
    return model.opset_imports[""] < RESIZE and bool(_all(model, "Upsample", "Resize"))


def enlarges_only(model: ir.Model) -> bool:
    """Whether there is no Resize; an Upsample never reduces."""
    return not _all(model, "Resize")


def mend_resize(model: ir.Model, *, enlarges: bool) -> None:
    """Give each Resize of a model that came from before `RESIZE` the coordinates it had: x_out / scale.

    Nearest rounds down where it enlarges and up where it reduces, as ORT does for the old operators.

    enlarges: none reduces.

    Raises UnsupportedError where the rounding cannot be known.
    """
    for node in _all(model, "Resize"):
        _set(node, "coordinate_transformation_mode", "asymmetric")
        if node.attributes.get_string("mode", "nearest") == "nearest":
            _set(node, "nearest_mode", "floor" if enlarges else _rounding(node))


def _set(node: ir.Node, name: str, value: str) -> None:
    node.attributes[name] = ir.AttrString(name, value)


def _rounding(resize: ir.Node) -> str:
    """'floor' or 'ceil'; both are right for an axis that keeps its size."""
    value = resize.inputs[2] if len(resize.inputs) > 2 else None
    scales = None if value is None else ir.convenience.get_const_tensor(value)
    if scales is None:
        raise _refusal(resize, "its scales are computed, so that its rounding is not known")
    factors = scales.numpy()
    if np.all(factors >= 1):
        return "floor"
    if np.all(factors <= 1):
        return "ceil"
    raise _refusal(resize, "it enlarges one axis and reduces another, which newer opsets round alike")


def _flatten(hardmax: ir.Node, taken: set[str]) -> None:
    """Hardmax(x, axis) becomes Reshape(Hardmax(Flatten(x, axis), axis=1), Shape(x))."""
    source, made, graph = hardmax.inputs[0], hardmax.outputs[0], hardmax.graph
    assert source is not None
    assert graph is not None
    axis = hardmax.attributes.get_int("axis", 1)
    flat = ir.node("Flatten", [source], attributes={"axis": axis})
    shape = ir.node("Shape", [source])
    graph.insert_before(hardmax, [flat, shape])
    hardmax.replace_input_with(0, flat.outputs[0])
    hardmax.attributes["axis"] = ir.AttrInt64("axis", 1)
    back = ir.node("Reshape", [made, shape.outputs[0]])
    ir.convenience.replace_all_uses_with(made, back.outputs[0], replace_graph_outputs=True)
    back.replace_input_with(0, made)
    back.outputs[0].type, back.outputs[0].shape = made.type, made.shape
    name, made.shape = made.name, None
    made.name, back.outputs[0].name = None, name
    graph.insert_after(hardmax, [back])
    for value, part in ((flat.outputs[0], "input"), (made, "flat"), (shape.outputs[0], "shape")):
        value.name = _fresh(f"{name}_{part}", taken)


def _names(model: ir.Model) -> set[str]:
    """Of all values."""
    found = {value.name for node in all_nodes(model) for value in node.outputs}
    for graph in model.graphs():
        found |= {value.name for value in graph.inputs} | set(graph.initializers)
    return {name for name in found if name}


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def take_off_maps(model: ir.Model) -> list[ir.Node]:
    """Cut the nodes (ZipMap) off that give maps out, which onnx-ir cannot hold; their inputs become outputs.

    Raises UnsupportedError where another node uses the map too.
    """
    outputs, cut = model.graph.outputs, []
    for value in [value for value in outputs if TYPE_PROTO in value.meta]:
        node = value.producer()
        if node is None or not node.domain or len(node.outputs) != 1 or value.uses():
            raise UnsupportedError(
                "a map is computed with, which the converters cannot hold", where=value.name, hint=_HINT
            )
        cut.append(node)
        outputs.remove(value)
        outputs.extend(source for source in node.inputs if source is not None and not source.is_graph_output())
        model.graph.remove(node)
    return cut


def put_on_maps(model: ir.Model, cut: list[ir.Node], names: list[str]) -> None:
    """Put the nodes that `take_off_maps` cut off behind the values of `model` with the same names.

    names: of the outputs, in order.
    """
    known = {value.name: value for node in model.graph for value in node.outputs}
    known |= {value.name: value for value in [*model.graph.inputs, *model.graph.initializers.values()]}
    for old in cut:
        inputs = [None if value is None else known[value.name] for value in old.inputs]
        (given,) = old.outputs
        made = ir.Value(name=given.name)
        made.meta[TYPE_PROTO] = given.meta[TYPE_PROTO]
        model.graph.append(
            ir.Node(old.domain, old.op_type, inputs, old.attributes.values(), outputs=[made], name=old.name)
        )
        known[made.name] = made
    outputs = [known[name] for name in names]
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)


def _all(model: ir.Model, *kinds: str) -> list[ir.Node]:
    return [node for node in all_nodes(model) if not node.domain and node.op_type in kinds]


def _sizes(value: ir.Value | None) -> bool:
    """Whether the axis that counts channels or groups has a known size."""
    if value is None or value.shape is None:
        return False
    return isinstance(value.shape[1] if len(value.shape) > 1 else value.shape[0], int)


def _refusal(node: ir.Node, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{node.op_type} cannot be raised: {why}",
        where=node.name or node.outputs[0].name,
        hint=_HINT,
    )
