"""Resize and Upsample, each axis by itself as a weighted sum of a few source elements; GridSample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.graph_module.call import Call


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How a place of the result finds its source: modes as ONNX names them."""

    mode: str
    transform: str
    nearest: str
    cubic: float = -0.75
    exclude_outside: bool = False


def upsample_7(call: Call, x: Tensor) -> Tensor:
    """Scales are an attribute before opset 9."""
    return _scaled(x, call.get("scales"), _Rule(_mode(call), "asymmetric", "simple"))


def upsample_9(call: Call, x: Tensor, scales: Tensor) -> Tensor:
    """Coordinates from the corner; opset 10's Resize has the same rule."""
    return _scaled(x, scales.tolist(), _Rule(_mode(call), "asymmetric", "simple"))


def resize(
    call: Call, x: Tensor, _: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """By scales or to sizes, of all axes or those of `axes`; `keep_aspect_ratio_policy` makes sizes bounds."""
    rule = _Rule(
        _mode(call),
        call.get("coordinate_transformation_mode", "half_pixel"),
        call.get("nearest_mode", "round_prefer_floor"),
        call.get("cubic_coeff_a", -0.75),
        bool(call.get("exclude_outside", 0)),
    )
    axes = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    if sizes is None or sizes.numel() == 0:
        factors = [1.0] * x.ndim
        for axis, factor in zip(axes, [] if scales is None else scales.tolist(), strict=True):
            factors[axis] = factor
        return _scaled(x, factors, rule)
    wanted = [int(n) for n in sizes.tolist()]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    shared = [n / x.shape[axis] for axis, n in zip(axes, wanted, strict=True)]
    if policy != "stretch":
        factor = min(shared) if policy == "not_larger" else max(shared)
        shared = [factor] * len(axes)
        wanted = [math.floor(x.shape[axis] * factor + 0.5) for axis in axes]
    for axis, n, factor in zip(axes, wanted, shared, strict=True):
        x = _along(x, axis, n, factor, rule)
    return x


def _mode(call: Call) -> str:
    return str(call.get("mode", "nearest"))


def _scaled(x: Tensor, factors: Sequence[float], rule: _Rule) -> Tensor:
    for axis, factor in enumerate(factors):
        x = _along(x, axis, math.floor(x.shape[axis] * factor), factor, rule)
    return x


def _along(x: Tensor, axis: int, count: int, factor: float, rule: _Rule) -> Tensor:
    """One axis resized to `count` elements."""
    size = x.shape[axis]
    if factor == 1 and count == size:
        return x
    source = _sources(size, count, factor, rule.transform)
    if rule.mode == "nearest":
        at = _nearest(source, rule.nearest, factor).clamp(0, size - 1).long()
        return x.index_select(axis, at.to(x.device))
    if rule.mode == "linear":
        source = source.clamp(0, size - 1)
        low = source.floor()
        taps, shares = torch.stack([low, low + 1]), torch.stack([1 - (source - low), source - low])
    else:
        low = source.floor()
        taps = torch.stack([low - 1, low, low + 1, low + 2])
        shares = _cubic((source - taps).abs(), rule.cubic)
        if rule.exclude_outside:
            shares = torch.where((taps >= 0) & (taps < size), shares, torch.zeros(()))
            shares = shares / shares.sum(0)
    places = [1] * x.ndim
    places[axis] = count
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for tap, share in zip(taps.clamp(0, size - 1).long(), shares, strict=True):
        total = total + x.index_select(axis, tap.to(x.device)) * share.reshape(places).to(x)
    return total


def _sources(size: int, count: int, factor: float, transform: str) -> Tensor:
    """Where each place of the result lies in the source, in float32 as ONNX Runtime computes it."""
    at = torch.arange(count, dtype=torch.float32)
    if transform == "align_corners":
        return at * (size - 1) / (count - 1) if count > 1 else torch.zeros(count)
    if transform == "asymmetric":
        return at / factor
    if transform == "tf_half_pixel_for_nn":
        return (at + 0.5) / factor
    if transform == "pytorch_half_pixel" and count == 1:
        return torch.zeros(1)
    if transform == "half_pixel_symmetric":
        adjustment = count / (factor * size)
        centre = size / 2
        return centre * (1 - adjustment) + (at + 0.5) / factor - 0.5
    return (at + 0.5) / factor - 0.5


def _nearest(source: Tensor, how: str, factor: float) -> Tensor:
    if how == "simple":  # before opset 11
        return source.ceil() if factor < 1 else source.floor()
    if how == "floor":
        return source.floor()
    if how == "ceil":
        return source.ceil()
    if how == "round_prefer_ceil":
        return (source + 0.5).floor()
    return (source - 0.5).ceil()


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Weights of the four neighbours (Keys 1981)."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, far)


def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Of x at the places that the grid (batch, ..., axes) names, from -1 to 1; opset 20 renames the modes."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.get("mode"), call.get("mode", "bilinear"))
    aligned = bool(call.get("align_corners", 0))
    return functional.grid_sample(x, grid, mode, call.get("padding_mode", "zeros"), aligned)
