"""What a run costs, estimated from sizes and kernels, beside the same graph in float.

The constants are nanoseconds of one thread on an x86 server with AVX-512 and VNNI, read off profiles
of ORT 1.32 on small CNNs, encoders and recurrent models. They tell which of two is faster where the
difference is large.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import onnx_ir as ir

from onnxcomp.explain.explanation import Macs
from onnxcomp.explain.running import MULTIPLYING, Running, accuracy_level
from onnxcomp.inspect import WEIGHT_INPUTS, all_nodes, infer_shapes, macs_by_node, stored_origin
from onnxcomp.passes.base import drop_inner_shapes

#: length of every symbolic axis but the first, for counting multiplications
_ASSUMED = 128

#: each node costs this much whatever it does
_NODE = 500.0

#: a float number read, changed and written; one normalized along an axis
_ELEMENT, _NORMALIZED = 0.2, 1.5
_NORMALIZING = {"LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "Softmax"}

#: a number quantized or dequantized, by one scale, and by one of many along the last axis
_QUANTIZE, _QUANTIZE_COLUMN = 0.25, 1.7

#: a multiply-accumulate in float: of most, of a depthwise convolution, of a convolution by weights that are not stored
_FLOAT, _FLOAT_DEPTHWISE, _FLOAT_UNPACKED = 0.019, 0.03, 0.04

#: convolutions in float compute so many output channels at a time, needed or not
_BLOCK = 16

#: reading a stored weight once a run, in float and in int8
_READ_FLOAT, _READ_INTEGER = 0.1, 0.025

#: a multiply-accumulate in int8; gathering one tap of one pixel for it; a depthwise tap, and each of its channels
_INTEGER, _TAP, _DEPTHWISE_TAP, _DEPTHWISE_CHANNEL = 0.0065, 2.0, 0.9, 0.036

#: ConvInteger: a number of its unfolded image, one of its output with the nodes that scale it, a multiply-accumulate
_UNFOLDED, _SCALED, _CONV_INTEGER = 1.0, 2.0, 0.065

#: activations in int8 instead of uint8
_SIGNED = 10.0

#: time of MatMulNBits against float's with 1, 16 and 128 rows, by (bits, whether accuracy_level is 4)
_BLOCKS = {
    (4, False): (0.33, 0.86, 0.96),
    (4, True): (0.13, 0.53, 1.10),
    (8, False): (16.2, 8.3, 3.1),
    (8, True): (0.23, 0.56, 1.02),
}


#: what ORT appends to names
_GIVEN = re.compile(r"(_token_\d+|/duplicated|_nchwc|_q)+$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Estimated nanoseconds of one run of one sample.

    Attributes:
        kernels: of multiplications as they run, by the type of integer kernel, '' for those in float.
        kernels_in_float: of the same multiplications in float, by the same keys.
        boundaries, round_trips: of Q/DQ of activations.
        dequantized: of weights turned into float.
        rest: of everything else, which is there in float too.
        macs: how many multiply-accumulates there are.
    """

    kernels: Mapping[str, float]
    kernels_in_float: Mapping[str, float]
    boundaries: float
    round_trips: float
    dequantized: float
    rest: float
    macs: Macs

    @property
    def total(self) -> float:
        """Of the graph that runs."""
        return sum(self.kernels.values()) + self.boundaries + self.round_trips + self.dequantized + self.rest

    @property
    def losses(self) -> dict[str, float]:
        """{what int8 brought: its nanoseconds}; of a kernel that is slower than float, what it loses."""
        slow = {key: self.kernels[key] - self.kernels_in_float[key] for key in self.kernels if key}
        return {
            "QuantizeLinear and DequantizeLinear": self.boundaries + self.round_trips,
            "weights turned into float": self.dequantized,
            **{f"{kernel} kernels": time for kernel, time in slow.items()},
        }

    @property
    def speedup(self) -> float:
        """Time in float over time as it runs; below 1 it is slower."""
        return (sum(self.kernels_in_float.values()) + self.rest) / max(self.total, 1.0)


