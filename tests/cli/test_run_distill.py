"""`onnxcomp run` with a recipe that trains: a net for digits to pruned int8 in one command."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from test_cli import fails, ok, run

from onnxcomp.report import tables

RECIPE = """
calibration = 200

[[pass]]
name = "prune-structured"
sparsity = 0.5
align = 16
repair = "none"

[[pass]]
name = "distill"
epochs = 6
batch = 32

[[pass]]
name = "distill"
quantization_aware = true
epochs = 1
lr = 3e-4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher with BatchNormalization, unlabelled training images, labelled test images."""
    from onnxcomp_models import digits
    from safetensors.torch import save_file

    from onnxcomp.pytorch import export

    place = tmp_path_factory.mktemp("digits")
    found = digits.data()
    save_file(dict(digits.train(seed=0, epochs=8).state_dict()), place / "w.safetensors")
    export(
        "onnxcomp_models.digits:build",
        place / "digits.onnx",
        weights=place / "w.safetensors",
        purpose="training",
        inputs=["image:float32[2,1,8,8]"],
        dynamic=["image:0=batch"],
    )
    np.savez(place / "train.npz", image=found.train_images)
    np.savez(place / "test.npz", image=found.test_images, labels=found.test_labels)
    (place / "shrink.toml").write_text(RECIPE)
    return place


def line(folder, output, *arguments):
    data = ("--data", folder / "train.npz", "--eval", folder / "test.npz")
    return ("run", folder / "shrink.toml", folder / "digits.onnx", "-o", output, *data, *arguments)


def test_one_command_from_the_teacher_to_int8(folder, tmp_path, capsys):
    """Within two points of the teacher in an eighth of its bytes; the record says so of each stage."""
    result = ok(*line(folder, tmp_path / "out.onnx"))
    assert result == json.loads((tmp_path / "out.onnx.record.json").read_text())
    teacher, scores = result["score"]["value"], [step["score"]["value"] for step in result["passes"]]
    assert teacher > 0.97
    assert scores[0] < 0.5  # half of its channels, and nothing repaired
    assert scores[1] >= teacher - 0.02, scores
    assert scores[2] >= scores[1] - 0.01, scores
    sizes = [step["bytes"] / result["input"]["bytes"] for step in result["passes"]]
    assert sizes[0] == sizes[1] < 0.35
    assert sizes[2] < 0.125
    assert all({"value", "low", "high"} <= step["score"]["drop"].keys() for step in result["passes"])
    assert ok("verify", tmp_path / "out.onnx")["ok"]
    tables.record(result)
    rows = [row for row in capsys.readouterr().out.splitlines() if re.search(r"\d\] +\d\.\d\dx \[", row)]
    assert [row.split()[0] for row in rows] == ["prune-structured", "distill", "distill"]
    page = tmp_path / "page.html"
    assert run("report", tmp_path / "out.onnx.record.json", "-o", page).returncode == 0
    shown = f"{100 * scores[2]:.2f} %"
    assert shown in page.read_text()


def test_what_cannot_be_judged_fails_before_any_work(folder, tmp_path):
    fails(2, *line(folder, tmp_path / "out.onnx", "--metric", "acuracy"), text="unknown metric")
    assert list(tmp_path.iterdir()) == []
