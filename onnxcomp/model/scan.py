"""The checks a model must pass before any parser or runtime beyond protobuf sees it.

Bombs are a few kilobytes: functions that call each other twice, nested subgraphs, tensors that
declare terabytes. Each check is one linear pass over the protobuf message.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import onnx

from onnxcomp.errors import InvalidModelError, UnsafeModelError
from onnxcomp.model import walk


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a model may declare at most.

    Attributes:
        nesting: depth of subgraphs within subgraphs.
        expanded_nodes: nodes after every call of a local function is expanded.
        elements: elements of one tensor.
        sparse_bytes: bytes of a sparse initializer once it is dense.
    """

    nesting: int = 64
    expanded_nodes: int = 1_000_000
    elements: int = 1 << 40
    sparse_bytes: int = 1 << 30


#: bits per element, for the types whose tensors have a fixed size
_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.UINT64: 64,
    onnx.TensorProto.COMPLEX64: 64,
    onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.FLOAT8E4M3FN: 8,
    onnx.TensorProto.FLOAT8E4M3FNUZ: 8,
    onnx.TensorProto.FLOAT8E5M2: 8,
    onnx.TensorProto.FLOAT8E5M2FNUZ: 8,
    onnx.TensorProto.FLOAT8E8M0: 8,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
    onnx.TensorProto.UINT2: 2,
    onnx.TensorProto.INT2: 2,
    27: 6,  # FLOAT6E2M3 and FLOAT6E3M2: names that onnx has since 1.23
    28: 6,
}


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the declared shape and type need. Raises InvalidModelError for an unknown type."""
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise InvalidModelError(f"tensor of unknown element type {tensor.data_type}", where=f"tensor {tensor.name}")
    return (math.prod(map(int, tensor.dims)) * bits + 7) // 8


def check(proto: onnx.ModelProto, limits: Limits) -> None:
    """Raise InvalidModelError or UnsafeModelError for the first thing that is wrong."""
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise InvalidModelError("no graph in the file", hint="the file is empty, truncated or not an ONNX model")
    if proto.training_info:
        raise InvalidModelError(
            "the model carries training info",
            hint="export it for inference; training graphs are not supported",
        )
    if not proto.opset_import:
        raise InvalidModelError("the model imports no operator set")
    _check_nesting(proto, limits)
    _check_names(proto)
    for tensor in walk.tensors(proto):
        _check_tensor(tensor, limits)
    for sparse in walk.sparse_tensors(proto):
        _check_sparse(sparse, limits)
    _check_expansion(proto, limits)


def _check_nesting(proto: onnx.ModelProto, limits: Limits) -> None:
    deepest = max(depth for _, depth in walk.node_lists(proto))
    if deepest > limits.nesting:
        raise UnsafeModelError(
            f"subgraphs are nested {deepest} deep, the limit is {limits.nesting}",
            hint="raise Limits.nesting if you trust the model",
        )


def _check_names(proto: onnx.ModelProto) -> None:
    for graph in walk.graphs(proto):
        seen: set[str] = set()
        for name in [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]:
            if not isinstance(name, str):
                raise InvalidModelError("the name of an initializer is not UTF-8", where=f"initializer {name!r}")
            if name in seen:
                raise InvalidModelError("initializer defined twice", where=f"initializer {name}")
            if not name:
                raise InvalidModelError("an initializer has no name", where=f"graph {graph.name}")
            seen.add(name)
    for value in proto.graph.output:
        if not value.name:
            raise InvalidModelError("a graph output has no name", where=f"graph {proto.graph.name}")


def _check_tensor(tensor: onnx.TensorProto, limits: Limits) -> None:
    where = f"tensor {tensor.name}"
    _check_dims(tensor.dims, limits, where)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if tensor.data_type == onnx.TensorProto.STRING:
            raise InvalidModelError("a string tensor cannot be external", where=where)
        return
    if tensor.data_type == onnx.TensorProto.STRING:
        stored, needed = len(tensor.string_data), math.prod(tensor.dims)
    elif tensor.HasField("raw_data"):
        stored, needed = len(tensor.raw_data), tensor_bytes(tensor)
    else:
        tensor_bytes(tensor)  # the type must be known
        stored, needed = _typed_length(tensor), _typed_needed(tensor)
    if stored != needed:
        raise InvalidModelError(
            f"the tensor's data has {stored} entries, its shape needs {needed}",
            where=where,
            hint="the file is damaged",
        )


def _check_dims(dims: Iterable[int], limits: Limits, where: str) -> None:
    if any(d < 0 for d in dims):
        raise InvalidModelError("a tensor has a negative dimension", where=where)
    # without the zeros: numpy cannot hold a shape whose other axes overflow, even an empty one
    elements = math.prod(d for d in dims if d)
    if elements > limits.elements:
        raise UnsafeModelError(
            f"a tensor declares {elements} elements, the limit is {limits.elements}",
            where=where,
            hint="raise Limits.elements if you trust the model",
        )


def _check_sparse(sparse: onnx.SparseTensorProto, limits: Limits) -> None:
    where = f"sparse tensor {sparse.values.name}"
    if not sparse.dims:
        raise InvalidModelError("a sparse tensor has no axis", where=where)
    _check_dims(sparse.dims, limits, where)
    if sparse.values.data_type == onnx.TensorProto.STRING:
        raise InvalidModelError("a sparse tensor of strings", where=where)
    if sparse.indices.data_type != onnx.TensorProto.INT64:
        raise InvalidModelError("indices of a sparse tensor are not int64", where=where)


def _typed_length(tensor: onnx.TensorProto) -> int:
    """Entries of the one field that may hold this type (onnx.proto, TensorProto)."""
    fields = {
        onnx.TensorProto.FLOAT: tensor.float_data,
        onnx.TensorProto.COMPLEX64: tensor.float_data,
        onnx.TensorProto.DOUBLE: tensor.double_data,
        onnx.TensorProto.COMPLEX128: tensor.double_data,
        onnx.TensorProto.INT64: tensor.int64_data,
        onnx.TensorProto.UINT32: tensor.uint64_data,
        onnx.TensorProto.UINT64: tensor.uint64_data,
    }
    return len(fields.get(tensor.data_type, tensor.int32_data))


def _typed_needed(tensor: onnx.TensorProto) -> int:
    """Entries of the typed field: complex numbers take two, 2 and 4 bits are packed by byte."""
    count = math.prod(map(int, tensor.dims))
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * count
    if _BITS[tensor.data_type] < 6:
        return tensor_bytes(tensor)
    return count


def _check_expansion(proto: onnx.ModelProto, limits: Limits) -> None:
    """Count nodes after expansion of local functions, bottom-up; ORT's own limits do not stop this bomb."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if not functions:
        return
    if len(functions) < len(proto.functions):
        raise InvalidModelError("a local function is defined twice")
    sizes: dict[tuple[str, str, str], int] = {}
    visiting: set[tuple[str, str, str]] = set()

    def total(nodes: list[onnx.NodeProto]) -> int:
        count, stack = 0, list(nodes)
        while stack:
            node = stack.pop()
            key = (node.domain, node.op_type, node.overload)
            count += size_of(key) if key in functions else 1
            for graph in walk.subgraphs(node):
                stack.extend(graph.node)
            if count > limits.expanded_nodes:
                raise UnsafeModelError(
                    f"more than {limits.expanded_nodes} nodes once local functions are expanded",
                    where=f"function {node.domain}::{node.op_type}",
                    hint="raise Limits.expanded_nodes if you trust the model",
                )
        return count

    def size_of(key: tuple[str, str, str]) -> int:
        if key in visiting:
            raise InvalidModelError("a local function calls itself", where=f"function {key[0]}::{key[1]}")
        if key not in sizes:
            if len(visiting) > limits.nesting:
                raise UnsafeModelError(
                    f"local functions call each other more than {limits.nesting} deep",
                    where=f"function {key[0]}::{key[1]}",
                    hint="raise Limits.nesting if you trust the model",
                )
            visiting.add(key)
            sizes[key] = total(list(functions[key].node))
            visiting.discard(key)
        return sizes[key]

    total(list(proto.graph.node))
    for key in functions:
        size_of(key)
