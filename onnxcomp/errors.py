"""Every exception of onnxcomp, each with the exit code of the command line.

    OnnxcompError
    ├── UsageError             2   options that do not fit together
    ├── RecipeError            2   a recipe that does not say what to do
    ├── InvalidModelError      3   not a model, or a broken one
    │   └── UnsafeModelError   3   a model that reaches outside its folder, or a bomb
    ├── DataError              3   arrays that do not fit the model
    ├── CalibrationError       3   data that fits but cannot calibrate
    ├── UnsupportedError       4   legal, but not something we (or this host) can do
    │   └── ProviderError      4   an execution provider that is not there
    ├── GateError              5   a result that failed its check; nothing was published
    │   ├── NoEffectError      5   a pass that changed nothing, or made the file larger
    │   ├── AccuracyGateError  5   the result is not as good as asked
    │   └── RegressionError    5   worse than the baseline, beyond the noise
    ├── LimitError             6   more memory, disk, size or time than allowed
    │   └── WorkerTimeoutError 6   the worker ran out of time
    ├── WorkerCrashError       7   the worker process died
    ├── OutputError            8   reading or writing files failed
    └── UndecidedError         9   the noise does not allow a verdict

Anything else that escapes is a bug of ours (exit code 1).
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any, ClassVar

#: error texts can quote model content; keep a hostile model from flooding the terminal
MAX_TEXT = 4096


class OnnxcompError(Exception):
    """Base of all errors that the user can act on.

    Args:
        message: what happened, one sentence without a final full stop.
        where: the file, node, tensor or key concerned.
        hint: what to do next.
    """

    code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: object = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = _clip(message)
        self.where = None if where is None else _clip(str(where))
        self.hint = None if hint is None else _clip(hint)

    def __str__(self) -> str:
        return self.message if self.where is None else f"{self.message} ({self.where})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.where, self.hint)

    def to_json(self) -> dict[str, Any]:
        """The `onnxcomp/error/1` object of the command line."""
        return {
            "schema": "onnxcomp/error/1",
            "code": self.code,
            "class": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
        }


class UsageError(OnnxcompError):
    """Options or arguments that do not fit together."""

    code = 2


class RecipeError(OnnxcompError):
    """A recipe with an unknown key, a wrong type or no pass."""

    code = 2


class InvalidModelError(OnnxcompError):
    """The file is not an ONNX model, or a broken one."""

    code = 3


class UnsafeModelError(InvalidModelError):
    """The model reaches outside its folder or unfolds beyond the limits."""


class DataError(OnnxcompError):
    """Arrays that do not fit the model's inputs, or no data at all."""

    code = 3


class CalibrationError(OnnxcompError):
    """Data that fits the model but cannot calibrate it."""

    code = 3


class UnsupportedError(OnnxcompError):
    """Legal, but nothing onnxcomp or this host can do."""

    code = 4


class ProviderError(UnsupportedError):
    """The execution provider asked for is not usable here."""


class GateError(OnnxcompError):
    """A result failed its check; nothing was published."""

    code = 5


class NoEffectError(GateError):
    """A pass changed nothing, or its result is larger than its input."""


class AccuracyGateError(GateError):
    """The result is less accurate than asked."""


class RegressionError(GateError):
    """Worse than the baseline, beyond the noise."""


class LimitError(OnnxcompError):
    """More memory, disk, size or time than allowed."""

    code = 6


class WorkerTimeoutError(LimitError):
    """The worker process ran out of time."""


class WorkerCrashError(OnnxcompError):
    """The worker process died."""

    code = 7


class OutputError(OnnxcompError):
    """Reading or writing files failed: disk full, permission, exists."""

    code = 8


class UndecidedError(OnnxcompError):
    """The noise or the environment does not allow a verdict."""

    code = 9


def from_os_error(error: OSError, where: object) -> OutputError:
    """The typed error for an operating system error while reading or writing `where`."""
    hints = {
        errno.ENOSPC: ("the disk is full", "free some space, or write to another disk with -o"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, or write to another disk with -o"),
        errno.EFBIG: (
            "the file size limit was reached",
            "raise the limit (ulimit -f), or write to another disk",
        ),
        errno.EACCES: ("permission denied", "check the rights of the file and of its folder"),
        errno.EPERM: ("permission denied", "check the rights of the file and of its folder"),
        errno.EROFS: ("the file system is read-only", "write to another folder with -o"),
        errno.ENOENT: ("no such file or folder", "check the path"),
        errno.ENOTDIR: ("a part of the path is not a folder", "check the path"),
        errno.EISDIR: ("a folder, not a file", "name a file"),
    }
    message, hint = hints.get(error.errno or 0, (error.strerror or str(error), None))
    return OutputError(message, where=where, hint=hint)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A `did you mean` hint for a misspelt name, or None when nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{found[0]}'?" if found else None


def _rebuild(cls: type[OnnxcompError], message: str, where: str | None, hint: str | None) -> OnnxcompError:
    return cls(message, where=where, hint=hint)


def _clip(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
