"""Pooling over windows and over all of space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.graph_module.call import Call
from onnxcomp.pytorch.graph_module.window import Window, ones_like_space, pad, window, windows

_MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def max_pool(call: Call, x: Tensor) -> Tensor:
    """The largest element of each window; padding never wins."""
    over = window(call, x.shape[2:], call.get("kernel_shape"))
    least = -torch.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    padded = pad(x, over.before, over.reach, least)
    if not x.dtype.is_floating_point:
        return windows(padded, over).amax(-1)
    function = _MAX[len(over.kernel) - 1]
    return function(padded, over.kernel, over.strides, 0, over.dilations)


def average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each window, over the elements that count: padding does only where the attribute says so."""
    over = window(call, x.shape[2:], call.get("kernel_shape"))
    sums = _means(pad(x, over.before, over.reach), over)
    if not any(over.before) and not any(size > 0 for size in over.reach):
        return sums
    counted = ones_like_space(x, len(over.kernel))
    if call.get("count_include_pad", 0):
        declared = [min(have, need) for have, need in zip(over.after, over.reach, strict=True)]
        counted = pad(counted, over.before, declared, 1.0)
        rest = [need - have for have, need in zip(declared, over.reach, strict=True)]
        counted = pad(counted, [0] * len(rest), rest)
    else:
        counted = pad(counted, over.before, over.reach)
    return sums / _means(counted, over)


def _means(x: Tensor, over: Window) -> Tensor:
    """Over all elements of each window; x is padded already."""
    if any(d != 1 for d in over.dilations):
        return windows(x, over).mean(-1)
    function = _AVERAGE[len(over.kernel) - 1]
    return function(x, over.kernel, over.strides)


def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    over = window(call, x.shape[2:], call.get("kernel_shape"))
    norm: Tensor = torch.linalg.vector_norm(windows(pad(x, over.before, over.reach), over), call.get("p", 2), dim=-1)
    return norm


def global_average_pool(_: Call, x: Tensor) -> Tensor:
    """The mean over space, axes kept with size 1."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max_pool(_: Call, x: Tensor) -> Tensor:
    """The maximum over space, axes kept with size 1."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm over space, axes kept with size 1."""
    norm: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), dim=list(range(2, x.ndim)), keepdim=True)
    return norm
