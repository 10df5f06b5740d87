"""Convolution, its transpose, and the fused one that ONNX Runtime writes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.graph_module.call import Call
from onnxcomp.pytorch.graph_module.window import pad, window

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of x (batch, channels, ...), weight (out, channels / group, ...), bias (out,); padding may be one-sided."""
    over = window(call, x.shape[2:], weight.shape[2:])
    padding: Sequence[int] = over.before
    if over.before != over.after:
        x, padding = pad(x, over.before, over.after), [0] * len(over.kernel)
    function = _CONV[len(over.kernel) - 1]
    return function(x, weight, bias, over.strides, padding, over.dilations, call.get("group", 1))


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of x (batch, channels, ...), weight (channels, out / group, ...): computed whole, then cut or padded to size."""
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides = call.get("strides") or [1] * rank
    dilations = call.get("dilations") or [1] * rank
    extra = call.get("output_padding") or [0] * rank
    function = _TRANSPOSED[rank - 1]
    whole: Tensor = function(x, weight, None, strides, 0, 0, call.get("group", 1), dilations)
    before, after = _trimmed(call, x.shape[2:], whole.shape[2:], strides, extra)
    whole = pad(whole, [-size for size in before], [size - cut for size, cut in zip(extra, after, strict=True)])
    return whole if bias is None else whole + bias.reshape(-1, *[1] * rank)


def _trimmed(
    call: Call, sizes: Sequence[int], whole: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What is cut off the whole result on either side of each axis."""
    rank = len(sizes)
    auto = call.get("auto_pad", "NOTSET")
    wanted = call.get("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = call.get("pads") or [0] * 2 * rank
        return list(pads[:rank]), list(pads[rank:])
    before, after = [], []
    for have, more, want in zip(whole, extra, list(wanted)[-rank:], strict=True):
        total = have + more - want
        # ONNX: half of it, rounded down, before; SAME_UPPER alone puts the smaller half first as well
        small, large = total // 2, total - total // 2
        low, high = (small, large) if auto == "SAME_UPPER" else (large, small)
        before.append(low)
        after.append(high)
    return before, after


def fused_conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    """com.microsoft: convolution, then z added, then an activation by name."""
    y = conv(call, x, weight, bias)
    return activate(y if z is None else y + z, call.get("activation"), call.get("activation_params") or ())


def activate(y: Tensor, name: str | None, numbers: Sequence[float]) -> Tensor:
    """An activation that ONNX Runtime fuses into a node before it; see `ACTIVATIONS`."""
    if name in ("Relu", "Tanh", "Sigmoid"):
        return y.relu() if name == "Relu" else y.tanh() if name == "Tanh" else y.sigmoid()
    if name == "LeakyRelu":
        return functional.leaky_relu(y, numbers[0])
    if name == "Clip":
        return y.clamp(numbers[0], numbers[1])
    if name == "HardSigmoid":
        return (y * numbers[0] + numbers[1]).clamp(0, 1)
    return y


#: activations that `activate` knows
ACTIVATIONS = frozenset({None, "", "Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid"})
