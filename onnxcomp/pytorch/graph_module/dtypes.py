"""ONNX's element types in torch. What is float, float16 or bfloat16 in the graph runs in the module's own type."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxcomp.errors import UnsupportedError

#: torch has few operators for wider unsigned types and none for 4 bits: a type that holds the same values
_WHOLE: dict[ir.DataType, torch.dtype] = {
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT2: torch.int8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.int32,
    ir.DataType.UINT32: torch.int64,
    ir.DataType.UINT64: torch.int64,
}

#: types of values that can be trained; float8 and less are codes of a quantization
TRAINABLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


def torch_dtype(dtype: ir.DataType, floating: torch.dtype) -> torch.dtype:
    """The type in torch, `floating` for all floats but float64. Raises UnsupportedError for strings and complex."""
    if dtype in _WHOLE:
        return _WHOLE[dtype]
    if dtype == ir.DataType.DOUBLE:
        return torch.float64
    if dtype.is_floating_point():
        return floating
    raise UnsupportedError(f"torch holds no {dtype.name.lower()} tensors")


def to_torch(tensor: ir.TensorProtocol) -> Tensor:
    """A copy of a stored tensor, float16 and less as float32."""
    dtype = torch_dtype(tensor.dtype, torch.float32)
    array = np.asarray(tensor.numpy())
    wanted = np.dtype(str(dtype).removeprefix("torch."))
    return torch.from_numpy(np.array(array.astype(wanted), order="C"))


def limits(dtype: ir.DataType) -> tuple[int, int]:
    """The least and greatest value of an integer type."""
    bits = dtype.bitwidth
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)
