"""Operators that read or write by index, sort or search. Negative indices count from the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call

#: ONNX's names of reductions -> torch's
_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of one axis, in the shape of the indices."""
    axis = call.get("axis", 0) % x.ndim
    found = x.index_select(axis, _positive(indices, x.shape[axis]).reshape(-1))
    return found.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """One element for each index, along one axis."""
    axis = call.get("axis", 0)
    return x.gather(axis, _positive(indices, x.shape[axis]))


def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """The last axis of the indices holds coordinates, behind `batch_dims` shared axes."""
    batch = call.get("batch_dims", 0)
    shared = x.shape[:batch]
    flat = x.reshape(shared.numel(), *x.shape[batch:])
    coordinates = indices.long().reshape(shared.numel(), -1, indices.shape[-1])
    rows = torch.arange(shared.numel(), device=x.device).unsqueeze(1)
    found = flat[(rows, *coordinates.unbind(-1))]
    return found.reshape(indices.shape[:-1] + x.shape[batch + indices.shape[-1] :])


def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """A copy of x with one element written for each index, along one axis."""
    axis, how = call.get("axis", 0), call.get("reduction", "none")
    at = _positive(indices, x.shape[axis])
    if how == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, _REDUCE[how], include_self=True)


def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """A copy of x with slices written at coordinates."""
    depth = indices.shape[-1]
    sizes = x.shape[:depth]
    strides = [sizes[i + 1 :].numel() for i in range(depth)]
    parts = indices.unbind(-1)
    flat = sum(
        (_positive(part, n) * step for part, n, step in zip(parts, sizes, strides, strict=True)),
        start=torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device),
    )
    rows = x.reshape(sizes.numel(), -1)
    written = updates.reshape(flat.numel(), -1)
    at = flat.reshape(-1, 1).expand_as(written)
    how = call.get("reduction", "none")
    if how == "none":
        return rows.scatter(0, at, written).reshape(x.shape)
    return rows.scatter_reduce(0, at, written, _REDUCE[how], include_self=True).reshape(x.shape)


def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """`values` = (off, on); indices outside of [-depth, depth) are off everywhere."""
    count = int(depth.reshape(()))
    axis = call.get("axis", -1)
    at = indices.long().unsqueeze(axis)
    at = torch.where(at < 0, at + count, at)
    places = [1] * at.ndim
    places[axis] = count
    hit = at == torch.arange(count, device=at.device).reshape(places)
    return torch.where(hit, values[1], values[0])


def top_k_1(call: Call, x: Tensor) -> Any:
    """The count is an attribute before opset 10."""
    return _top(x, call.get("k"), call.get("axis", -1), largest=True)


def top_k(call: Call, x: Tensor, k: Tensor) -> Any:
    """Values and indices of the k largest or smallest, in order; the first of equal ones first."""
    return _top(x, int(k.reshape(())), call.get("axis", -1), largest=bool(call.get("largest", 1)))


def _top(x: Tensor, count: int, axis: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    # torch.topk leaves the order of equal elements open; a stable sort does not
    at = x.argsort(dim=axis, descending=largest, stable=True).narrow(axis, 0, count)
    return x.gather(axis, at), at


def arg_max(call: Call, x: Tensor) -> Tensor:
    """Where the maximum is: the first of equal ones, or the last."""
    return _extreme(call, x, torch.argmax)


def arg_min(call: Call, x: Tensor) -> Tensor:
    """Where the minimum is: the first of equal ones, or the last."""
    return _extreme(call, x, torch.argmin)


def _extreme(call: Call, x: Tensor, find: Callable[[Tensor, int, bool], Tensor]) -> Tensor:
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    if not call.get("select_last_index", 0):
        return find(x, axis, keep)
    last: int = x.shape[axis] - 1
    return find(x.flip(axis), axis, keep).neg() + last


def non_zero(_: Call, x: Tensor) -> Tensor:
    """Coordinates of elements that are not zero: (axes, elements)."""
    return x.nonzero().T


def cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Running sum along an axis, `exclusive` of the element itself, from the end with `reverse`."""
    at = int(axis.reshape(()))
    x = x.flip(at) if call.get("reverse", 0) else x
    total = x.cumsum(at, dtype=x.dtype)
    total = total - x if call.get("exclusive", 0) else total
    return total.flip(at) if call.get("reverse", 0) else total


def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Slices of an axis (elements, without one) where the condition holds; it may be shorter than the axis."""
    axis = call.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """The first elements of each sequence in reverse, as many as its length says."""
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    moved = x.movedim((batch, time), (0, 1))
    at = torch.arange(moved.shape[1], device=x.device).expand(moved.shape[:2])
    ends = lengths.long().unsqueeze(1)
    at = torch.where(at < ends, ends - 1 - at, at)
    rows = torch.arange(moved.shape[0], device=x.device).unsqueeze(1)
    return moved[rows, at].movedim((0, 1), (batch, time))
