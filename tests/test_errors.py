"""The error tree: what the docstring draws is what is raised, and it survives the way from a worker."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import re

import pytest

from onnxcomp import errors
from onnxcomp.errors import MAX_TEXT, OnnxcompError, OutputError, from_os_error, nearest

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, OnnxcompError)]


def drawn():
    """(name, parent, exit code) of each line of the tree in the docstring."""
    path, found = ["OnnxcompError"], []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([│ ]*)[├└]── (\w+) +(\d+)   \S", line)
        if match:
            depth = len(match[1]) // 4 + 1
            path[depth:] = [match[2]]
            found.append((match[2], path[depth - 1], int(match[3])))
    return found


def test_the_drawn_tree_is_the_real_one():
    real = {(c.__name__, c.__bases__[0].__name__, c.code) for c in CLASSES if c is not OnnxcompError}
    assert len(drawn()) == len(real)
    assert set(drawn()) == real


def test_only_the_last_child_closes_its_branch():
    lines = [line for line in errors.__doc__.splitlines() if "── " in line]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        column = line.index("── ") - 1
        assert (line[column] == "└") == (following[column : column + 1] not in {"├", "└", "│"}), line


def test_a_bug_has_a_code_of_its_own():
    assert OnnxcompError.code == 1
    assert all(c.code != 1 for c in CLASSES if c is not OnnxcompError)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("where", "hint"), [(None, None), ("node fc1", "leave it out")])
def test_errors_survive_pickling(cls, where, hint):
    error = cls("something happened", where=where, hint=hint)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert (back.message, back.where, back.hint) == ("something happened", where, hint)
    assert back.to_json() == error.to_json()


def test_json_and_text():
    error = OutputError("the disk is full", where="o.onnx", hint="free some space")
    assert error.to_json() == {
        "schema": "onnxcomp/error/1",
        "code": 8,
        "class": "OutputError",
        "message": "the disk is full",
        "where": "o.onnx",
        "hint": "free some space",
    }
    assert str(error) == "the disk is full (o.onnx)"
    assert str(OutputError("the disk is full")) == "the disk is full"


def test_texts_are_clipped():
    long = "x" * (MAX_TEXT + 1)
    error = OnnxcompError(long, where=long, hint=long)
    assert MAX_TEXT == 4096
    for text in (error.message, error.where, error.hint):
        assert text == "x" * (MAX_TEXT - 1) + "…"
    assert pickle.loads(pickle.dumps(error)).message == error.message
    assert len(str(error)) < 2 * MAX_TEXT + 10
    fits = "x" * MAX_TEXT
    assert OnnxcompError(fits).message == fits


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "file size limit"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.ENOENT, "no such file"),
        (errno.ENOTDIR, "not a folder"),
        (errno.EISDIR, "a folder, not a file"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number, message):
    error = from_os_error(OSError(number, os.strerror(number), "internal.tmp"), "o.onnx")
    assert type(error) is OutputError
    assert message in error.message
    assert error.where == "o.onnx"
    assert error.hint


def test_other_errors_of_the_system_keep_their_text():
    assert from_os_error(OSError(errno.EIO, "Input/output error"), "o").message == "Input/output error"
    assert from_os_error(OSError("no number"), "o").message == "no number"


def test_nearest():
    known = ("per-channel", "sparsity", "structure")
    assert nearest("sparsty", known) == "did you mean 'sparsity'?"
    assert nearest("structur", iter(known)) == "did you mean 'structure'?"
    assert nearest("qqq", known) is None
    assert nearest("sparsity", ()) is None
