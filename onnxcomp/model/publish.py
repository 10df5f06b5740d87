"""Write a model whole or not at all (after ALICE, Pillai et al., OSDI 2014).

Everything is written into a private folder on the target's file system, synced, re-read and
verified; external data gets a name that holds its content's hash, so the renaming of the `.onnx`
is the one commit point: before it the old output is whole, after it the new one is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir
from onnx_ir import serde

from onnxcomp.errors import InvalidModelError, OnnxcompError, OutputError, UsageError, from_os_error
from onnxcomp.model import external, walk
from onnxcomp.model.fingerprint import ModelFile, fingerprint
from onnxcomp.model.load import read_proto, restore_map_types

#: initializer bytes above which the weights go into a file of their own
EXTERNAL_ABOVE = 1 << 30

_PREFIX = ".onnxcomp-stage-"
_UNBORN = ".onnxcomp-new-"
_ALIGN = 4096  # so that the runtime can map each tensor
_SMALL = 1024  # tensors below this stay in the .onnx, where shape inference can see them
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)  # no hard links here
_ABANDONED = 3600.0  # seconds after which a folder that never became a stage is litter


@dataclasses.dataclass(frozen=True)
class Staged:
    """A private folder beside the target; what it holds is published by renaming."""

    folder: Path
    target: Path


@contextlib.contextmanager
def stage(target: Path, *, force: bool = False, inputs: tuple[Path, ...] = ()) -> Iterator[Staged]:
    """A private folder on the target's file system, removed in the end; litter of killed runs goes too.

    Raises UsageError when the target is one of `inputs`, OutputError when it exists (without
    `force`), is a folder, or cannot be written.
    """
    refuse_target(target, force=force, inputs=inputs)
    with staging(target) as staged:
        yield staged


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Staged]:
    """The private folder of `stage`, without its checks of the target."""
    parent = target.absolute().parent
    try:
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=_UNBORN, dir=parent))
    except OSError as error:
        raise from_os_error(error, parent) from error
    try:
        with (folder / "owner").open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # only now may others see it: a stage folder whose owner is not locked is litter
            folder = folder.rename(parent / folder.name.replace(_UNBORN, _PREFIX))
            yield Staged(folder, target)
    except OSError as error:
        raise from_os_error(error, target) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(
    model: ir.Model,
    target: str | os.PathLike[str],
    *,
    verify: Callable[[Path], None],
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    record: Callable[[ModelFile], bytes] | None = None,
    external_above: int = EXTERNAL_ABOVE,
) -> ModelFile:
    """Write `model` to `target` (and `target.record.json`) atomically.

    Args:
        model: saved as it is; its tensors stream to the disk one by one.
        target: path of the `.onnx` file.
        verify: called with the staged file; what it raises stops the publication.
        force: replace an existing output.
        inputs: files that must not be overwritten.
        record: makes the record's bytes from the finished file.
        external_above: initializer bytes above which weights go to `STEM.HASH.data`.

    Raises OutputError (exists, disk full, permission), UsageError (in == out).
    """
    target = Path(target)
    with stage(target, force=force, inputs=inputs) as staged, _naming(staged):
        path = write_to(model, staged.folder, target.stem, external_above=external_above)
        verify(path)
        made = fingerprint(path)
        done = dataclasses.replace(made, path=str(target))
        if record is not None:
            note = staged.folder / record_path(target).name
            _write(note, record(done))
        _commit(staged, path, made, force=force, inputs=inputs)
    return done


def record_path(target: Path) -> Path:
    """Where the record of an output lies: `OUT.record.json`."""
    return target.with_name(target.name + ".record.json")


def write_to(model: ir.Model, folder: Path, stem: str, *, external_above: int = EXTERNAL_ABOVE) -> Path:
    """Write `STEM.onnx` (and `STEM.HASH.data`) into an existing folder; same model, same bytes.

    Raises OutputError when the disk is full.
    """
    held = [v for graph in model.graphs() for v in graph.initializers.values()]
    total = sum(v.const_value.nbytes for v in held if v.const_value is not None)
    try:
        if shutil.disk_usage(folder).free < total:
            raise OutputError(
                f"the disk is full: {total} bytes are needed",
                where=folder,
                hint="free some space, or write to another disk with -o",
            )
        proto = _to_proto(model, folder, stem, external=total > external_above)
        try:
            data = proto.SerializeToString(deterministic=True)
        except ValueError as error:
            raise InvalidModelError(
                f"the model cannot be written: {error}", hint="more than 2 GiB outside of initializers"
            ) from error
        path = folder / f"{stem}.onnx"
        _write(path, data)
    except OSError as error:
        raise from_os_error(error, folder) from error
    return path


def _to_proto(model: ir.Model, folder: Path, stem: str, *, external: bool) -> onnx.ModelProto:
    try:
        model = model.clone()
        if external:
            _externalize(model, folder, stem)
        _take_in(model, folder)
        proto: onnx.ModelProto = ir.to_proto(model)
    except (serde.SerdeError, ValueError, RuntimeError) as error:
        # onnx-ir loads graphs that it cannot clone or write: undefined values, names that are not UTF-8
        raise InvalidModelError(
            "the model cannot be written: its graph is inconsistent", hint="check the model that it was made from"
        ) from error
    restore_map_types(model, proto)
    _drop_redundant(proto)
    return proto


def _drop_redundant(proto: onnx.ModelProto) -> None:
    """Drop what onnx-ir writes twice: type and shape of initializers, the empty name of ONNX's domain."""
    for entry in proto.opset_import:
        if not entry.domain:
            entry.ClearField("domain")
    for graph in walk.graphs(proto):
        stored = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.value_info if value.name not in stored]
        if len(kept) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(kept)


