"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """The product alpha a b + beta c, each matrix transposed where the attributes say so."""
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else beta * c)


def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """com.microsoft: alpha a b; `transBatch` first moves the rows of a stack of matrices before its batch axes."""
    a = _turned(a, call.get("transBatchA", 0), call.get("transA", 0))
    b = _turned(b, call.get("transBatchB", 0), call.get("transB", 0))
    product: Tensor = call.get("alpha", 1.0) * (a @ b)
    return product


def _turned(x: Tensor, batch: int, last: int) -> Tensor:
    if batch:
        x = x.movedim(0, -2)
    return x.mT if last and x.ndim > 1 else x


def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """The sum that the attribute `equation` writes."""
    return torch.einsum(call.get("equation"), *inputs)
