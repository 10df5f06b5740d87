"""Sums, extremes and norms over axes. Axes are an attribute first, an input since opset 18 (13 for ReduceSum)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call, Operator

#: (x, axes, whether they stay with size 1) -> the reduced tensor
Reduction = Callable[[Tensor, list[int], bool], Tensor]


def by_attribute(reduction: Reduction) -> Operator:
    """The operator whose axes are an attribute; none means all."""
    return functools.partial(_by_attribute, reduction)


def by_input(reduction: Reduction) -> Operator:
    """The operator whose axes are an input; none means all, or no reduction with `noop_with_empty_axes`."""
    return functools.partial(_by_input, reduction)


def _by_attribute(reduction: Reduction, call: Call, x: Tensor) -> Tensor:
    return _reduced(reduction, call, x, call.get("axes"))


def _by_input(reduction: Reduction, call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = None if axes is None else axes.tolist()
    if not given and call.get("noop_with_empty_axes", 0):
        return reduction(x.unsqueeze(0), [0], False)  # each element by itself: a norm takes absolute values
    return _reduced(reduction, call, x, given)


def _reduced(reduction: Reduction, call: Call, x: Tensor, axes: Sequence[int] | None) -> Tensor:
    over = list(axes) if axes else list(range(x.ndim))
    if not over:
        return reduction(x.unsqueeze(0), [0], False)
    return reduction(x, over, bool(call.get("keepdims", 1)))


def add(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Sum, in the type of x."""
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Mean; of integers cut towards zero."""
    if x.dtype.is_floating_point:
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).trunc().to(x.dtype)


def largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Maximum; equal ones share the gradient. Booleans too: whether any holds."""
    if x.dtype == torch.bool:
        return x.to(torch.uint8).amax(axes, keepdim=keep).bool()
    return x.amax(axes, keepdim=keep)


def smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Minimum; equal ones share the gradient. Booleans too: whether all hold."""
    if x.dtype == torch.bool:
        return x.to(torch.uint8).amin(axes, keepdim=keep).bool()
    return x.amin(axes, keepdim=keep)


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Product; torch takes one axis at a time."""
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def absolute(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Sum of absolute values."""
    return add(x.abs(), axes, keep)


def euclidean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Root of the sum of squares; its gradient at zero is zero."""
    if x.dtype.is_floating_point:
        norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=keep)
        return norm
    return squares(x, axes, keep).double().sqrt().to(x.dtype)


def squares(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Sum of squares."""
    return add(x * x, axes, keep)


def log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Logarithm of the sum."""
    return add(x, axes, keep).log()


def log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Logarithm of the sum of exponentials."""
    return x.logsumexp(axes, keepdim=keep)
