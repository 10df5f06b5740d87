"""How a Conv cuts its input into patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.errors import UnsupportedError


@dataclasses.dataclass(frozen=True)
class Window:
    """The attributes of a Conv; one entry for each spatial axis.

    Attributes:
        kernel, strides, dilations: positions.
        pads: (before, after) of each axis; unused with `same`.
        same: 'upper' or 'lower': pads that keep size / stride, the odd one after or before; None for `pads`.
        groups: of channels.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    same: str | None = None
    groups: int = 1

    def patches(self, array: np.ndarray) -> np.ndarray:
        """(samples, channels, ...) as a view (samples, outputs ..., groups, channels of a group, kernel ...)."""
        pads = self._pads(array.shape[2:])
        padded = np.pad(array, ((0, 0), (0, 0), *pads)) if any(map(any, pads)) else array
        spans = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        axes = tuple(range(2, array.ndim))
        views = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
        steps = [slice(None, None, step) for step in (*self.strides, *self.dilations)]
        views = views[(slice(None), slice(None), *steps)]
        channels = array.shape[1]
        views = np.moveaxis(views, 1, 1 + len(axes))
        # the channels lie a fixed distance apart, so that this is no copy
        shape = (*views.shape[: 1 + len(axes)], self.groups, channels // self.groups, *self.kernel)
        split: np.ndarray = views.reshape(shape)
        return split

    def _pads(self, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        if self.same is None:
            return self.pads
        found = []
        for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            missing = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            half = missing // 2
            found.append((half, missing - half) if self.same == "upper" else (missing - half, half))
        return tuple(found)


def window_of(node: ir.Node) -> Window:
    """The window of a Conv. Raises UnsupportedError where neither it nor a stored weight tells the kernel's shape."""
    weight = node.inputs[1]
    tensor = None if weight is None else weight.const_value
    stored = () if tensor is None else tensor.shape.numpy()[2:]
    kernel = tuple(int(size) for size in node.attributes.get_ints("kernel_shape", ()) or stored)
    if not kernel:
        raise UnsupportedError("the kernel's shape is not known", where=f"node {node.name or 'Conv'}")
    ones = (1,) * len(kernel)
    pads = tuple(node.attributes.get_ints("pads", ()) or (0,) * 2 * len(kernel))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = (0,) * 2 * len(kernel)
    return Window(
        kernel,
        tuple(node.attributes.get_ints("strides", ()) or ones),
        tuple(node.attributes.get_ints("dilations", ()) or ones),
        tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)),
        {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}.get(auto or ""),
        int(node.attributes.get_int("group", 1) or 1),
    )