def estimate(model: ir.Model, running: Running) -> Costs | None:
    """Estimate; None where a size is not known, or a kernel belongs to no node of the model."""
    sized, assumed = _with_sizes(model)
    counted = macs_by_node(sized)
    if any(macs is None for _, macs in counted):
        sized, assumed = model, {}  # with the shapes that the file tells
        counted = macs_by_node(sized)
    matched = [(node, macs, running.kernel(node)) for node, macs in counted if macs is not None]
    used = {id(kernel) for _, _, kernel in matched}
    if len(matched) < len(counted) or any(id(kernel) not in used for kernel in running.kernels):
        return None
    sizes = _output_sizes(infer_shapes(sized))
    unpacked = {use.node.name for node, _, _ in running.dequantizers for use in node.outputs[0].uses()}
    signed = {id(node) for node in running.signed}
    kernels: dict[str, float] = {}
    in_float: dict[str, float] = {}
    for node, macs, kernel in matched:
        work = _Work(node, macs)
        key = "" if kernel is None else kernel.op_type
        if kernel is None:
            time = work.in_float(unpacked=node.name in unpacked)
        else:
            time = work.in_integers(kernel) * (_SIGNED if id(kernel) in signed else 1)
        kernels[key] = kernels.get(key, 0.0) + time
        in_float[key] = in_float.get(key, 0.0) + work.in_float()
    quantized = {"boundary": 0.0, "round trip": 0.0, "lookup": 0.0}
    for node, kind in running.quantizers:
        quantized[kind] += _NODE + _QUANTIZE * _elements(node, sizes)
    return Costs(
        kernels=kernels,
        kernels_in_float=in_float,
        boundaries=quantized["boundary"] + quantized["lookup"],
        round_trips=quantized["round trip"],
        dequantized=sum(_NODE + _per_number(node) * tensor.size for node, _, tensor in running.dequantizers),
        rest=sum(_rest(node, sizes) for node in running.nodes),
        macs=Macs(
            integer=sum(macs for _, macs, kernel in matched if kernel is not None),
            other=sum(macs for _, macs, kernel in matched if kernel is None),
            assumed=assumed,
        ),
    )


