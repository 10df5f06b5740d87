"""Masks that let a token see itself and the tokens before it, and no more."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.attention import MASKED
from onnxcomp.passes.fusions.reading import scalar, stored
from onnxcomp.passes.fusions.size import ONE, integer
from onnxcomp.passes.fusions.sizes import Sizes

#: leave a triangle what it is
_PASSED = {"Cast", "Expand", "Identity", "Unsqueeze"}


def is_causal(mask: ir.Value, sizes: Sizes) -> bool:
    """Whether an added mask is 0 up to the diagonal and rules out what is beyond it."""
    tensor = stored(mask)
    if tensor is not None:
        return _is_stored(np.asarray(tensor.numpy()))
    node = mask.producer()
    if node is None or node.domain:
        return False
    if node.op_type in _PASSED:
        return node.inputs[0] is not None and is_causal(node.inputs[0], sizes)
    if node.op_type != "Where":
        return False
    true, false = (scalar(v) for v in node.inputs[1:])
    if true is None or false is None or {true, false} != {0.0, min(true, false)} or min(true, false) > MASKED:
        return False
    return keeps_lower(node.inputs[0], sizes) is (true == 0)


def keeps_lower(condition: ir.Value | None, sizes: Sizes) -> bool | None:
    """True: holds up to the diagonal and not beyond; False: the other way round; None: something else."""
    node = None if condition is None else condition.producer()
    if node is None or node.domain:
        return None
    match node.op_type:
        case "Not":
            return _turned(keeps_lower(node.inputs[0], sizes))
        case "And":
            sides = [v for v in node.inputs if not _is_true(v)]
            return keeps_lower(sides[0], sizes) if len(sides) == 1 else None
        case "Equal":
            zeros = [scalar(v) == 0 for v in node.inputs]
            return _turned(keeps_lower(node.inputs[zeros.index(False)], sizes)) if sum(zeros) == 1 else None
        case "Trilu":
            return _triangle(node, sizes)
        case "LessOrEqual" | "GreaterOrEqual":
            small, large = node.inputs if node.op_type == "LessOrEqual" else reversed(node.inputs)
            return True if _counts(small, -1, sizes) and _counts(large, -2, sizes) else None
    return keeps_lower(node.inputs[0], sizes) if node.op_type in _PASSED else None


def _turned(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _is_true(value: ir.Value | None) -> bool:
    tensor = stored(value)
    return tensor is not None and tensor.dtype == ir.DataType.BOOL and bool(tensor.numpy().all())


def _triangle(node: ir.Node, sizes: Sizes) -> bool | None:
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    diagonal = sizes.constants(node.inputs[1]) if given else (0,)
    if diagonal is None or not _is_one(node.inputs[0]):
        return None
    upper = bool(integer(node, "upper", 1))
    return not upper if diagonal == ((1,) if upper else (0,)) else None


def _is_one(value: ir.Value | None) -> bool:
    """Whether every element is 1."""
    tensor = stored(value)
    if tensor is not None:
        return bool((np.asarray(tensor.numpy()) == 1).all())
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "ConstantOfShape" and "value" in node.attributes:
        return bool((node.attributes["value"].as_tensor().numpy() == 1).all())
    return node.op_type in _PASSED and _is_one(node.inputs[0])


def _counts(value: ir.Value | None, axis: int, sizes: Sizes) -> bool:
    """Whether it is 0, 1, 2, ... along this axis and the same along all others."""
    dims = sizes.of(value)
    while (node := None if value is None else value.producer()) is not None and node.op_type in ("Cast", "Unsqueeze"):
        value = node.inputs[0]
    if dims is None or node is None or node.op_type != "Range" or len(dims) < -axis:
        return False
    start, _, step = (sizes.constants(v) for v in node.inputs)
    flat = all(d == ONE for i, d in enumerate(dims) if i != len(dims) + axis)
    return start == (0,) and step == (1,) and flat


def _is_stored(numbers: np.ndarray) -> bool:
    if numbers.ndim < 2 or numbers.shape[-1] != numbers.shape[-2] or numbers.size != numbers.shape[-1] ** 2:
        return False
    square = numbers.reshape(numbers.shape[-2:])
    beyond = np.triu(np.ones_like(square, dtype=bool), 1)
    return bool((square[~beyond] == 0).all() and (square[beyond] <= MASKED).all())
