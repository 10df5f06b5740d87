"""Normalization: of batches, layers, groups, instances, vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxcomp.pytorch.graph_module.call import Call


def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """With the stored statistics; while the module trains with the batch's, which move the stored ones.

    As torch's BatchNorm, whatever the graph's own `training_mode` says. Statistics that the graph
    computes are used as they are, and never moved.
    """
    epsilon: float = call.get("epsilon", 1e-5)
    if call.run.training and isinstance(mean, nn.Parameter):
        share = 1 - call.get("momentum", 0.9)
        return functional.batch_norm(x, mean.detach(), variance.detach(), scale, bias, True, share, epsilon)
    if mean.ndim == 1 and not mean.requires_grad and not variance.requires_grad:
        return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
    # torch's own gives statistics no gradient; opset 7 and 8 may have them, and the rest, for each position
    places = mean.shape if mean.ndim > 1 else (-1, *[1] * (x.ndim - 2))
    mean, variance, scale, bias = (t.reshape(places) for t in (mean, variance, scale, bias))
    return (x - mean) / (variance + epsilon).sqrt() * scale + bias


def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each sample by its own mean and variance."""
    return _grouped(x, x.shape[1], scale, bias, call.get("epsilon", 1e-5))


def group_normalization_18(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias belong to groups; opset 21 gives them to channels."""
    groups = call.get("num_groups")
    size = x.shape[1] // groups
    return _grouped(x, groups, scale.repeat_interleave(size), bias.repeat_interleave(size), call.get("epsilon", 1e-5))


def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias belong to channels."""
    return _grouped(x, call.get("num_groups"), scale, bias, call.get("epsilon", 1e-5))


def _grouped(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    if x[0].numel() > groups:  # torch refuses one element per group, which is normal to zero
        return functional.group_norm(x, groups, scale, bias, epsilon)
    return x * 0 + bias.reshape(-1, *[1] * (x.ndim - 2))


def layer_normalization(
    call: Call, x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Over the axes from `axis` on; also the mean and one over the standard deviation."""
    axes = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = (centred.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5)).rsqrt()
    y = centred * inverse
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Over the axes from `axis` on, the mean left as it is; also one over the root mean square."""
    axes = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    inverse = (x.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5)).rsqrt()
    return x * inverse * scale, inverse


def skip_layer_normalization(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    inner: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """com.microsoft: LayerNormalization of x + skip + inner; the fourth output is that sum."""
    total = x + skip if inner is None else x + skip + inner
    y, mean, inverse = layer_normalization(call, total, scale, bias)
    return y, mean, inverse, total


def skip_rms_normalization(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, inner: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """com.microsoft's SkipSimplifiedLayerNormalization: RMS normalization of x + skip + inner."""
    total = x + skip if inner is None else x + skip + inner
    y, inverse = rms_normalization(call, total, scale)
    return y, None, inverse, total


def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Divided by the norm along one axis; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, call.get("p", 2), dim=call.get("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the axes; the small number of ONNX's own definition is added to the deviation."""
    axes: list[int] = list(call.get("axes") or (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def local_response(call: Call, x: Tensor) -> Tensor:
    """Of x: x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    size: int = call.get("size")
    before, after = math.floor((size - 1) / 2), math.ceil((size - 1) / 2)
    squares = functional.pad(x.square().movedim(1, -1), (before, after)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    alpha: float = call.get("alpha", 1e-4)
    beta: float = call.get("beta", 0.75)
    bias: float = call.get("bias", 1.0)
    return x / (bias + alpha / size * squares).pow(beta)