class _Work:
    """How much a multiplying node does, and what that costs."""

    def __init__(self, node: ir.Node, macs: int) -> None:
        shapes = [_stored_shape(value) for value in node.inputs]
        weights = [shape for shape in shapes if shape is not None and len(shape) > 1]
        kernel = next((s for s in weights if len(s) > 2), None) if "Conv" in node.op_type else None
        self.macs, self.out = macs, _size(node.outputs[0])
        self.weight = max(map(math.prod, weights), default=0)
        if node.op_type == "MatMulNBits":
            self.weight = node.attributes["K"].as_int() * node.attributes["N"].as_int()
        self.kernel = kernel
        if kernel is not None:
            self.taps = self.out // kernel[0] * math.prod(kernel[2:])  # of all pixels
            groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
            self.depthwise = kernel[1] == 1 and groups > 1

    def in_float(self, *, unpacked: bool = False) -> float:
        """Nanoseconds; `unpacked` weights are computed at each run."""
        if self.kernel is not None:
            filled = self.kernel[0] / (-self.kernel[0] // _BLOCK * -_BLOCK)
            return (
                self.macs / filled * (_FLOAT_UNPACKED if unpacked else _FLOAT_DEPTHWISE if self.depthwise else _FLOAT)
            )
        return max(self.macs * _FLOAT, self.weight * _READ_FLOAT)

    def in_integers(self, by: ir.Node) -> float:
        """Nanoseconds in an integer kernel with unsigned activations."""
        if by.op_type == "MatMulNBits":
            return self.in_float() * self._blocks(by)
        if self.kernel is None:
            return 2 * _NODE + max(self.macs * _INTEGER, self.weight * _READ_INTEGER) + _QUANTIZE * self.out
        if by.op_type == "ConvInteger":
            unfolded = self.taps * self.kernel[1] * (self.kernel[0] if self.depthwise else 1)
            return _CONV_INTEGER * self.macs + _UNFOLDED * unfolded + _SCALED * self.out
        if self.depthwise:
            return self.taps * (_DEPTHWISE_TAP + _DEPTHWISE_CHANNEL * self.kernel[0])
        return _INTEGER * self.macs + (_TAP * self.taps if math.prod(self.kernel[2:]) > 1 else 0)

    def _blocks(self, by: ir.Node) -> float:
        """Time of a MatMulNBits against float's, between the numbers of rows that were measured."""
        bits = by.attributes["bits"].as_int() if "bits" in by.attributes else 4
        low, middle, high = _BLOCKS.get((bits, accuracy_level(by) == 4), _BLOCKS[4, False])
        rows = min(max(self.macs / max(self.weight, 1), 1), 128)
        place = math.log2(rows)
        return low + (middle - low) * place / 4 if place < 4 else middle + (high - middle) * (place - 4) / 3


def _with_sizes(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
    """A copy whose inputs have no symbolic axes, and {axis: size} of those that got one.

    Shapes of inner values are dropped, which may name the same axes.
    """
    work = model.clone()
    drop_inner_shapes(work)
    first = [v.shape[0] for v in work.graph.inputs if v.shape is not None and len(v.shape)]
    batch = {str(d) for d in first if not isinstance(d, int)}
    assumed: dict[str, int] = {}
    for value in work.graph.inputs:
        if value.shape is None:
            continue
        sizes = list(value.shape)
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                name = str(size.value or f"{value.name}[{axis}]")
                sizes[axis] = assumed[name] = 1 if axis == 0 or str(size) in batch else _ASSUMED
        value.shape = ir.Shape(sizes)
    return work, assumed


def _output_sizes(model: ir.Model) -> dict[str, int]:
    """{name of a node or of a value: elements of the output}, of what has a name and a size."""
    found: dict[str, int] = {}
    for node in all_nodes(model):
        found.update((name, _size(node.outputs[0])) for name in (node.name, node.outputs[0].name) if name)
    return found


def _elements(node: ir.Node, sizes: Mapping[str, int]) -> int:
    """Elements of the output of a node that runs, as far as ORT left the model's names."""
    names = (node.name or "", *(value.name or "" for value in (*node.outputs[:1], *node.inputs[:1]) if value))
    known = (sizes.get(_GIVEN.sub("", name)) for name in names)
    return next((size for size in known if size), 0)


def _per_number(node: ir.Node) -> float:
    """Of a stored tensor that is turned into float: scales along the last axis are slow."""
    rank = len(shape) if (shape := _stored_shape(node.inputs[0])) is not None else 0
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    scales = _stored_shape(node.inputs[1])
    by_column = scales is not None and math.prod(scales) > 1 and axis in (-1, rank - 1)
    return _QUANTIZE_COLUMN if by_column else _QUANTIZE


def _rest(node: ir.Node, sizes: Mapping[str, int]) -> float:
    """Of a node that float has too; for one that multiplies only what a node costs at all."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return 0.0
    if node.op_type in MULTIPLYING or (node.domain, node.op_type) in WEIGHT_INPUTS:
        return _NODE
    return _NODE + (_NORMALIZED if node.op_type in _NORMALIZING else _ELEMENT) * _elements(node, sizes)


def _stored_shape(value: ir.Value | None) -> list[int] | None:
    origin = stored_origin(value)
    return None if origin is None else [int(d) for d in origin[1].shape.numpy()]


def _size(value: ir.Value) -> int:
    """Elements; 0 where not known."""
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return 0
    return math.prod(d for d in value.shape if isinstance(d, int))
