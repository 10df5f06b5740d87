"""Publish a whole folder: it appears complete, or what stood there before stays."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxcomp.errors import OutputError, UsageError, from_os_error
from onnxcomp.model.publish import staging, sync_folder

#: Linux: swap two paths in one step, and 'relative to the working directory'
_EXCHANGE, _AT_FDCWD = 2, -100


@contextlib.contextmanager
def stage_folder(
    target: Path, *, owned: Callable[[Path], bool], force: bool = False, inputs: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """An empty folder beside the target that takes its place, synced, when the block ends without an error.

    Args:
        target: the folder to be.
        owned: whether a folder is an earlier output of the same kind, which `force` may replace.
        force: replace an earlier output, in one step where the file system can swap.
        inputs: files that must not lie in the folder.

    Raises OutputError (exists, is not ours to replace, disk full, permission), UsageError (an input in it).
    """
    refuse_folder(target, owned=owned, force=force, inputs=inputs)
    with staging(target) as staged:
        folder = staged.folder / "folder"
        folder.mkdir()
        yield folder
        _sync_tree(folder)
        refuse_folder(target, owned=owned, force=force, inputs=inputs)
        _place(folder, target, staged.folder / "old")
        sync_folder(target.absolute().parent)


def refuse_folder(target: Path, *, owned: Callable[[Path], bool], force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """The checks of `stage_folder`, to fail before any work is done."""
    try:
        inside = os.path.realpath(target)
        for source in inputs:
            if os.path.commonpath([inside, os.path.realpath(source)]) == inside:
                raise UsageError("an input lies in the output's folder", where=source, hint="choose another -o")
        if not target.absolute().parent.is_dir():
            raise OutputError("the output's folder does not exist", where=target.parent, hint="create it first")
        if not os.path.lexists(target):
            return
        if not force:
            raise OutputError("the output exists", where=target, hint="choose another -o, or add --force")
        if target.is_symlink() or not target.is_dir() or not (owned(target) or not any(target.iterdir())):
            raise OutputError(
                "what stands there is not an earlier output, and is not replaced",
                where=target,
                hint="choose another -o, or remove it first",
            )
    except OSError as error:
        raise from_os_error(error, target) from error


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            fd = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(place))


def _place(folder: Path, target: Path, old: Path) -> None:
    """Move the folder to its place; what stood there goes to `old`, which the stage removes."""
    if not os.path.lexists(target):
        os.rename(folder, target)
    elif not _swap(folder, target):
        # two steps where one is not to be had: for a moment nothing stands there
        os.rename(target, old)
        try:
            os.rename(folder, target)
        except OSError:
            os.rename(old, target)
            raise


def _swap(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    failed = ctypes.get_errno()
    if failed in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(failed, os.strerror(failed), str(other))
