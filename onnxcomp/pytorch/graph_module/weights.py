"""The tensors that a model stores, as torch holds them: names, which of them train, and the way back."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Container, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxcomp.errors import GateError
from onnxcomp.inspect import constants
from onnxcomp.pytorch.graph_module.dtypes import TRAINABLE, to_torch
from onnxcomp.pytorch.graph_module.registry import HOST

#: operator -> inputs that are floats but no weights: statistics, bounds, steps; and exponents, whose
#: gradient is undefined for negative bases
_FIXED: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "DequantizeLinear": (1, 2),
    "Pow": (1,),
    "QuantizeLinear": (1, 2),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
}

#: operators whose inputs are weights even where they are one number
_WEIGHTED = frozenset(
    {
        *("BatchNormalization", "BiasGelu", "Conv", "ConvTranspose", "FusedConv", "FusedMatMul", "GRU", "Gemm"),
        *("GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "PRelu", "RNN"),
        *("RMSNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    }
)

#: attributes of Constant that hold numbers instead of a tensor
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def escape(name: str, reserved: Container[str] = ()) -> str:
    """A name that a torch module takes, from that of a tensor; `unescape` gives it back.

    Percent signs and dots are written as in addresses; so is the first letter of a `reserved` name,
    which the module has for itself. A lone percent sign stands for an empty name.
    """
    safe = name.replace("%", "%25").replace(".", "%2E")
    if not safe:
        return "%"
    return "".join(f"%{byte:02X}" for byte in safe[0].encode()) + safe[1:] if safe in reserved else safe


def unescape(name: str) -> str:
    """The tensor's name behind a parameter's."""
    return "" if name == "%" else urllib.parse.unquote(name)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of the model.

    Attributes:
        value: what the graph calls it; initializers of branches and values of Constant nodes too.
        tensor: a copy of its elements.
        trainable: whether it is float, and no setting of an operator, and so a Parameter.
        trained: whether its gradient is wanted from the start.
    """

    value: ir.Value
    tensor: Tensor
    trainable: bool
    trained: bool


def plain_constants(model: ir.Model) -> None:
    """Give numbers and lists in Constant nodes the form of a tensor, in place; strings and sparse ones stay."""
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) != ("", "Constant"):
            continue
        for name, dtype in _NUMBERS.items():
            if name in node.attributes:
                array = np.array(node.attributes[name].value, dtype)
                node.attributes.clear()
                node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array))
                break


def stored(model: ir.Model) -> list[Stored]:
    """All tensors of the model, always in the same order."""
    found = []
    for value, tensor in constants(model):
        trainable = tensor.dtype in TRAINABLE and not _is_setting(value)
        found.append(Stored(value, to_torch(tensor), trainable, trainable and _is_weight(value, tensor)))
    return found


def _is_setting(value: ir.Value) -> bool:
    """Whether it is only read as a size or a scale of one: no gradient can reach it."""
    uses = value.uses()
    return bool(uses) and all(at in HOST.get(node.op_type, ()) for node, at in uses)


def _is_weight(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Whether something but bounds, statistics and numbers of a formula reads it."""
    read = [(node, at) for node, at in value.uses() if at not in _unfit(node.op_type)]
    if tensor.size != 1:
        return bool(read)
    # one number is no weight because it is stored: 0.5 of a Gelu, and torch's scale of attention, shaped (1,)
    return any(node.op_type in _WEIGHTED or (len(tensor.shape) == 1 and _adds_bias(node, at)) for node, at in read)


def _adds_bias(node: ir.Node, position: int) -> bool:
    """Whether the node adds the input at `position` to a product of matrices."""
    others = (value.producer() for at, value in enumerate(node.inputs) if value is not None and at != position)
    return node.op_type == "Add" and any(other is not None and other.op_type == "MatMul" for other in others)


def _unfit(op_type: str) -> tuple[int, ...]:
    return HOST.get(op_type, ()) + _FIXED.get(op_type, ())


def write(model: ir.Model, trained: Sequence[Tensor | None]) -> None:
    """Put tensors into the model in place, in the order of `stored`, each in its own type; None leaves one as it is.

    Raises GateError where a value is beyond the type's range.
    """
    for (value, before), tensor in zip(list(constants(model)), trained, strict=True):
        if tensor is None:
            continue
        after = _converted(value, before, tensor)
        if after.tobytes() == before.tobytes():
            continue  # as it is stored, mapped from its file perhaps
        node = value.producer()
        if node is None:
            value.const_value = after
        else:
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", after)


def _converted(value: ir.Value, before: ir.TensorProtocol, tensor: Tensor) -> ir.TensorProtocol:
    # float64 holds every type that is trained; a cast of a cast is exact where the first one is
    exact = tensor.detach().to("cpu", torch.float64).numpy()
    with np.errstate(over="ignore"):
        array = exact.astype(before.dtype.numpy())
    if not np.array_equal(np.isfinite(array.astype(np.float64)), np.isfinite(exact)):
        raise GateError(
            f"trained values are beyond the range of {before.dtype.name.lower()}",
            where=str(value.name),
            hint="train with a smaller step, or give the model in float32",
        )
    return ir.Tensor(array, dtype=before.dtype, name=before.name)
