"""External data: tensors whose bytes lie in another file. We decide which files may be read.

The rule, stricter than onnx's and ORT's own (ORT follows hard links): a relative path without
`..`, inside the model's folder, no symbolic link in any component, a regular file with one hard
link, not the model itself, and 0 <= offset <= offset + length <= size with the exact length.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx

from onnxcomp.errors import InvalidModelError, UnsafeModelError
from onnxcomp.model import walk
from onnxcomp.model.scan import tensor_bytes


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model that keeps its bytes in another file."""
    for tensor in walk.tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def locations(proto: onnx.ModelProto) -> set[str]:
    """The relative paths of all external data files that the model names."""
    return {_entries(tensor).get("location", "") for tensor in tensors(proto)}


def check(proto: onnx.ModelProto, model_path: Path) -> None:
    """Check every external tensor against the rule above.

    Raises UnsafeModelError for what leaves the folder, InvalidModelError for what is missing or
    has the wrong length; both name the tensor.
    """
    folder = model_path.absolute().parent
    sizes: dict[str, int] = {}
    for tensor in tensors(proto):
        entries = _entries(tensor)
        location = entries.get("location", "")
        if location not in sizes:
            sizes[location] = _checked_size(folder, location, model_path, tensor.name)
        _check_span(tensor, entries, sizes[location])


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    out: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in out:
            raise InvalidModelError(f"external data key '{entry.key}' stands twice", where=f"tensor {tensor.name}")
        out[entry.key] = entry.value
    return out


def _checked_size(folder: Path, location: str, model_path: Path, name: str) -> int:
    """Size in bytes of the file, opened component by component without following links."""
    where = f"tensor {name}, location {location!r}"
    hint = "external data must be a plain file below the model's own folder"
    if not isinstance(location, str):
        raise UnsafeModelError("external data location is not UTF-8", where=where, hint=hint)
    parts = Path(location).parts
    if not location or "\0" in location or "\\" in location:
        raise UnsafeModelError("external data has no usable location", where=where, hint=hint)
    if os.path.isabs(location) or ".." in parts or location.startswith("*/"):
        raise UnsafeModelError("external data outside the model's folder", where=where, hint=hint)
    if not parts:
        raise UnsafeModelError("external data location is a folder", where=where, hint=hint)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            # O_NONBLOCK: opening a named pipe must not wait for a writer
            flags = os.O_RDONLY | os.O_NOFOLLOW | (os.O_NONBLOCK if last else os.O_DIRECTORY)
            inner = os.open(part, flags, dir_fd=fd)
            os.close(fd)
            fd = inner
        info = os.fstat(fd)
    except FileNotFoundError as error:
        raise InvalidModelError(
            "external data file is missing",
            where=where,
            hint=f"put {location} beside the model; both files belong together",
        ) from error
    except OSError as error:
        raise UnsafeModelError(
            f"external data file cannot be opened safely: {error.strerror}", where=where, hint=hint
        ) from error
    finally:
        os.close(fd)
    if not stat.S_ISREG(info.st_mode):
        raise UnsafeModelError("external data is not a regular file", where=where, hint=hint)
    if info.st_nlink != 1:
        raise UnsafeModelError("external data file has more than one hard link", where=where, hint="copy the file")
    if os.path.samestat(info, os.stat(model_path)):
        raise UnsafeModelError("external data is the model file itself", where=where, hint=hint)
    return info.st_size


def _check_span(tensor: onnx.TensorProto, entries: dict[str, str], size: int) -> None:
    where = f"tensor {tensor.name}"
    expected = tensor_bytes(tensor)
    offset = _number(entries.get("offset", "0"), where)
    length = _number(entries.get("length", str(expected)), where)
    if length != expected:
        raise InvalidModelError(f"external data length is {length}, the shape needs {expected} bytes", where=where)
    if offset < 0 or offset + length > size:
        raise InvalidModelError(
            f"external data ends at byte {offset + length}, the file has {size}",
            where=where,
            hint="the data file is truncated or belongs to another model",
        )


def _number(text: str, where: str) -> int:
    # int() also takes '1_0', ' 1' and other scripts' digits, which ORT reads differently
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise InvalidModelError("external data offset or length is not a number", where=where)
    return int(text)
