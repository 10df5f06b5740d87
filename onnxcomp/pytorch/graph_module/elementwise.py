"""Operators that work on each element by itself, broadcasting as NumPy does (opset 7 and later)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call, Operator
from onnxcomp.pytorch.graph_module.dtypes import torch_dtype


def plain(function: Callable[..., Any]) -> Operator:
    """A function of tensors alone as an operator: attributes have no say."""
    return functools.partial(_without_call, function)


def _without_call(function: Callable[..., Any], _: Call, *inputs: Tensor) -> Any:
    return function(*inputs)


def divide(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are cut towards zero."""
    if a.dtype.is_floating_point or b.dtype.is_floating_point:
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """`fmod=1`: the sign of the dividend, as in C; else that of the divisor, as in Python."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def power(_: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


def largest(_: Call, *inputs: Tensor) -> Tensor:
    """Max of one or more."""
    return functools.reduce(torch.maximum, inputs)


def smallest(_: Call, *inputs: Tensor) -> Tensor:
    """Min of one or more."""
    return functools.reduce(torch.minimum, inputs)


def total(_: Call, *inputs: Tensor) -> Tensor:
    """Sum of one or more."""
    return functools.reduce(torch.add, inputs)


def mean(_: Call, *inputs: Tensor) -> Tensor:
    """Mean of one or more."""
    return functools.reduce(torch.add, inputs) / len(inputs)


def clip_6(call: Call, x: Tensor) -> Tensor:
    """Bounds are attributes before opset 11."""
    return x.clamp(call.get("min"), call.get("max")) if call.node.attributes else x


def clip(_: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are inputs; where low is above high, high wins."""
    if low is not None:
        x = torch.maximum(x, low.to(x))
    return x if high is None else torch.minimum(x, high.to(x))


def where(_: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Elements of `a` where the condition holds, else of `b`."""
    return torch.where(condition, a, b)


def is_infinite(call: Call, x: Tensor) -> Tensor:
    """Infinite in a direction that the attributes ask for."""
    positive = torch.isposinf(x) & bool(call.get("detect_positive", 1))
    negative = torch.isneginf(x) & bool(call.get("detect_negative", 1))
    return positive | negative


def cast(call: Call, x: Tensor) -> Tensor:
    """To the type of the attribute `to`; float16 and bfloat16 are the module's own type."""
    return x.to(torch_dtype(ir.DataType(call.get("to")), call.run.dtype))


def cast_like(_: Call, x: Tensor, other: Tensor) -> Tensor:
    """To the type of the second input."""
    return x.to(other.dtype)


def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Drops while the module trains, whatever the graph's own training flag says, as torch's Dropout does."""
    share = call.get("ratio", 0.5) if ratio is None else float(ratio)
    if not call.run.training or share == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    keep = torch.rand_like(x) >= share
    return x * keep / (1 - share), keep
