"""Tables of embeddings in int8: looked up as they are, and only what was found is dequantized.

ORT's quantizer has one scale for a whole table, and in its Q/DQ form dequantizes the table before the
lookup, at each run.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.names import free, initializer

#: rows converted at a time
_ROWS = 1 << 14

#: below it a column's scale would lose digits, or be 0; such a column becomes 0
_SMALLEST = 127 * float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Table:
    """A stored float32 table and the Gather nodes that look up its rows.

    Attributes:
        value: the initializer, (rows, ..., columns).
        lookups: every node that uses it.
    """

    value: ir.Value
    lookups: tuple[ir.Node, ...]


def tables(model: ir.Model, excluded: set[str]) -> list[Table]:
    """Those of the main graph that only Gather nodes along the first axis use, none of them excluded."""
    found = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        users = [use.node for use in value.uses()]
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2 or not tensor.size:
            continue
        if users and not value.is_graph_output() and all(_looks_up(node, value, model, excluded) for node in users):
            found.append(Table(value, tuple(dict.fromkeys(users))))
    return found


def quantize(model: ir.Model, table: Table) -> None:
    """int8 with one scale for each column; DequantizeLinear behind each lookup.

    A column is one feature of all tokens: its largest value is far smaller than the table's.
    """
    tensor = table.value.const_value
    assert tensor is not None
    array = tensor.numpy()
    columns = array.shape[-1]
    peak = np.abs(array).reshape(-1, columns).max(axis=0)
    scale = np.where(peak >= _SMALLEST, peak / 127, 1).astype(np.float32)
    numbers = np.empty(array.shape, np.int8)
    for start in range(0, len(array), _ROWS):
        numbers[start : start + _ROWS] = np.rint(array[start : start + _ROWS] / scale)
    name = table.value.name
    stored = initializer(model, f"{name}_quantized", ir.Tensor(numbers))
    scales = initializer(model, f"{name}_scale", ir.Tensor(scale))
    for node in table.lookups:
        node.replace_input_with(0, stored)
        old = node.outputs[0]
        restore = ir.node(
            "DequantizeLinear", [old, scales], {"axis": -1}, name=free(model, f"{node.name}_DequantizeLinear")
        )
        restored = restore.outputs[0]
        restored.dtype, restored.shape = ir.DataType.FLOAT, old.shape
        old.replace_all_uses_with(restored, replace_graph_outputs=True)
        restore.replace_input_with(0, old)
        restored.name, old.name = old.name, free(model, f"{old.name}_found")
        old.dtype = ir.DataType.INT8
        restore.metadata_props.update(node.metadata_props)
        model.graph.insert_after(node, restore)
    del model.graph.initializers[name or ""]


def _looks_up(node: ir.Node, table: ir.Value, model: ir.Model, excluded: set[str]) -> bool:
    return (
        node.op_type == "Gather"
        and not node.domain
        and node.graph is model.graph
        and node.attributes.get_int("axis", 0) == 0
        and node.inputs[0] is table
        and node.inputs[1] is not table
        and node.name not in excluded
    )
