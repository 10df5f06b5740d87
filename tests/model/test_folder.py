"""Folders appear whole, or what stood there stays, whatever fails or dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxcomp.errors import OutputError, UsageError
from onnxcomp.model import folder as folders
from onnxcomp.model import refuse_folder, stage_folder


def ours(place: Path) -> bool:
    return (place / "mark").is_file()


def make(target: Path, text: str = "new", **options: object) -> None:
    with stage_folder(target, owned=ours, **options) as place:
        (place / "mark").write_text(text)
        (place / "inner").mkdir()
        (place / "inner/file").write_text(text)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_it_appears_at_the_end(tmp_path):
    with stage_folder(tmp_path / "out", owned=ours) as place:
        (place / "mark").touch()
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["mark"]


def test_a_failure_leaves_what_stood_there(tmp_path):
    make(tmp_path / "out", "old")

    def fail(place: Path) -> None:
        (place / "mark").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        with stage_folder(tmp_path / "out", owned=ours, force=True) as place:
            fail(place)
    assert (tmp_path / "out/inner/file").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("swaps", [True, False])
def test_force_replaces_in_one_step_where_it_can(swaps, tmp_path, monkeypatch):
    make(tmp_path / "out", "old")
    (tmp_path / "out/more").touch()
    if not swaps:
        monkeypatch.setattr(folders, "_swap", lambda *_: False)
    held = os.open(tmp_path / "out", os.O_RDONLY)
    make(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out/inner/file").read_text() == "new"
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["inner", "mark"]
    os.close(held)


def test_two_steps_that_fail_in_between_go_back(tmp_path, monkeypatch):
    make(tmp_path / "out", "old")
    monkeypatch.setattr(folders, "_swap", lambda *_: False)
    real, calls = os.rename, []

    def rename(one, other):
        calls.append(str(other))
        if len(calls) == 2:
            raise PermissionError(13, "Permission denied")
        real(one, other)

    monkeypatch.setattr(folders.os, "rename", rename)
    with pytest.raises(OutputError):
        make(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out/mark").read_text() == "old"


def test_what_is_refused(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/file").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for place, options, error, text in [
        ("out", {"force": False}, OutputError, "exists"),
        ("foreign", {"force": True}, OutputError, "not an earlier output"),
        ("file", {"force": True}, OutputError, "not an earlier output"),
        ("link", {"force": True}, OutputError, "not an earlier output"),
        ("no/where", {"force": True}, OutputError, "does not exist"),
        ("out", {"force": True, "inputs": (tmp_path / "out/mark",)}, UsageError, "lies in"),
    ]:
        with pytest.raises(error, match=text):
            refuse_folder(tmp_path / place, owned=ours, **options)
    make(tmp_path / "empty", force=True)
    assert (tmp_path / "foreign/file").exists()


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="exists"):
        with stage_folder(tmp_path / "out", owned=ours):
            (tmp_path / "out").mkdir()
    assert names(tmp_path) == ["out"]


_SLOW = """
import sys, time
from pathlib import Path
from onnxcomp.model import stage_folder
with stage_folder(Path(sys.argv[1]), owned=lambda _: True) as place:
    (place / "mark").write_bytes(bytes(1 << 20))
    print("here", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_folder(number, tmp_path):
    run = [sys.executable, "-c", _SLOW, str(tmp_path / "out")]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"here\n"
        process.send_signal(number)
        process.wait(10)
    assert not (tmp_path / "out").exists()
    make(tmp_path / "out")
    deadline = time.monotonic() + 5
    while names(tmp_path) != ["out"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
