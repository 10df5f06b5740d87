"""Checkpoints: what is interrupted goes on and ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distill_samples
import numpy as np
import pytest
import torch
from safetensors import safe_open

from onnxcomp.errors import DataError, UsageError
from onnxcomp.pytorch import distill
from onnxcomp.pytorch.distillation import loop
from onnxcomp.pytorch.distillation.checkpoint import NAME


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    distill_samples.teacher(folder)
    distill_samples.with_dropout(folder)
    np.savez(folder / "data.npz", **distill_samples.samples(folder / "teacher.onnx"))
    return folder


#: everything that has a state: dropout, a projector, an average, moments, parts of a step
OPTIONS = {"epochs": 3, "batch": 20, "accumulate": 2, "lr": 0.02, "average": 0.9, "hint": ["h=h"]}


def run(place, output, **options):
    options = {**OPTIONS, **options}
    return distill(place / "teacher.onnx", place / "dropout.onnx", place / "data.npz", output, **options)


class StopError(Exception):
    """What a test throws into a run."""


def interrupt(monkeypatch, after):
    """The run ends in the middle of its step number `after`."""
    count = 0

    def counted(*_args, **_kwargs):
        nonlocal count
        count += 1
        if count == after:
            raise StopError
        return real(*_args, **_kwargs)

    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", counted)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("after", [1, 5, 10, 14, 27])
def test_an_interrupted_run_ends_with_the_same_bits(place, tmp_path, monkeypatch, after, optimizer):
    """27 steps, 9 an epoch: within an epoch, at its end, at the very end; a checkpoint at every step."""
    whole = run(place, tmp_path / "whole.onnx", optimizer=optimizer)
    options = {"checkpoint": tmp_path / "kept", "checkpoint_seconds": 0.0, "optimizer": optimizer}
    with monkeypatch.context() as patched:
        interrupt(patched, after)
        with pytest.raises(StopError):
            run(place, tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()
    torch.manual_seed(99)  # the state of the process is not the run's
    done = run(place, tmp_path / "out.onnx", resume=True, **options)
    assert done.trained.resumed == after - 1
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    plain = [{**entry, "seconds": 0} for entry in done.trained.history]
    assert plain == [{**entry, "seconds": 0} for entry in whole.trained.history]


def test_checkpoints_do_not_change_the_run_and_the_callers_random_numbers(place, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(place, tmp_path / "a.onnx")
    assert torch.equal(torch.rand(3), expected)
    run(place, tmp_path / "b.onnx", checkpoint=tmp_path / "kept", checkpoint_seconds=0.0)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_finished_run_is_published_again_without_training(place, tmp_path):
    run(place, tmp_path / "a.onnx", checkpoint=tmp_path / "kept")
    done = run(place, tmp_path / "b.onnx", checkpoint=tmp_path / "kept", resume=True)
    assert done.trained.resumed == done.trained.steps == 27
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_there_is_nothing_to_resume_yet(place, tmp_path):
    done = run(place, tmp_path / "a.onnx", epochs=1, checkpoint=tmp_path / "new" / "kept", resume=True)
    assert done.trained.resumed is None


def test_a_checkpoint_is_tensors_and_json(place, tmp_path):
    run(place, tmp_path / "a.onnx", epochs=1, checkpoint=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [NAME]
    with safe_open(tmp_path / "kept" / NAME, "np") as file:
        header = json.loads(file.metadata()["onnxcomp"])
        names = set(file.keys())
    assert header["progress"]["step"] == 9
    assert {"student/w1", "best/w1", "average/w1", "optimizer/0/exp_avg"} <= names
    assert any(name.startswith("objective/") for name in names)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": 0.01}, "another settings"),
        ({"seed": 1}, "another settings"),
        ({"epochs": 4}, "another settings"),
        ({"augment": lambda feeds, _: feeds}, "another augment"),
    ],
)
def test_another_run_is_refused(place, tmp_path, options, text):
    run(place, tmp_path / "a.onnx", checkpoint=tmp_path / "kept")
    with pytest.raises(UsageError, match=text) as caught:
        run(place, tmp_path / "b.onnx", checkpoint=tmp_path / "kept", resume=True, **options)
    assert "was" in caught.value.hint


def test_other_data_teachers_and_students_are_refused(place, tmp_path):
    run(place, tmp_path / "a.onnx", epochs=1, checkpoint=tmp_path / "kept")
    data = dict(np.load(place / "data.npz"))
    options = {**OPTIONS, "epochs": 1, "checkpoint": tmp_path / "kept", "resume": True}
    with pytest.raises(UsageError, match="another data"):
        distill(place / "teacher.onnx", place / "dropout.onnx", {"x": data["x"] + 1}, tmp_path / "b.onnx", **options)
    other = distill_samples.student(tmp_path, width=8)
    with pytest.raises(UsageError, match="another student"):
        distill(place / "teacher.onnx", other, place / "data.npz", tmp_path / "b.onnx", **options)
    with pytest.raises(UsageError, match="another teacher"):
        distill(tmp_path / "a.onnx", place / "dropout.onnx", place / "data.npz", tmp_path / "b.onnx", **options)


def test_without_resume_a_checkpoint_is_never_overwritten(place, tmp_path):
    run(place, tmp_path / "a.onnx", epochs=1, checkpoint=tmp_path / "kept")
    with pytest.raises(UsageError, match="there is a checkpoint already"):
        run(place, tmp_path / "b.onnx", epochs=1, checkpoint=tmp_path / "kept")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" * 64, lambda _: b""])
def test_a_damaged_checkpoint_is_bad_data(place, tmp_path, damage):
    run(place, tmp_path / "a.onnx", epochs=1, checkpoint=tmp_path / "kept")
    path = tmp_path / "kept" / NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cannot be read"):
        run(place, tmp_path / "b.onnx", epochs=1, checkpoint=tmp_path / "kept", resume=True)


_KILLED = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
from test_distill_resume import run
run(Path({place!r}), {output!r}, epochs=3, checkpoint={kept!r}, checkpoint_seconds=0.0)
"""


def test_a_killed_process_leaves_a_whole_checkpoint(place, tmp_path):
    """SIGKILL at any moment; a new process goes on and ends with the bits of this one."""
    kept, output = tmp_path / "kept", tmp_path / "out.onnx"
    tests = str(Path(__file__).parent)
    script = _KILLED.format(tests=tests, place=str(place), output=str(output), kept=str(kept))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 120
    while not (kept / NAME).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(place, output, epochs=3, checkpoint=kept, resume=True, force=True)
    assert done.trained.resumed is not None
    run(place, tmp_path / "whole.onnx", epochs=3)
    assert output.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
