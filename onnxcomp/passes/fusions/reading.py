"""What every match needs: a refusal with its reason, numbers in the graph, and the only user of a value."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error
    """Why a pattern that looks right is not fused."""


def given(value: ir.Value | None) -> ir.Value:
    """An input that the operator demands."""
    assert value is not None
    return value


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes the value, if it is one of these operators of the default domain."""
    node = None if value is None else value.producer()
    return node if node is not None and not node.domain and (not op_types or node.op_type in op_types) else None


def only_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """(the only node that uses the value, as which input); who reads only its shape does not count."""
    uses = [(node, index) for node, index in value.uses() if node.op_type != "Shape"]
    return uses[0] if len(uses) == 1 and not value.is_graph_output() else None


def must_be_float32(value: ir.Value) -> None:
    """Raises Refusal for another type; one that is not known is left to ORT, which loads the result."""
    if value.dtype not in (None, ir.DataType.FLOAT):
        raise Refusal(f"{str(value.dtype).lower()}: ORT's CPU provider is sure to have the operator for float32 only")


def scalar(value: ir.Value | None) -> float | None:
    """The number in a stored float tensor of one element."""
    tensor = stored(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return None
    return float(np.asarray(tensor.numpy(), dtype=np.float64).reshape(()))


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, nothing computed from one."""
    return None if value is None or value.producer() is not None else value.const_value
