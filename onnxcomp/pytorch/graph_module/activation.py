"""Activation functions and softmax. Defaults are those of ONNX, which differ from torch's in places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.graph_module.call import Call


def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """Of x: x, or alpha x below zero."""
    return functional.leaky_relu(x, call.get("alpha", 0.01))


def elu(call: Call, x: Tensor) -> Tensor:
    """Of x: x, or alpha (exp(x) - 1) below zero."""
    return functional.elu(x, call.get("alpha", 1.0))


def celu(call: Call, x: Tensor) -> Tensor:
    """Of x: x, or alpha (exp(x / alpha) - 1) below zero."""
    return functional.celu(x, call.get("alpha", 1.0))


def selu(call: Call, x: Tensor) -> Tensor:
    """Of x: gamma x, or gamma alpha (exp(x) - 1) below zero."""
    alpha: float = call.get("alpha", 1.67326319217681884765625)
    gamma: float = call.get("gamma", 1.05070102214813232421875)
    return functional.elu(x, alpha) * gamma


def p_relu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    """Of x: x, or slope x below zero; the slope broadcasts as NumPy's arrays do."""
    return torch.where(x < 0, x * slope, x)


def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Of x: alpha x + beta, cut to [0, 1]."""
    alpha: float = call.get("alpha", 0.2)
    beta: float = call.get("beta", 0.5)
    return (x * alpha + beta).clamp(0, 1)


def hard_swish(_: Call, x: Tensor) -> Tensor:
    """Of x: x times the hard sigmoid with alpha 1/6 and beta 1/2."""
    return x * (x / 6 + 0.5).clamp(0, 1)


def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """Of x: x above alpha, else 0."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def shrink(call: Call, x: Tensor) -> Tensor:
    """Of x: x moved towards zero by bias outside of [-lambd, lambd], 0 inside."""
    edge, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero))


def softplus(_: Call, x: Tensor) -> Tensor:
    """log(1 + exp(x)) everywhere; torch's own turns linear above 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def gelu(call: Call, x: Tensor) -> Tensor:
    """With erf, or its approximation with tanh."""
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def fast_gelu(_: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """com.microsoft: with tanh, of x + bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def bias_gelu(_: Call, x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft: with erf, of x + bias."""
    return functional.gelu(x + bias)


def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """com.microsoft: x sigmoid(alpha x)."""
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


def swish(call: Call, x: Tensor) -> Tensor:
    """Of x: x sigmoid(alpha x)."""
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


def softmax(call: Call, x: Tensor) -> Tensor:
    """Along one axis."""
    return x.softmax(call.get("axis", -1))


def log_softmax(call: Call, x: Tensor) -> Tensor:
    """Along one axis."""
    return x.log_softmax(call.get("axis", -1))


def softmax_1(call: Call, x: Tensor) -> Tensor:
    """Before opset 13 over all axes from `axis` on, taken as one."""
    return _flat(x, call.get("axis", 1)).softmax(1).reshape(x.shape)


def log_softmax_1(call: Call, x: Tensor) -> Tensor:
    """Before opset 13 over all axes from `axis` on, taken as one."""
    return _flat(x, call.get("axis", 1)).log_softmax(1).reshape(x.shape)


def _flat(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(x.shape[:axis].numel(), -1)
