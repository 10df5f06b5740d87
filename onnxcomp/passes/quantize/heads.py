"""Channels of a value, and where attention has them from: it mixes tokens, never channels."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from onnxcomp.passes.quantize.linear import only_user
from onnxcomp.passes.quantize.stored import is_alone

#: swaps heads and tokens; its own inverse
_HEADS = [0, 2, 1, 3]

#: takes queries, keys and values, which lie behind the tokens, to the front
_PACKED = [2, 0, 3, 1, 4]


@dataclasses.dataclass(frozen=True)
class Channels:
    """Some neighbours on the last axis of a value.

    Attributes:
        start: the first.
        count: how many.
        of: size of the axis.
        rank: axes of the value, where that is known.
    """

    start: int
    count: int
    of: int
    rank: int | None = None


def fused_values(node: ir.Node) -> ir.Value | None:
    """What a fused attention, all of three axes, mixes, channel for channel; None for any other node."""
    given_out = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if len(node.inputs) < 3 or given_out:
        return None
    if (node.domain, node.op_type) == ("com.microsoft", "MultiHeadAttention"):
        return None if any(v is not None for v in node.inputs[6:]) else node.inputs[2]
    heads = node.attributes.get_int("q_num_heads", 0)
    if _is_attention(node) and heads and heads == node.attributes.get_int("kv_num_heads", 0):
        return node.inputs[2]
    return None


def split_values(node: ir.Node, channels: Channels) -> tuple[ir.Value, Channels] | None:
    """The same for attention in parts, by the Reshape that joins its heads: the value that they were split off from.

    Heads are split by Reshape and Transpose, mixed by MatMul with the probabilities or by Attention, joined by
    Transpose and Reshape. Queries, keys and values may be one tensor before.
    """
    mixed = _back(node.outputs[0], "Reshape")
    mixer = _back(mixed, "Transpose", _HEADS)
    product = mixer.producer() if mixer is not None else None
    if mixed is None or mixer is None or product is None or not (is_alone(mixed) and is_alone(mixer)):
        return None
    if product.op_type == "MatMul":
        values = product.inputs[1]
    elif _is_attention(product) and not any(o.uses() for o in product.outputs[1:]):
        values = product.inputs[2]
    else:
        return None
    if values is None or not is_alone(values):
        return None
    return _apart(values, channels) or _packed(values, channels)


def keeps_channels(reshape: ir.Node, channels: Channels) -> bool:
    """Whether a Reshape states the size of the last axis, and it is as many channels."""
    return _trailing(reshape)[-1:] == [channels.of]


def behind_split(value: ir.Value, channels: Channels) -> tuple[ir.Value, Channels] | None:
    """Where a Split along the last axis has the value from, if nothing but the Split uses that."""
    node = value.producer()
    if node is None or node.op_type != "Split" or node.domain or node.inputs[0] is None:
        return None
    axis, rank = node.attributes.get_int("axis", 0), channels.rank
    if rank is None and value.shape is not None:
        rank = len(value.shape)
    stated = node.inputs[1] if len(node.inputs) > 1 else None
    if axis not in (-1, None if rank is None else rank - 1) or stated is None or stated.const_value is None:
        return None
    sizes = [int(size) for size in stated.const_value.numpy()]
    number = list(node.outputs).index(value)
    if sizes[number] != channels.of or only_user(node.inputs[0]) is not node:
        return None
    start = channels.start + sum(sizes[:number])
    return node.inputs[0], Channels(start, channels.count, sum(sizes), rank)


def _apart(values: ir.Value, channels: Channels) -> tuple[ir.Value, Channels] | None:
    split = _back(values, "Transpose", _HEADS)
    source = _back(split, "Reshape")
    if split is None or source is None or not is_alone(split) or not is_alone(source):
        return None
    sizes = _trailing(split.producer())
    if sizes[:2] == [0, 0]:  # batch and tokens stay, so the rest is the channels
        whole = len(sizes) == 4
    else:
        whole = len(sizes) > 1 and min(sizes[-2:]) > 0 and sizes[-2] * sizes[-1] % channels.of == 0
    return (source, dataclasses.replace(channels, rank=None)) if whole else None


def _packed(values: ir.Value, channels: Channels) -> tuple[ir.Value, Channels] | None:
    """Where values are one entry of the axis that `_PACKED` takes to the front."""
    picker = values.producer()
    if picker is not None and picker.op_type == "Squeeze" and not picker.domain:
        sliced = picker.inputs[0]
        picker = sliced.producer() if sliced is not None and is_alone(sliced) else None
    front = picker.inputs[0] if picker is not None else None
    split = _back(front, "Transpose", _PACKED)
    source = _back(split, "Reshape")
    if picker is None or front is None or split is None or source is None or front.is_graph_output():
        return None
    ours = _entries(picker)
    others = [_entries(use.node) for use in front.uses() if use.node is not picker]
    sizes = _trailing(split.producer())[-3:]
    if ours is None or len(ours) != 1 or any(other is None or ours[0] in other for other in others):
        return None
    if len(sizes) < 3 or min(sizes) <= 0 or ours[0] >= sizes[0] or sizes[1] * sizes[2] != channels.of:
        return None
    found = Channels(ours[0] * channels.of + channels.start, channels.count, sizes[0] * channels.of)
    return (source, found) if is_alone(split) and is_alone(source) else None


def _entries(node: ir.Node) -> range | None:
    """Which entries of the first axis a Gather or Slice takes; None for what cannot be told."""
    if node.domain or node.op_type not in ("Gather", "Slice"):
        return None
    stated = [_numbers(value) for value in node.inputs[1:]]
    if any(numbers is None or len(numbers) != 1 or numbers[0] < 0 for numbers in stated):
        return None
    numbers = [numbers[0] for numbers in stated if numbers]
    if node.op_type == "Gather":
        return range(numbers[0], numbers[0] + 1) if node.attributes.get_int("axis", 0) == 0 else None
    start, end, axis, step = [*numbers, *[0, 1][len(numbers) - 2 :]]
    return range(start, end) if (axis, step) == (0, 1) else None


def _is_attention(node: ir.Node) -> bool:
    """The standard operator, without keys and values of the past."""
    return node.op_type == "Attention" and not node.domain and not any(v is not None for v in node.inputs[4:])


def _trailing(reshape: ir.Node | None) -> list[int]:
    """The sizes that a Reshape states, from the first behind which all are known."""
    shape = reshape.inputs[1] if reshape is not None else None
    joined = shape.producer() if shape is not None else None
    parts = list(joined.inputs) if joined is not None and joined.op_type == "Concat" else [shape]
    sizes: list[int] = []
    for part in reversed(parts):
        numbers = _numbers(part)
        if numbers is None:
            break
        sizes = [*numbers, *sizes]
    return sizes


def _numbers(value: ir.Value | None) -> list[int] | None:
    tensor = value.const_value if value is not None and value.producer() is None else None
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def _back(value: ir.Value | None, op_type: str, perm: list[int] | None = None) -> ir.Value | None:
    """The input of the node of this type that makes `value`."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type or node.domain:
        return None
    if perm is not None and list(node.attributes.get_ints("perm", [])) != perm:
        return None
    return node.inputs[0]
