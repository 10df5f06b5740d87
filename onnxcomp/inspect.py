"""What a model weighs: bytes, parameters, operators, multiply-accumulates, quantized share."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp import model as models
from onnxcomp.callable import make_callable
from onnxcomp.model import ModelFile, Signature

#: key of a node's metadata: path of the torch module that it came from, 'encoder.layer.3'
MODULE = "onnxcomp.module"

#: operators that hold weights -> which inputs may be weights, by (domain, op type)
WEIGHT_INPUTS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "ConvInteger"): (1,),
    ("", "QLinearConv"): (3,),
    ("", "Gather"): (0,),
    ("", "Gemm"): (0, 1),
    ("", "MatMul"): (0, 1),
    ("", "MatMulInteger"): (0, 1),
    ("", "QLinearMatMul"): (0, 3),
    ("", "LSTM"): (1, 2),
    ("", "GRU"): (1, 2),
    ("", "RNN"): (1, 2),
    ("com.microsoft", "Attention"): (1,),
    ("com.microsoft", "DynamicQuantizeLSTM"): (1, 2),
    ("com.microsoft", "DynamicQuantizeMatMul"): (1,),
    ("com.microsoft", "FusedConv"): (1,),
    ("com.microsoft", "FusedGemm"): (0, 1),
    ("com.microsoft", "FusedMatMul"): (0, 1),
    ("com.microsoft", "GatherBlockQuantized"): (0,),
    ("com.microsoft", "MatMulIntegerToFloat"): (0, 1),
    ("com.microsoft", "MatMulNBits"): (1,),
    ("com.microsoft", "QGemm"): (3,),
    ("com.microsoft.nchwc", "Conv"): (1,),
}

#: operators between a stored tensor and its use that do not change what it is
_TRANSPARENT = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "DequantizeLinear"}

#: operators that unpack codes, as `cluster-weights` writes them
_UNPACKING = {"Add", "BitShift", "Cast", "Reshape", "Slice"}

#: of com.microsoft, as `fuse` writes it; two products without stored weights
_ATTENTION = "MultiHeadAttention"

_BLOCKS = "MatMulNBits"

#: of com.microsoft -> the standard operator with the same output shape
_STAND_INS = {
    "DynamicQuantizeLSTM": "LSTM",
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    _ATTENTION: "Einsum",
    _BLOCKS: "MatMul",
    "QGemm": "Gemm",
    "QLinearAdd": "Add",
    "QLinearMul": "Mul",
    "QLinearSigmoid": "Sigmoid",
}

#: which input of theirs is the second of the standard operator
_SECOND = {_ATTENTION: 2, "QGemm": 3, "QLinearAdd": 3, "QLinearMul": 3}

_GATES = {"DynamicQuantizeLSTM": 4, "LSTM": 4, "GRU": 3, "RNN": 1}


@dataclasses.dataclass(frozen=True)
class Weight:
    """A stored tensor of two or more axes that a node multiplies with or looks up.

    Attributes:
        value: the initializer's value, or the output of the Constant node.
        tensor: the stored tensor.
        node: the first node that uses it.
        nested: whether it is used inside a subgraph or a local function.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    node: ir.Node
    nested: bool

    @property
    def quantized(self) -> bool:
        """Whether it is stored in 8 bits or fewer."""
        return self.tensor.dtype.bitwidth <= 8


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in a model; see `Inspection` for the file it came from.

    Attributes:
        parameters: elements of stored float and 8-bit (or smaller) tensors; of a weight that is stored in codes,
            those of the weight.
        bytes_by_dtype: bytes of stored tensors by element type.
        ops: how often each 'domain::op' occurs, subgraphs and functions included.
        initializers: how many stored tensors there are, Constant nodes included.
        initializer_bytes: their bytes.
        tied: how many are byte-identical to an earlier one.
        zero_fraction: zeros among the parameters that are not stored in codes, in [0, 1].
        quantized_weights: see `weights`.
        total_weights: those, and the clustered ones.
        clustered_weights: stored in codes, as `cluster-weights` writes them; ORT computes their floats at load.
        macs: multiply-accumulates of one sample (symbolic first axis = 1); None when no size is known.
        macs_unknown: weight-bearing nodes whose sizes are not known, not part of `macs`.
    """

    parameters: int
    bytes_by_dtype: Mapping[str, int]
    ops: Mapping[str, int]
    initializers: int
    initializer_bytes: int
    tied: int
    zero_fraction: float
    quantized_weights: int
    total_weights: int
    clustered_weights: int
    macs: int | None
    macs_unknown: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A model file and its contents."""

    file: ModelFile
    opset: Mapping[str, int]
    ir_version: int
    producer: str
    contents: Contents
    signature: Signature

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp inspect --json`."""
        c = self.contents
        return {
            "model": {
                **self.file.to_json(),
                "opset": dict(self.opset),
                "ir_version": self.ir_version,
                "producer": self.producer,
            },
            "parameters": c.parameters,
            "bytes_by_dtype": dict(c.bytes_by_dtype),
            "ops": dict(c.ops),
            "initializers": {
                "count": c.initializers,
                "bytes": c.initializer_bytes,
                "tied": c.tied,
                "zero_fraction": c.zero_fraction,
            },
            "quantized": {"weights": c.quantized_weights, "of": c.total_weights},
            "clustered": {"weights": c.clustered_weights},
            "macs": c.macs,
            "macs_unknown_nodes": c.macs_unknown,
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
        }


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Inspect a model file. Raises what `onnxcomp.load` raises."""
    model = models.load(path)
    return Inspection(
        file=models.fingerprint(path),
        opset={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        ir_version=model.ir_version,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        contents=measure(model),
        signature=models.signature(model),
    )


def measure(model: ir.Model) -> Contents:
    """Count what is in a model; nothing is changed, one tensor is in memory at a time."""
    by_dtype: collections.Counter[str] = collections.Counter()
    parameters = zeros = tied = total = 0
    seen: set[tuple[object, ...]] = set()
    stored = list(constants(model))
    palettes = _palettes(model)
    coded = {value for _, values in palettes for value in values}
    for value, tensor in stored:
        by_dtype[models.dtype_name(tensor.dtype)] += tensor.nbytes
        total += tensor.nbytes
        if value in coded:
            continue
        key = content_key(tensor)
        tied += key in seen
        seen.add(key)
        if is_parameter(tensor):
            parameters += tensor.size
            zeros += tensor.size - int(np.count_nonzero(tensor.numpy()))
    found = weights(model)
    macs, unknown = _macs(model)
    return Contents(
        parameters=parameters + sum(size for size, _ in palettes),
        bytes_by_dtype=dict(sorted(by_dtype.items())),
        ops=dict(sorted(op_counts(model).items())),
        initializers=len(stored),
        initializer_bytes=total,
        tied=tied,
        zero_fraction=zeros / parameters if parameters else 0.0,
        quantized_weights=sum(w.quantized for w in found),
        total_weights=len(found) + len(palettes),
        clustered_weights=len(palettes),
        macs=macs,
        macs_unknown=unknown,
    )


def op_counts(model: ir.Model) -> collections.Counter[str]:
    """How often each 'domain::op' occurs; the default domain is 'ai.onnx'."""
    return collections.Counter(f"{n.domain or 'ai.onnx'}::{n.op_type}" for n in all_nodes(model))


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph, of subgraphs and of local functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every stored tensor: initializers of all graphs, and tensors of Constant nodes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for node in all_nodes(model):
        tensor = _constant_node(node)
        if tensor is not None:
            yield node.outputs[0], tensor


def weights(model: ir.Model) -> list[Weight]:
    """The distinct weights: stored tensors of rank 2 or more that reach a weight input.

    Weights in Constant nodes count, as do those behind a Transpose or DequantizeLinear.
    """
    found: dict[int, Weight] = {}
    main = model.graph
    for node in all_nodes(model):
        for index in WEIGHT_INPUTS.get((node.domain, node.op_type), ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            origin = stored_origin(value)
            if origin is None or id(origin[0]) in found:
                continue
            stored, tensor = origin
            if len(tensor.shape) >= 2 and is_parameter(tensor):
                found[id(stored)] = Weight(stored, tensor, node, node.graph is not main)
    return list(found.values())


def stored_origin(value: ir.Value | None) -> tuple[ir.Value, ir.TensorProtocol] | None:
    """The stored tensor that a value is, up to type, shape and order; None for computed values."""
    while value is not None:
        if value.const_value is not None and value.producer() is None:
            return value, value.const_value
        node = value.producer()
        if node is None:
            return None
        tensor = _constant_node(node)
        if tensor is not None:
            return value, tensor
        if node.op_type not in _TRANSPARENT:
            return None
        value = node.inputs[0] if node.inputs else None
    return None


def is_parameter(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor holds learnt numbers: floats, or quantized integers; int64 holds shapes."""
    return tensor.dtype.is_floating_point() or (tensor.dtype.bitwidth <= 8 and tensor.dtype != ir.DataType.BOOL)


def content_key(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Equal for tensors of the same type, shape and bytes."""
    digest = repr(tensor.numpy().tolist()).encode() if tensor.dtype == ir.DataType.STRING else tensor.tobytes()
    return tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(digest).digest()


def infer_shapes(model: ir.Model) -> ir.Model:
    """Infer shapes in place as far as onnx can; a model it cannot digest stays as it is."""
    common.RemoveInitializersFromInputsPass()(model)
    try:
        with _known_to_onnx(model):
            common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    except (ir.serde.SerdeError, ir.passes.PassError, RuntimeError, ValueError):
        return model  # types that onnx-ir cannot hold, or a shape that contradicts itself
    return model


def macs_by_node(model: ir.Model) -> list[tuple[ir.Node, int | None]]:
    """(node, its multiply-accumulates) for every node that multiplies; None where sizes are not known.

    Of one sample (a symbolic first axis is 1). The nodes are those of a copy with inferred shapes.
    """

    def multiplying(model: ir.Model) -> list[ir.Node]:
        nodes = model.graph.all_nodes()
        weighty = {key for key in WEIGHT_INPUTS if "Gather" not in key[1]} | {("com.microsoft", _ATTENTION)}
        return [n for n in nodes if (n.domain, n.op_type) in weighty]

    if not multiplying(model):
        return []
    return [(node, _node_macs(node)) for node in multiplying(infer_shapes(model.clone()))]


@contextlib.contextmanager
def _known_to_onnx(model: ir.Model) -> Iterator[None]:
    """Let operators of com.microsoft, none of which onnx knows, stand as ones with the same output shape.

    MultiHeadAttention of (B, S, E), (B, L, E) and (B, L, Ev) gives (B, S, Ev); MatMulNBits multiplies
    by a matrix of (K, N), its attributes.
    """
    nodes = [n for n in all_nodes(model) if n.domain == "com.microsoft" and n.op_type in _STAND_INS]
    kept = [(n, n.op_type, tuple(n.inputs)) for n in nodes if n.op_type != _ATTENTION or len(n.inputs) > 2]
    matrices: list[str] = []
    for node, op_type, inputs in kept:
        node.op_type, node.domain = _STAND_INS[op_type], ""
        if op_type in _SECOND:
            second = inputs[_SECOND[op_type]]
        elif op_type == _BLOCKS:
            sizes = [node.attributes[key].as_int() for key in ("K", "N")]
            name = f"onnxcomp_matrix_{len(matrices)}"
            zeros = ir.tensor(np.broadcast_to(np.float32(0), sizes), name=name)
            second = ir.Value(
                name=name, shape=ir.Shape(sizes), type=ir.TensorType(ir.DataType.FLOAT), const_value=zeros
            )
            model.graph.register_initializer(second)
            matrices.append(name)
        else:
            continue
        node.resize_inputs(2)
        node.replace_input_with(1, second)
        node.attributes["equation"] = ir.AttrString("equation", "abc,ade->abe")
    try:
        yield
    finally:
        for node, op_type, inputs in kept:
            node.op_type, node.domain = op_type, "com.microsoft"
            if len(node.inputs) != len(inputs):
                node.resize_inputs(len(inputs))
            for index, value in enumerate(inputs):
                node.replace_input_with(index, value)
            node.attributes.pop("equation", None)
        for name in matrices:
            del model.graph.initializers[name]


def _palettes(model: ir.Model) -> list[tuple[int, set[ir.Value]]]:
    """(elements, all that is stored for it) of each weight that is looked up in a codebook, scales times it."""
    found = []
    for node in model.graph:
        look = node.inputs[0].producer() if node.op_type == "Mul" and node.inputs[0] is not None else None
        if look is None or look.op_type != "Gather" or look.domain:
            continue
        book, codes, scales = (_unpacked(value) for value in (*look.inputs, node.inputs[1]))
        if book is None or codes is None or scales is None or len(book[1] | scales[1]) > 2:
            continue
        if any(v.const_value is not None and v.const_value.dtype == ir.DataType.UINT8 for v in codes[1]):
            found.append((codes[0], book[1] | codes[1] | scales[1]))
    return found


def _unpacked(value: ir.Value | None) -> tuple[int, set[ir.Value]] | None:
    """(elements, all that is stored for it) of what is stored, or unpacked from it; None for others."""
    node = None if value is None else value.producer()
    if value is None or node is None:
        tensor = None if value is None else value.const_value
        return None if value is None or tensor is None else (tensor.size, {value})
    parts = [_unpacked(part) for part in node.inputs] if node.op_type in _UNPACKING and not node.domain else [None]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    shape = node.inputs[1].const_value if node.op_type == "Reshape" and node.inputs[1] is not None else None
    size = known[0][0] if shape is None or np.any(shape.numpy() < 0) else math.prod(shape.numpy().tolist())
    return size, {stored for _, held in known for stored in held}


def _constant_node(node: ir.Node) -> ir.TensorProtocol | None:
    if node.op_type != "Constant" or node.domain or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor()


def _macs(model: ir.Model) -> tuple[int | None, int]:
    counted = [macs for _, macs in macs_by_node(model)]
    known = [c for c in counted if c is not None]
    if counted and not known:
        return None, len(counted)
    return sum(known), len(counted) - len(known)


def _node_macs(node: ir.Node) -> int | None:
    out = _sizes(node.outputs[0]) if node.outputs else None
    first = _sizes(node.inputs[0])
    if node.op_type == _ATTENTION:
        key, value = (_sizes(v) for v in node.inputs[1:3]) if len(node.inputs) > 2 else (None, None)
        known = first is not None and key is not None and value is not None and len(first) == len(key) == len(value)
        return math.prod(first[:2]) * key[1] * (key[2] + value[2]) if known and first and key and value else None
    index = WEIGHT_INPUTS[node.domain, node.op_type][-1]
    second = _sizes(node.inputs[index]) if index < len(node.inputs) else None
    if first is None or second is None:
        return None
    if node.op_type in _GATES:
        hidden, width = second[1 if node.domain else -1], first[-1]
        return math.prod(first[:-1]) * second[0] * _GATES[node.op_type] * hidden * (hidden + width)
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if out is None:
        return None
    if "Conv" in node.op_type:
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int():
        return math.prod(out) * first[0]
    return math.prod(out) * (first[-1] if first else 1)


def _sizes(value: ir.Value | None) -> list[int] | None:
    """The shape with a symbolic first axis as 1; None when any other size is not known."""
    if value is None:
        return None
    origin = stored_origin(value) if value.shape is None else None
    shape = value.shape if origin is None else origin[1].shape
    if shape is None:
        return None
    sizes = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(shape)]
    return [d for d in sizes if isinstance(d, int)] if all(isinstance(d, int) for d in sizes) else None


make_callable(__name__, inspect)
