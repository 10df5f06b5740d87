"""One int8 tensor for an embedding that is the output layer too, after each got its own from the quantizer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.names import initializer


def merge(model: ir.Model, ties: Iterable[tuple[str, str]]) -> None:
    """Let lookups read the numbers of the product, which has one scale for each row of the table.

    The factor of a product is stored turned where its kernel wants it so; the file then holds the table, and ORT
    turns it once, when it loads the model.

    Args:
        model: quantized.
        ties: names of the float tensors of table and factor, from `shared.untie`.
    """
    held = model.graph.initializers
    for table, factor in ties:
        numbers = held.get(f"{table}_quantized")
        product, scale, zero = (held.get(f"{factor}_{part}") for part in ("quantized", "scale", "zero_point"))
        if numbers is None or product is None or scale is None or zero is None:
            continue
        rows = _rows(numbers, product, scale, zero)
        if rows is not None:
            _share(model, numbers, product, scale, turned=rows)
            del held[f"{table}_quantized"]
            held.pop(f"{table}_scale", None)


def _rows(numbers: ir.Value, product: ir.Value, scale: ir.Value, zero: ir.Value) -> bool | None:
    """Whether the product's numbers are stored turned; None where they cannot serve as a table."""
    table, factor, scales, zeros = (v.const_value for v in (numbers, product, scale, zero))
    if table is None or factor is None or scales is None or zeros is None or np.any(zeros.numpy()):
        return None
    shape, own = tuple(table.shape.numpy()), tuple(factor.shape.numpy())
    if factor.dtype != ir.DataType.INT8 or tuple(scales.shape.numpy()) != shape[:1] or shape[0] == shape[1]:
        return None
    return None if own not in (shape, shape[::-1]) else own != shape


def _share(model: ir.Model, numbers: ir.Value, product: ir.Value, scale: ir.Value, *, turned: bool) -> None:
    lookups = [use.node for use in numbers.uses()]
    stored = _turn(model, product) if turned else product
    for gather in lookups:
        gather.replace_input_with(0, stored)
        found = gather.outputs[0]
        for restore in [use.node for use in found.uses()]:
            _scale_rows(model, gather, restore, scale)


def _scale_rows(model: ir.Model, gather: ir.Node, restore: ir.Node, scale: ir.Value) -> None:
    """Put the scales of the rows that were found in the place of those of the columns."""
    out = restore.outputs[0]
    last = initializer(model, f"{out.name}_axis", ir.Tensor(np.array([-1])))
    scales = ir.node("Gather", [scale, gather.inputs[1]], name=f"{gather.name}_scales")
    column = ir.node("Unsqueeze", [scales.outputs[0], last], name=f"{gather.name}_Unsqueeze")
    cast = ir.node("Cast", gather.outputs, {"to": ir.DataType.FLOAT}, name=f"{gather.name}_Cast")
    restored = ir.node("Mul", [cast.outputs[0], column.outputs[0]], name=f"{gather.name}_Mul")
    for part, end in ((scales, "scales"), (column, "column"), (cast, "numbers")):
        part.outputs[0].name = f"{out.name}_{end}"
    model.graph.insert_before(restore, [scales, column, cast, restored])
    name, restored.outputs[0].type, restored.outputs[0].shape = out.name, out.type, out.shape
    out.replace_all_uses_with(restored.outputs[0], replace_graph_outputs=True)
    model.graph.remove(restore, safe=True)
    restored.outputs[0].name = name


def _turn(model: ir.Model, product: ir.Value) -> ir.Value:
    """Store the transpose, and turn it in the graph."""
    tensor = product.const_value
    assert tensor is not None
    name = product.name or ""
    stored = initializer(model, f"{name}_rows", ir.Tensor(np.ascontiguousarray(tensor.numpy().T)))
    turn = ir.node("Transpose", [stored], {"perm": [1, 0]}, name=f"{name}_Transpose")
    first = next(iter(model.graph))
    model.graph.insert_before(first, turn)
    product.replace_all_uses_with(turn.outputs[0])
    del model.graph.initializers[name]
    turn.outputs[0].name = name
    return stored
