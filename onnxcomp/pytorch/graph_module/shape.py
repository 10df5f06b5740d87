"""Operators that move, cut, join or repeat elements, and those that make shapes. Sizes are integers on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call

_END = (1 << 63) - 1


def shape(call: Call, x: Tensor) -> Tensor:
    """The sizes of x from axis `start` to `end`."""
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end", _END)], dtype=torch.int64)


def size(_: Call, x: Tensor) -> Tensor:
    """How many elements x has."""
    return torch.tensor(x.numel())


def reshape(call: Call, x: Tensor, target: Tensor) -> Tensor:
    """0 keeps an axis (unless `allowzero`), -1 takes what is left."""
    sizes = target.tolist()
    if not call.get("allowzero", 0):
        sizes = [x.shape[axis] if n == 0 else n for axis, n in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: Call, x: Tensor) -> Tensor:
    """Two axes: all before `axis`, all from it on."""
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


def squeeze_1(call: Call, x: Tensor) -> Tensor:
    """Axes are an attribute before opset 13."""
    return _squeezed(x, call.get("axes"))


def squeeze(_: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of size 1: those given, or all."""
    return _squeezed(x, None if axes is None else axes.tolist())


def _squeezed(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    if axes is None:
        return x.squeeze()
    dropped = {axis % x.ndim for axis in axes}
    if any(x.shape[axis] != 1 for axis in dropped):
        raise RuntimeError(f"Squeeze of axes {sorted(dropped)} of a tensor of shape {list(x.shape)}")
    return x.squeeze(tuple(dropped)) if dropped else x


def unsqueeze_1(call: Call, x: Tensor) -> Tensor:
    """Axes are an attribute before opset 13."""
    return _unsqueezed(x, call.get("axes"))


def unsqueeze(_: Call, x: Tensor, axes: Tensor) -> Tensor:
    """New axes of size 1, numbered as in the result."""
    return _unsqueezed(x, axes.reshape(-1).tolist())


def _unsqueezed(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(call: Call, x: Tensor) -> Tensor:
    """Axes in another order, reversed by default."""
    return x.permute(call.get("perm") or list(reversed(range(x.ndim))))


def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Joined along one axis."""
    return torch.cat(inputs, call.get("axis", 1))


def split_2(call: Call, x: Tensor) -> Sequence[Tensor]:
    """Sizes are an attribute before opset 13."""
    return _split(call, x, call.get("split"))


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    """Parts of the given sizes, or equal ones but the last."""
    return _split(call, x, None if sizes is None else sizes.tolist())


def _split(call: Call, x: Tensor, sizes: Sequence[int] | None) -> Sequence[Tensor]:
    axis = call.get("axis", 0)
    if sizes is None:
        total, parts = x.shape[axis], call.get("num_outputs", call.node.outputs)
        step = -(-total // parts)
        sizes = [min(step, max(total - i * step, 0)) for i in range(parts)]
    return torch.split_with_sizes(x, list(sizes), axis)


def slice_1(call: Call, x: Tensor) -> Tensor:
    """Bounds are attributes before opset 10."""
    starts, ends = call.get("starts"), call.get("ends")
    return _sliced(x, starts, ends, call.get("axes"), None)


def slice_10(
    _: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """Bounds count from the end where negative; a negative step walks back."""
    over, strides = (None if t is None else t.tolist() for t in (axes, steps))
    return _sliced(x, starts.tolist(), ends.tolist(), over, strides)


def _sliced(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    for at, axis in enumerate(axes or range(len(starts))):
        step = 1 if steps is None else steps[at]
        found = range(x.shape[axis])[slice(starts[at], ends[at], step)]  # Python's rule is ONNX's
        if step > 0:
            parts = [slice(None)] * x.ndim
            parts[axis] = slice(found.start, max(found.stop, found.start), step)
            x = x[tuple(parts)]
        else:
            x = x.index_select(axis, torch.tensor(list(found), dtype=torch.int64, device=x.device))
    return x


def expand(_: Call, x: Tensor, target: Tensor) -> Tensor:
    """Broadcast to the shape, in both directions."""
    sizes: torch.Size = torch.broadcast_shapes(x.shape, target.tolist())  # type: ignore[no-untyped-call]
    return x.expand(sizes)


def tile(_: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Each axis repeated so many times."""
    return x.repeat(repeats.tolist())


def constant_of_shape(call: Call, target: Tensor) -> Tensor:
    """One value everywhere, 0.0 by default; integers stay on the CPU, as shapes do."""
    value = call.get("value")
    value = torch.zeros(1) if value is None else value
    if not value.dtype.is_floating_point:
        return value.reshape(()).expand(target.tolist()).clone()
    dtype = value.dtype if value.dtype == torch.float64 else call.run.dtype
    return torch.full(target.tolist(), value.item(), dtype=dtype, device=call.run.device)


def arange(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... before limit; integers stay on the CPU, as shapes do."""
    first, step = start.reshape(()), delta.reshape(())
    count = max(math.ceil((limit.item() - first.item()) / step.item()), 0)
    device = call.run.device if first.dtype.is_floating_point else torch.device("cpu")
    return first.to(device) + torch.arange(count, dtype=first.dtype, device=device) * step.to(device)


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels become blocks of pixels; 'DCR' has the block first, 'CRD' the depth."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Blocks of pixels become channels, the block first."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * b * b, h // b, w // b)


def trilu(call: Call, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """The upper (or lower) triangle of each matrix, zeros elsewhere."""
    k: int = 0 if diagonal is None else int(diagonal)
    return x.triu(k) if call.get("upper", 1) else x.tril(k)


def eye_like(call: Call, x: Tensor) -> Tensor:
    """Ones on the k-th diagonal of a matrix of x's shape."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    k: int = call.get("k", 0)
    return (rows + k == torch.arange(x.shape[1], device=x.device)).to(x.dtype)


def identity(_: Call, x: Tensor) -> Tensor:
    """Nothing: x as it is."""
    return x
