"""Windows that slide over the spatial axes: padding and output sizes of convolution and pooling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.graph_module.call import Call


@dataclasses.dataclass(frozen=True)
class Window:
    """One entry per spatial axis each.

    Attributes:
        before, after: elements of padding that the operator declares.
        counts: positions of the window, the size of the output.
        reach: elements of padding behind the input that the last position needs; less than zero where
            the input's end is not reached.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    counts: tuple[int, ...]
    reach: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Size of the window with its gaps."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window over an input of these spatial `sizes`, as the node's attributes say."""
    rank = len(kernel)
    strides = tuple(call.get("strides") or [1] * rank)
    dilations = tuple(call.get("dilations") or [1] * rank)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = call.get("auto_pad", "NOTSET")
    pads = call.get("pads") or [0] * 2 * rank
    before, after, counts, reach = [], [], [], []
    for axis, (size, extent, stride) in enumerate(zip(sizes, extents, strides, strict=True)):
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            low, high = same(-(-size // stride), size, extent, stride, auto)
        elif auto == "VALID":
            low = high = 0
        else:
            low, high = pads[axis], pads[axis + rank]
        room = size + low + high - extent
        count = room // stride + 1
        if call.get("ceil_mode", 0):
            count = -(-room // stride) + 1
            # a window that starts behind the input sees nothing: dropped, as ONNX Runtime and torch do
            count -= (count - 1) * stride >= size + low
        before.append(low)
        after.append(high)
        counts.append(count)
        reach.append((count - 1) * stride + extent - size - low)
    return Window(tuple(kernel), strides, dilations, tuple(before), tuple(after), tuple(counts), tuple(reach))


def same(count: int, size: int, extent: int, stride: int, auto: str) -> tuple[int, int]:
    """(before, after) so that there are `count` positions; SAME_UPPER puts the odd one at the end."""
    total = max((count - 1) * stride + extent - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes with a constant; a negative size cuts."""
    if not any(before) and not any(after):
        return x
    pairs = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return functional.pad(x, pairs, value=value)


def windows(x: Tensor, over: Window) -> Tensor:
    """Every position's elements as a last axis: (..., *counts, kernel elements)."""
    rank = len(over.kernel)
    first = x.ndim - rank
    for axis, (extent, stride) in enumerate(zip(over.extents, over.strides, strict=True)):
        x = x.unfold(first + axis, extent, stride)
    for axis, dilation in enumerate(over.dilations):
        gaps: list[Any] = [..., slice(None, None, dilation), *[slice(None)] * (rank - axis - 1)]
        x = x[tuple(gaps)]
    return x.flatten(-rank)


def ones_like_space(x: Tensor, rank: int) -> Tensor:
    """Ones of x's spatial size, one channel of one sample."""
    return torch.ones((1, 1, *x.shape[-rank:]), dtype=x.dtype, device=x.device)
