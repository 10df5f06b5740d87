"""Read a model file into an `onnx_ir.Model`, or say in one sentence why not."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir import serde

from onnxcomp.errors import InvalidModelError, UnsafeModelError, UnsupportedError, from_os_error
from onnxcomp.model import external, scan, walk
from onnxcomp.model.scan import Limits

#: protobuf refuses longer messages
_MAX_FILE = (1 << 31) - 1

#: where a graph output's value keeps a type that onnx-ir cannot hold
TYPE_PROTO = "onnxcomp.type_proto"

#: (first bytes, what it is, what to do) of files that are often mistaken for models
_LOOKALIKES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself", "run 'git lfs pull'"),
    (b"<", "a web page or XML, not an ONNX model", "download the raw file, not its page"),
    (b"{", "JSON, not an ONNX model", "name the .onnx file"),
    (b"PK\x03\x04", "a zip archive (a torch checkpoint, or packed)", "unpack it, or use 'onnxcomp export'"),
    (b"\x80\x02", "a pickle, not an ONNX model", "use 'onnxcomp export' for torch models"),
    (b"\x80\x04", "a pickle, not an ONNX model", "use 'onnxcomp export' for torch models"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras), not an ONNX model", "convert it to ONNX first"),
)


def load(path: str | os.PathLike[str], *, limits: Limits | None = None) -> ir.Model:
    """Load a model with every check done, external data mapped, not read.

    Sparse initializers become dense; optional inputs left empty at the end of a node are dropped
    (ORT 1.32 crashes on `LayerNormalization(x, scale, "")`).

    Raises:
        InvalidModelError: not a model, truncated, inconsistent, or external data missing.
        UnsafeModelError: external data outside the model's folder, or beyond `limits`.
        OutputError: the file cannot be read.
    """
    file = Path(path)
    proto = read_proto(file, limits=limits)
    normalize(proto)
    with _naming(file):
        _densify(proto, limits or Limits())
    opaque = _set_aside_map_types(proto)
    try:
        model: ir.Model = ir.from_proto(proto)
    except (serde.SerdeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InvalidModelError(f"the graph is inconsistent: {_first_line(error)}", where=file) from error
    for value in model.graph.outputs:
        if value.name in opaque:
            value.meta[TYPE_PROTO] = opaque[value.name]
    # absolute: onnx-ir must never resolve data against the working directory
    folder = file.absolute().parent
    ir.external_data.set_base_dir(model.graph, folder)
    for function in model.functions.values():
        ir.external_data.set_base_dir(function.graph, folder)
    return model


def read_proto(path: Path, *, limits: Limits | None = None) -> onnx.ModelProto:
    """Parse the file and check it (`scan`, `external`), without reading external data."""
    data = _read(path)
    for magic, what, hint in _LOOKALIKES:
        if data.startswith(magic):
            raise InvalidModelError(f"the file is {what}", where=path, hint=hint)
    if data[4:8] == b"ORTM":
        raise UnsupportedError("the file is in ORT format", where=path, hint="use the .onnx it was made from")
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise InvalidModelError(
            "the file is truncated, damaged or not an ONNX model",
            where=path,
            hint="compare its size and checksum with the source",
        ) from error
    with _naming(path):
        scan.check(proto, limits or Limits())
        external.check(proto, path)
    return proto


def is_normal(proto: onnx.ModelProto) -> bool:
    """Whether ORT may be given the file as it stands (see `normalize`)."""
    return not any(node.input and not node.input[-1] for node in walk.nodes(proto))


def normalize(proto: onnx.ModelProto) -> None:
    """Drop optional inputs that are left empty at the end of a node, in place; the meaning is the same."""
    for node in walk.nodes(proto):
        while node.input and not node.input[-1]:
            node.input.pop()


def restore_map_types(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Give the outputs of `proto`, made from `model`, the types that `load` set aside."""
    for value, info in zip(model.graph.outputs, proto.graph.output, strict=True):
        if TYPE_PROTO in value.meta:
            info.type.ParseFromString(value.meta[TYPE_PROTO])


def _set_aside_map_types(proto: onnx.ModelProto) -> dict[str, bytes]:
    """Clear types that onnx-ir cannot hold (maps, from ZipMap): {output name: serialized type}."""

    def has_map(info: onnx.TypeProto) -> bool:
        kind = info.WhichOneof("value")
        if kind == "sequence_type":
            return has_map(info.sequence_type.elem_type)
        if kind == "optional_type":
            return has_map(info.optional_type.elem_type)
        return bool(kind == "map_type")

    opaque = {v.name: v.type.SerializeToString() for v in proto.graph.output if has_map(v.type)}
    for value in proto.graph.output:
        if value.name in opaque:
            value.ClearField("type")
    inner = [v for v in proto.graph.value_info if not has_map(v.type)]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(inner)
    return opaque


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about a part of the model name its file too."""
    try:
        yield
    except (InvalidModelError, UnsupportedError) as error:
        where = path if error.where is None else f"{path}: {error.where}"
        raise type(error)(error.message, where=where, hint=error.hint) from error


def _read(path: Path) -> bytes:
    try:
        # O_NONBLOCK: a named pipe must not make us wait
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise InvalidModelError("not a regular file", where=path, hint="name an .onnx file")
            if info.st_size == 0:
                raise InvalidModelError("the file is empty", where=path, hint="download or export it again")
            if info.st_size > _MAX_FILE:
                raise InvalidModelError(
                    "the file is larger than protobuf's 2 GiB",
                    where=path,
                    hint="export the model with external data",
                )
            return file.read()
    except OSError as error:
        raise from_os_error(error, path) from error


def _densify(proto: onnx.ModelProto, limits: Limits) -> None:
    for graph in walk.graphs(proto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, limits))
        del graph.sparse_initializer[:]
    for node in walk.nodes(proto):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                attribute.t.CopyFrom(_dense(attribute.sparse_tensor, limits))
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.ClearField("sparse_tensor")


def _dense(sparse: onnx.SparseTensorProto, limits: Limits) -> onnx.TensorProto:
    name = sparse.values.name
    where = f"sparse tensor {name}"
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise UnsupportedError("a sparse tensor with external data", where=where)
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    size = int(np.prod(shape, dtype=object))
    if size * values.itemsize > limits.sparse_bytes:
        raise UnsafeModelError(
            f"a sparse tensor needs {size * values.itemsize} bytes once dense",
            where=where,
            hint="raise Limits.sparse_bytes if you trust the model",
        )
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        inside = bool(np.all((indices >= 0) & (indices < np.array(shape))))
        flat = np.ravel_multi_index(tuple(indices.T), shape) if inside else np.array([-1])
    else:
        flat = indices.reshape(-1)
    if len(flat) != values.size or (len(flat) and (flat.min() < 0 or flat.max() >= size)):
        raise InvalidModelError("indices of a sparse tensor do not fit its shape", where=where)
    if len(np.unique(flat)) != len(flat):
        raise InvalidModelError("a sparse tensor has two values at one index", where=where)
    dense = np.zeros(size, values.dtype)
    dense[flat] = values.reshape(-1)
    return onnx.numpy_helper.from_array(dense.reshape(shape), name)


def _first_line(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