def write_file(target: Path, data: bytes, *, force: bool = False) -> None:
    """Write any other output (a report, a result) atomically, by the same rules."""
    with stage(target, force=force) as staged:
        path = staged.folder / "file"
        _write(path, data)
        _move(path, target, force=force)
        sync_folder(target.absolute().parent)


def refuse_target(target: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """The checks of `stage`, to fail before any work is done."""
    try:
        for source in inputs:
            if target.absolute() == source.absolute() or _same(target, source):
                raise UsageError("output and input are the same file", where=target, hint="choose another -o")
        if target.is_dir():
            raise OutputError("the output is a folder", where=target, hint="name a file with -o")
        if os.path.lexists(target) and not force:
            raise OutputError("the output exists", where=target, hint="choose another -o, or add --force")
        if not target.absolute().parent.is_dir():
            raise OutputError("the output's folder does not exist", where=target.parent, hint="create it first")
        if target.is_file() and any(_same(target, data) for data in _data_of(inputs)):
            raise UsageError("the output is external data of the input", where=target, hint="choose another -o")
    except OSError as error:
        raise from_os_error(error, target) from error


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _data_of(inputs: tuple[Path, ...]) -> list[Path]:
    """External data files of the inputs that are models."""
    found: list[Path] = []
    for source in inputs:
        with contextlib.suppress(OnnxcompError):
            found += [source.absolute().parent / name for name in external.locations(read_proto(source))]
    return found


@contextlib.contextmanager
def _naming(staged: Staged) -> Iterator[None]:
    """Errors name the target, which the user knows, not the folder it is made in."""
    folder, target = str(staged.folder), staged.target
    try:
        yield
    except OnnxcompError as error:
        if error.where is None or folder not in error.where:
            raise
        where = error.where.replace(os.path.join(folder, f"{target.stem}.onnx"), str(target))
        where = where.replace(folder, str(target.absolute().parent))
        raise type(error)(error.message, where=where, hint=error.hint) from error


def _take_in(model: ir.Model, folder: Path) -> None:
    """Make the (cloned) model hold what still lies in data files of other models."""

    def inside(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor) or tensor.base_dir == folder:
            return tensor
        return ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = inside(value.const_value)
    for top in (model.graph, *(function.graph for function in model.functions.values())):
        for node in ir.traversal.RecursiveGraphIterator(top):
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, inside(attribute.as_tensor()))
                elif attribute.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = ir.AttrTensors(name, [inside(t) for t in attribute.as_tensors()])


