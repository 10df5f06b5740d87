"""Pad: around a tensor with a constant, its edge, its mirror image or itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call
from onnxcomp.pytorch.graph_module.window import pad as pad_constant


def pad_2(call: Call, x: Tensor) -> Tensor:
    """Sizes and value are attributes before opset 11."""
    return _padded(x, call.get("pads"), call.get("mode", "constant"), call.get("value", 0.0), None)


def pad_11(call: Call, x: Tensor, sizes: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    """Sizes: those before each axis, then those after; negative ones cut."""
    constant = 0.0 if value is None or value.numel() == 0 else value.reshape(()).item()
    over = None if axes is None else axes.tolist()
    return _padded(x, sizes.tolist(), call.get("mode", "constant"), constant, over)


def _padded(x: Tensor, sizes: Sequence[int], mode: str, value: float, axes: Sequence[int] | None) -> Tensor:
    before, after = [0] * x.ndim, [0] * x.ndim
    half = len(sizes) // 2
    for at, axis in enumerate(axes if axes is not None else range(half)):
        before[axis], after[axis] = sizes[at], sizes[at + half]
    if mode == "constant":
        if x.dtype == torch.bool:
            return pad_constant(x.to(torch.uint8), before, after, float(value)).bool()
        return pad_constant(x, before, after, value)
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            x = x.index_select(axis, _sources(x.shape[axis], low, high, mode).to(x.device))
    return x


def _sources(size: int, low: int, high: int, mode: str) -> Tensor:
    """Which element stands at each place of the padded axis. A cut comes first, then the padding of what is left."""
    first, last = max(-low, 0), size - max(-high, 0)
    at = torch.arange(-max(low, 0), last - first + max(high, 0))
    count = last - first
    if mode == "edge":
        at = at.clamp(0, count - 1)
    elif mode == "wrap":
        at = at % count
    else:
        period = max(2 * (count - 1), 1)
        at = at % period
        at = torch.where(at < count, at, period - at)
    return at + first
