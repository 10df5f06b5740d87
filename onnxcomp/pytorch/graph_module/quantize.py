"""Quantization with a straight-through gradient, after Bengio et al. 2013.

A quantized value is kept as a float tensor of whole numbers, so that gradients pass: rounding counts
as the identity, and outside of the integer type's range the gradient is zero. With respect to a scale
that is trained the gradient is that of learned step sizes (Esser et al. 2020, without their factor).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call
from onnxcomp.pytorch.graph_module.convolution import conv
from onnxcomp.pytorch.graph_module.dtypes import limits


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes as it is."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _round(x: Tensor) -> Tensor:
    rounded: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def _quantized(x: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: ir.DataType) -> Tensor:
    whole = _round(x / scale)
    whole = whole if zero_point is None else whole + zero_point.to(x.dtype)
    return whole.clamp(*limits(dtype))


def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """round(x / scale) + zero_point, cut to the range of the zero point's type (or `output_dtype`, or uint8)."""
    dtype = target_type(call.node.types, call.get("output_dtype", 0))
    return _quantized(x, _spread(call, scale, x), _maybe(call, zero_point, x), dtype)


def target_type(types: tuple[ir.DataType | None, ...], declared: int) -> ir.DataType:
    """The integer type that QuantizeLinear writes."""
    if declared:
        return ir.DataType(declared)
    return (types[2] if len(types) > 2 else None) or ir.DataType.UINT8


def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """(x - zero_point) * scale, both per tensor, per index of `axis`, or per block of it."""
    x = x.to(scale.dtype)
    offset = _maybe(call, zero_point, x)
    centred = x if offset is None else x - offset.to(x.dtype)
    return centred * _spread(call, scale, x)


def _maybe(call: Call, zero_point: Tensor | None, x: Tensor) -> Tensor | None:
    return None if zero_point is None else _spread(call, zero_point, x)


def _spread(call: Call, factor: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point so that it broadcasts against x."""
    if factor.numel() == 1 and factor.ndim <= 1:
        return factor.reshape(())
    axis = call.get("axis", 1) % x.ndim
    block = call.get("block_size", 0)
    if block:
        return factor.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    places = [1] * x.ndim
    places[axis] = -1
    return factor.reshape(places)


def dynamic_quantize_linear(_: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8 over the range of x itself, zero included; scale and zero point carry no gradient."""
    with torch.no_grad():
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero_point = (-low / scale).clamp(0, 255).round()
    return _quantized(x, scale, zero_point, ir.DataType.UINT8), scale, zero_point


def _centred(x: Tensor, zero_point: Tensor | None, dtype: torch.dtype, axis: int | None = None) -> Tensor:
    """The difference x - zero_point as floats; the zero point may have one entry per index of `axis`."""
    x = x.to(dtype)
    if zero_point is None:
        return x
    offset = zero_point.to(dtype)
    if offset.ndim == 1 and offset.numel() > 1 and axis is not None:
        places = [1] * x.ndim
        places[axis] = -1
        offset = offset.reshape(places)
    elif offset.numel() == 1:
        offset = offset.reshape(())
    return x - offset


def matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """The product of whole numbers, kept as floats; exact in float32 up to 2**24."""
    dtype = call.run.dtype
    return _centred(a, a_zero, dtype, -2) @ _centred(b, b_zero, dtype, -1)


def conv_integer(
    call: Call, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """The convolution of whole numbers, kept as floats; exact in float32 up to 2**24."""
    dtype = call.run.dtype
    return conv(call, _centred(x, x_zero, dtype), _centred(w, w_zero, dtype, 0))


def qlinear_matmul(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """A product of quantized matrices, quantized again; scales of b per column at most."""
    dtype = call.run.dtype
    product = _centred(a, a_zero, dtype) @ _centred(b, b_zero, dtype, -1)
    real = product * (_number(a_scale) * _number(b_scale))
    return _quantized(real, _number(y_scale), _number(y_zero), call.node.types[7] or ir.DataType.UINT8)


def qlinear_conv(
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """A convolution of quantized tensors, quantized again; the bias is in steps of x_scale w_scale."""
    dtype = call.run.dtype
    whole = conv(
        call, _centred(x, x_zero, dtype), _centred(w, w_zero, dtype, 0), None if bias is None else bias.to(dtype)
    )
    step = x_scale.reshape(()) * (w_scale.reshape(-1, *[1] * (x.ndim - 2)))
    return _quantized(whole * step, _number(y_scale), _number(y_zero), call.node.types[7] or ir.DataType.UINT8)


def _number(x: Tensor) -> Tensor:
    return x.reshape(()) if x.numel() == 1 else x


def matmul_blocks(call: Call, x: Tensor, numbers: Tensor, scales: Tensor, zero_points: Tensor | None = None) -> Tensor:
    """com.microsoft's MatMulNBits: x times a matrix of 4 or 8 bits in blocks, the numbers of each row packed.

    numbers: uint8 (N, blocks, bytes); scales: N * blocks; zero_points: uint8, packed as the numbers are.
    """
    rows, columns, bits = call.get("N"), call.get("K"), call.get("bits", 4)
    blocks = numbers.shape[1]
    whole = _unpacked(numbers, bits).to(x.dtype)
    if zero_points is None:
        offset = torch.full((), 2.0 ** (bits - 1), dtype=x.dtype, device=x.device)
    else:
        offset = _unpacked(zero_points.reshape(rows, -1), bits)[:, :blocks].unsqueeze(-1).to(x.dtype)
    matrix = (whole - offset) * scales.reshape(rows, blocks, 1)
    return x @ matrix.flatten(1)[:, :columns].mT


def gather_blocks(
    call: Call, numbers: Tensor, indices: Tensor, scales: Tensor, zero_points: Tensor | None = None
) -> Tensor:
    """com.microsoft's GatherBlockQuantized: rows of a table of 4 or 8 bits, a scale for each block of an axis.

    uint8 holds packed numbers around 2**(bits - 1), 4-bit types one number an element around 0.
    """
    axis, block = call.get("quantize_axis", 1) % numbers.ndim, call.get("block_size", 128)
    stored, bits = call.node.types[0] == ir.DataType.UINT8, call.get("bits", 4)
    at = indices.long()
    after = at.ndim + axis - 1
    whole = _unpacked(numbers[at], bits if stored else 8).to(scales.dtype)
    step = scales[at].repeat_interleave(block, after).narrow(after, 0, whole.shape[after])
    if zero_points is None:
        return (whole - (2 ** (bits - 1) if stored else 0)) * step
    offset = _unpacked(zero_points[at], bits if stored else 8).narrow(after, 0, scales.shape[axis])
    return (whole - offset.repeat_interleave(block, after).narrow(after, 0, whole.shape[after])) * step


def _unpacked(numbers: Tensor, bits: int) -> Tensor:
    """One number per element; of two in a byte the low half comes first."""
    if bits == 8:
        return numbers
    return torch.stack([numbers & 15, numbers >> 4], -1).flatten(-2)