def _externalize(model: ir.Model, folder: Path, stem: str) -> None:
    """Stream large initializers into one data file and point the (cloned) model at it."""
    draft = folder / "draft.data"
    digest = hashlib.sha256()
    spans: list[tuple[ir.Value, ir.TensorProtocol, int, int]] = []
    with draft.open("wb") as file:
        sink = _HashingFile(file, digest)
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _SMALL or tensor.dtype == ir.DataType.STRING:
                    continue
                sink.write(b"\0" * (-sink.size % _ALIGN))
                start = sink.size
                sink.write(tensor.tobytes())
                if isinstance(tensor, ir.ExternalTensor):
                    # mapped pages count as memory in use; read again, it is mapped again
                    with contextlib.suppress(BufferError):  # a copy of the model, not collected yet, reads them too
                        tensor.release()
                spans.append((value, tensor, start, sink.size - start))
        file.flush()
        os.fsync(file.fileno())
    name = f"{stem}.{digest.hexdigest()[:16]}.data"
    draft.rename(folder / name)
    for value, tensor, offset, length in spans:
        value.const_value = ir.ExternalTensor(
            name,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or value.name or "",
            base_dir=folder,
        )


class _HashingFile:
    """Counts and hashes what is written."""

    def __init__(self, file: IO[bytes], digest: hashlib._Hash) -> None:
        self._file, self._digest, self.size = file, digest, 0

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
        self.size += len(data)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _commit(staged: Staged, path: Path, made: ModelFile, *, force: bool, inputs: tuple[Path, ...]) -> None:
    """Data first, then the record, the `.onnx` last; then drop data files that only the old output used.

    A failure on the way brings back what was there.
    """
    target = staged.target
    parent = target.absolute().parent
    names = {name for name, _, _ in made.external}
    note = staged.folder / record_path(target).name
    with _locked(parent), contextlib.ExitStack() as undo:
        if os.path.lexists(target) and not force:
            raise OutputError("the output exists", where=target, hint="add --force to replace it")
        old = _own_data(target) - names
        for name in names:
            # what has this name has this content
            if not os.path.lexists(parent / name):
                undo.callback((parent / name).unlink, missing_ok=True)
            os.replace(staged.folder / name, parent / name)
        if note.exists():
            restore = _keep(parent / note.name, staged.folder)
            os.replace(note, parent / note.name)
            undo.callback(restore)
        sync_folder(parent)
        restore = _keep(target, staged.folder)
        _move(path, target, force=force)
        undo.callback(restore)
        sync_folder(parent)
        undo.pop_all()
        needed = _data_of(inputs) if old else []
        for name in old:
            if not any(_same(parent / name, data) for data in needed):
                (parent / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One commit at a time in a folder, so that a model and its record come from the same run."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _keep(path: Path, folder: Path) -> Callable[[], None]:
    """A function that brings back what stands at `path` now, or removes what came there."""
    if not os.path.lexists(path):
        return lambda: path.unlink(missing_ok=True)
    kept = folder / f"{path.name}.old"
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return lambda: None
    return lambda: os.replace(kept, path)


def _own_data(target: Path) -> set[str]:
    """External data files of an earlier output that carry our naming."""
    if not target.is_file():
        return set()
    try:
        names = external.locations(read_proto(target))
    except OnnxcompError:
        return set()  # what is replaced may be anything
    return {n for n in names if re.fullmatch(re.escape(target.stem) + r"\.[0-9a-f]{16}\.data", n)}


def _move(path: Path, target: Path, *, force: bool) -> None:
    if force:
        os.replace(path, target)
        return
    try:
        os.link(path, target)  # unlike a rename it fails where the target appeared meanwhile
        path.unlink()
    except FileExistsError as error:
        raise OutputError("the output exists", where=target, hint="add --force to replace it") from error
    except OSError:
        os.replace(path, target)  # a file system without hard links


def sync_folder(folder: Path) -> None:
    """Make what was renamed into a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sweep(parent: Path) -> None:
    """Remove stage folders whose process is gone: their owner file is not locked any more."""
    for folder in parent.glob(_PREFIX + "*"):
        try:
            with (folder / "owner").open("r") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its process lives
        except FileNotFoundError:
            pass  # its process died while it removed the folder
        except OSError:
            continue  # gone meanwhile, or not ours to judge
        shutil.rmtree(folder, ignore_errors=True)
    for folder in parent.glob(_UNBORN + "*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
