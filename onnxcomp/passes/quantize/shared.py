"""Weights that several nodes read, or read turned: each reader gets what it can take in int8, or all stay in float."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import weights
from onnxcomp.passes.quantize import _ort, _uses
from onnxcomp.passes.quantize.names import initializer


def untie(model: ir.Model, request: _ort.Request) -> list[tuple[str, str]]:
    """Store a matrix once for each way in which nodes read it: as a table, as a factor, as a factor turned.

    An embedding that is the output layer too becomes two tensors, each with the scales that its kernel takes;
    `tied.merge` makes one of them again. Only where all readers will be quantized: otherwise the float tensor
    would stay beside.

    Returns names of (table, factor) that were one.
    """
    ties = []
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or value.is_graph_output():
            continue
        readers = _uses.users(value)
        stays = any(_stays(node, index, model, request) for node, index, _ in readers)
        if readers and not stays and not any(turned and node.op_type == "Gather" for node, _, turned in readers):
            named = _split(model, value, tensor, readers)
            if _TABLE in named:
                ties += [(named[_TABLE], name) for kind, name in named.items() if kind != _TABLE]
    return ties


#: how a node reads a matrix: whether it looks up rows, whether a Transpose stands between
_Kind = tuple[bool, bool]
_TABLE: _Kind = (True, False)


def _split(
    model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol, readers: list[tuple[ir.Node, int, bool]]
) -> dict[_Kind, str]:
    """Give each way of reading its own initializer, the first that is not turned the one that is there: {way: name}."""
    kinds = dict.fromkeys((node.op_type == "Gather", turned) for node, _, turned in readers)
    first = next((kind for kind in kinds if not kind[1]), None)
    named = {} if first is None else {first: value.name or ""}
    for kind in kinds:
        if kind != first:
            own = _copy(model, value, tensor, turned=kind[1])
            named[kind] = own.name or ""
            for node, index, turned in readers:
                if (node.op_type == "Gather", turned) == kind:
                    node.replace_input_with(index, own)
    for node in [use.node for use in value.uses() if use.node.op_type == "Transpose"]:
        if not node.outputs[0].uses():
            model.graph.remove(node, safe=True)
    if first is None:
        del model.graph.initializers[value.name or ""]
    return named


def held_back(model: ir.Model, request: _ort.Request) -> Mapping[str, str]:
    """{node that could be quantized: why not}: other readers keep its weight in float, int8 would come on top."""
    found: dict[str, str] = {}
    while True:
        before = len(found)
        for weight in weights(model):
            readers = _uses.users(weight.value)
            staying = {
                node.name or node.op_type: why or found[node.name or ""]
                for node, index, turned in readers
                if (why := _stays(node, index, model, request) or (_TURNED if turned else None)) or node.name in found
            }
            if weight.value.is_graph_output():
                staying["an output of the model"] = "it is given out as it is"
            if not staying or (len(readers) == 1 and not weight.value.is_graph_output()):
                continue
            other, why = next(iter(staying.items()))
            because = f"its weight is also used by {other}, which stays in float ({why})"
            for node, _, _ in readers:
                name = node.name or node.op_type
                if name not in request.exclude:
                    found[name] = staying.get(name, because)
        if len(found) == before:
            return found


_TURNED = "the weight is computed from a stored tensor, not stored itself"


def _stays(node: ir.Node, index: int, model: ir.Model, request: _ort.Request) -> str | None:
    """Why this reader of a weight will not be quantized; None where nothing speaks against it."""
    if node.name in request.exclude:
        return "excluded"
    if node.graph is not model.graph:
        return "inside a subgraph"
    if node.domain or node.op_type not in request.op_types:
        return f"{node.op_type} is not among the operator types to quantize"
    if node.op_type == "Gather" and (index != 0 or node.attributes.get_int("axis", 0) != 0):
        return "Gather along another axis than the first of a stored table"
    if node.op_type in ("Gemm", "MatMul") and index != 1:
        return f"it is not the second factor of the {node.op_type}"
    return None


def _copy(model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol, *, turned: bool) -> ir.Value:
    name = f"{value.name}_turned" if turned else f"{value.name}_again"
    array = tensor.numpy()
    return initializer(model, name, ir.Tensor(np.ascontiguousarray(array.T) if turned else array))
