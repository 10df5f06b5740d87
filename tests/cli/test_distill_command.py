"""`onnxcomp distill`: a student from two files and samples, its record, interruption and refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_cli import fails, ok, run

PYTORCH = Path(__file__).parent.parent / "pytorch"
sys.path.insert(0, str(PYTORCH))

import distill_samples  # noqa: E402 - a neighbour's samples

KEYS = {
    "schema", "input", "student", "output", "size_ratio", "passes", "history", "resumed_from_step", "fidelity",
    "equivalence", "speed", "data", "warnings", "versions",
}  # fmt: skip

#: what one pass of a record has, what `effect` of a training, what an epoch
STEP = {"name", "options", "seconds", "peak_rss_bytes", "effect", "notes"}
EFFECT = {"trained_parameters", "parameters", "steps", "best_epoch", "stopped_early", "before", "after"}
EPOCH = {"epoch", "loss", "validation", "seconds", "lr"}

QUICK = ("--epochs", 2, "--batch", 20, "--lr", 0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("distill")
    distill_samples.teacher(place)
    distill_samples.student(place)
    np.savez(place / "data.npz", **distill_samples.samples(place / "teacher.onnx"))
    return place


def line(folder, output, *arguments, student="student8.onnx"):
    models = ("--teacher", folder / "teacher.onnx", "--student", folder / student)
    return ("distill", *models, "--data", folder / "data.npz", "-o", output, *QUICK, *arguments)


def test_the_json_is_the_record(folder, tmp_path):
    result = ok(*line(folder, tmp_path / "out.onnx", "--hint", "h=h", "--labels-weight", 0.2, "--metric", "accuracy"))
    assert set(result) == KEYS
    assert result == json.loads((tmp_path / "out.onnx.record.json").read_text())
    (step,) = result["passes"]
    assert set(step) == STEP
    assert set(step["effect"]) >= EFFECT
    assert step["name"] == "distill"
    assert step["peak_rss_bytes"] > 50 << 20
    assert result["input"]["kind"] == "onnx"
    assert {"path", "sha256", "bytes"} <= result["input"].keys() & result["output"].keys() & result["student"].keys()
    assert {"source", "samples", "sha256", "trained", "judged"} <= result["data"].keys()
    assert all(set(entry) >= EPOCH for entry in result["history"])
    assert step["options"]["hint"] == ["h=h"]
    assert step["options"]["labels_weight"] == 0.2
    assert step["effect"]["after"]["accuracy"] > step["effect"]["before"]["accuracy"]
    assert [entry["epoch"] for entry in result["history"]] == [0, 1, 2]
    assert ok("verify", tmp_path / "out.onnx")["ok"]


def test_the_table_shows_the_epochs(folder, tmp_path):
    done = run(*line(folder, tmp_path / "out.onnx", student="student8.onnx"), "--quantization-aware")
    assert done.returncode == 0, done.stderr
    assert "judged by 20 samples that did not train" in done.stdout
    assert "same class:" in done.stdout
    rows = [row.split() for row in done.stdout.splitlines()]
    assert [row[0].rstrip("*") for row in rows if len(row) > 4 and row[-1] == "s" and row[0][0].isdigit()] == list(
        "012"
    )


def test_an_interrupted_command_goes_on(folder, tmp_path):
    """Ctrl-C in the middle of the training: code 130, no output, and the checkpoint is of use."""
    arguments = [*line(folder, tmp_path / "out.onnx"), "--checkpoint", tmp_path / "kept", "--epochs", 400]
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxcomp", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("kept/*.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert not (tmp_path / "out.onnx").exists()
    document = fails(2, *arguments, "--resume", "--seed", 1, text="another settings")
    assert document["hint"] == "seed was 0, now it is 1"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--resume",), 2, "--resume needs --checkpoint"),
        (("--loss", "l1"), 2, "'l1' is not one of"),
        (("--data", "random:50"), 3, "needs real data"),
        (("--lr", 1e-30), 5, "no epoch is better"),  # steps too small to change a float
        (("--teacher", __file__), 3, "damaged or not an ONNX model"),
        (("--student", "net.pt"), 3, "a pickled module is never read"),
        (("--hint", "h=h:atention"), 2, "did you mean 'attention'?"),
        (("--hint", "h=h:attention"), 2, "attention h=h"),
        (("--provider", "cuda"), 2, "--provider"),
    ],
)
def test_what_fails_says_why(folder, tmp_path, arguments, code, text):
    fails(code, *line(folder, tmp_path / "out.onnx", *arguments), text=text)
    assert list(tmp_path.iterdir()) == []


def test_outputs_and_inputs_are_kept(folder, tmp_path):
    """An output that exists, and one that is an input: codes 8 and 2, and the bytes are what they were."""
    (tmp_path / "out.onnx").write_bytes(b"mine")
    fails(8, *line(folder, tmp_path / "out.onnx"), text="exists")
    before = (folder / "student8.onnx").read_bytes()
    fails(2, *line(folder, folder / "student8.onnx", "--force"), text="same file")
    assert ((tmp_path / "out.onnx").read_bytes(), (folder / "student8.onnx").read_bytes()) == (b"mine", before)


_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(16, 10)

    def forward(self, x):
        return self.only(x)

def net():
    return Net()
"""


def test_a_module_teaches_by_its_name(folder, tmp_path):
    """A Python object on the command line; its outputs have no name, the file's goes with it by place."""
    (tmp_path / "net.py").write_text(_NET)
    target = f"{tmp_path / 'net.py'}:net"
    result = ok(*line(folder, tmp_path / "out.onnx", "--teacher", target))
    assert (result["input"]["path"], result["input"]["kind"]) == (target, "torch")
    assert result["fidelity"]["samples"] == 20


def test_torchrun_shares_the_command(folder, tmp_path):
    """The same line in two processes: one document, one output, the losses of one process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = [*line(folder, tmp_path / "out.onnx"), "--device", "cpu", "--json"]
    done = subprocess.run(
        [*torchrun, "onnxcomp", *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    alone = ok(*line(folder, tmp_path / "alone.onnx"))
    together = json.loads(done.stdout)
    assert set(together) == KEYS
    losses = [[entry["validation"]["loss"] for entry in document["history"]] for document in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert together == json.loads((tmp_path / "out.onnx.record.json").read_text())


RECIPE = """
[[pass]]
name = "prune-structured"
sparsity = 0.5
align = 4
repair = "none"

[[pass]]
name = "distill"
epochs = 2
batch = 20
lr = 0.02
"""


def test_torchrun_shares_a_recipe(folder, tmp_path):
    """The first process prunes, speaks and publishes; one document."""
    (tmp_path / "shrink.toml").write_text(RECIPE)
    np.savez(tmp_path / "x.npz", x=np.load(folder / "data.npz")["x"])
    arguments = ["run", tmp_path / "shrink.toml", folder / "teacher.onnx", "--data", tmp_path / "x.npz", "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    line = [*torchrun, "onnxcomp", *map(str, arguments), "-o", str(tmp_path / "out.onnx")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "out.onnx.record.json").read_text())
    assert [step["name"] for step in result["passes"]] == ["prune-structured", "distill"]
    assert result["passes"][1]["effect"]["best_epoch"] > 0
