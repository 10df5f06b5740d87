"""Nodes that can take in a factor for each channel of the value they make."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.linear import linear, only_user

#: swaps heads and tokens; its own inverse
_HEADS = [0, 2, 1, 3]


def divide(value: ir.Value, factors: np.ndarray) -> str | None:
    """Change stored numbers so that the value, channels last, comes divided by `factors`.

    Args:
        value: float32, (..., channels); used by nothing that does not want it divided.
        factors: (channels,).

    Returns the operator type that took them in; None, with nothing changed, where none can.
    """
    producer = value.producer()
    if producer is None:
        return None
    if producer.op_type == "LayerNormalization" and not producer.domain:
        return _into_norm(producer, factors)
    made = _values_of_attention(value, len(factors))
    return None if made is None else _into_linear(made, factors)


def _into_norm(norm: ir.Node, factors: np.ndarray) -> str | None:
    held = [v for v in norm.inputs[1:3] if v is not None]
    if any(not _own(v, [len(factors)]) for v in held) or any(o.uses() for o in norm.outputs[1:]):
        return None
    for v in held:
        _divide(v, factors)
    return norm.op_type


def _into_linear(value: ir.Value, factors: np.ndarray) -> str | None:
    """Into the columns of the matrix that makes `value`, and its bias."""
    add = value.producer()
    stored = None
    if add is not None and add.op_type == "Add" and not add.domain:
        found = [linear(v.producer() if v is not None else None) for v in add.inputs]
        made = next((f for f in found if f is not None), None)
    else:
        made = linear(add)
    if made is None or made.shared or made.matrix().shape[1] != len(factors):
        return None
    bias = made.bias()
    if bias is not None:
        stored, value_with_bias = bias
        if value_with_bias is not value:
            return None
    elif made.node.outputs[0] is not value or (made.node.op_type == "Gemm" and len(made.node.inputs) > 2):
        return None
    made.set_matrix(made.matrix() / factors)
    if stored is not None:
        _divide(stored, factors)
    return made.node.op_type


def _values_of_attention(value: ir.Value, channels: int) -> ir.Value | None:
    """The value input (batch, tokens, channels) of the attention that makes `value`, if only that uses it.

    Attention mixes tokens, never channels. Either the fused operator, or its parts: heads split off
    (Reshape, Transpose), MatMul with the probabilities, heads joined (Transpose, Reshape).
    """
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "MultiHeadAttention":
        plain = len(node.inputs) > 2 and not any(v is not None for v in node.inputs[6:])
        biased = len(node.inputs) > 3 and node.inputs[3] is not None
        given_out = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
        found = node.inputs[2] if plain and not biased and not given_out else None
        return found if found is not None and only_user(found) is node else None
    joined = _back(value, "Reshape")
    mixed = _back(joined, "Transpose", perm=_HEADS)
    product = mixed.producer() if mixed is not None else None
    if mixed is None or product is None or product.op_type != "MatMul" or only_user(mixed) is None:
        return None
    split = _back(product.inputs[1], "Transpose", perm=_HEADS)
    source = _back(split, "Reshape")
    if source is None or split is None or joined is None or not _splits_channels(split, channels):
        return None
    chain = [joined, mixed, product.inputs[1], split, source]
    return source if all(v is not None and only_user(v) is not None for v in chain) else None


def _splits_channels(split: ir.Value, channels: int) -> bool:
    """Whether the last two of four axes, as the Reshape's shape states them, hold whole rows of channels."""
    reshape = split.producer()
    shape = reshape.inputs[1] if reshape is not None else None
    joined = shape.producer() if shape is not None else None
    parts = list(joined.inputs) if joined is not None and joined.op_type == "Concat" else [shape]
    sizes: list[int] = []
    for part in reversed(parts):
        tensor = part.const_value if part is not None else None
        if tensor is None:
            break
        sizes = [*tensor.numpy().tolist(), *sizes]
    if len(sizes) < 2:
        return False
    if sizes[:2] == [0, 0]:  # batch and tokens stay, so the rest is the channels
        return len(sizes) == 4
    return min(sizes[-2:]) > 0 and sizes[-2] * sizes[-1] % channels == 0


def _back(value: ir.Value | None, op_type: str, perm: list[int] | None = None) -> ir.Value | None:
    """The input of the node of this type that makes `value`."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type or node.domain:
        return None
    if perm is not None and list(node.attributes.get_ints("perm", [])) != perm:
        return None
    return node.inputs[0]


def _own(value: ir.Value, shape: list[int]) -> bool:
    tensor = value.const_value
    return (
        value.producer() is None
        and tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and list(tensor.shape.numpy()) == shape
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def _divide(value: ir.Value, factors: np.ndarray) -> None:
    tensor = value.const_value
    assert tensor is not None
    value.const_value = ir.Tensor((tensor.numpy() / factors).astype(np.float32), name=value.name)
