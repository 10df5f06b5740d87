"""`onnxcomp prune --structure channels`: plans, alignment, what cannot go together."""

from __future__ import annotations

import json

import builders
import numpy as np
import pytest
from test_cli import fails, ok, run

from onnxcomp.model import load

CHANNELS = ("--structure", "channels", "--no-measure")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("prune")
    builders.save(builders.mlp(width=64), place / "mlp.onnx")
    builders.save(builders.cnn(), place / "cnn.onnx")
    builders.save(builders.relu(), place / "relu.onnx")
    np.savez(place / "x.npz", x=builders.samples(40, 16))
    return place


def test_a_plan_is_written_and_applied(folder, tmp_path):
    plan, out, again = tmp_path / "plan.json", tmp_path / "a.onnx", tmp_path / "b.onnx"
    made = ok("prune", folder / "mlp.onnx", "-o", out, *CHANNELS, "--align", "auto", "--plan-out", plan)
    effect = made["passes"][0]["effect"]
    assert json.loads(plan.read_text()) == effect["plan"]
    assert effect["groups"][0]["kept"] == 45
    assert {"removed_parameters", "parameters", "equivalence_error", "refused", "plan"} <= set(effect)
    ok("prune", folder / "mlp.onnx", "-o", again, *CHANNELS, "--plan", plan)
    assert again.read_bytes() == out.read_bytes()
    error = fails(3, "prune", folder / "cnn.onnx", "-o", tmp_path / "c.onnx", *CHANNELS, "--plan", plan)
    assert effect["plan"]["model"] in error["message"]
    assert not (tmp_path / "c.onnx").exists()


def test_data_ranks_and_judges_and_the_speed_is_said(folder, tmp_path):
    arguments = ("--structure", "channels", "--align", "16", "--data", folder / "x.npz")
    made = ok("prune", folder / "mlp.onnx", "-o", tmp_path / "a.onnx", *arguments)
    assert made["passes"][0]["effect"]["importance"] == "elimination"
    assert made["fidelity"] is not None
    assert made["data"]["calibration"] == 32
    assert made["passes"][0]["effect"]["allocation"] == "uniform"
    bare = ok("prune", folder / "mlp.onnx", "-o", tmp_path / "b.onnx", *arguments, "--repair", "none", "--no-measure")
    assert bare["passes"][0]["effect"]["allocation"] == "sensitivity"
    assert made["speed"]["pairs"] >= 6
    assert load(tmp_path / "a.onnx").graph.initializers["w1"].const_value.shape[0] == 48


@pytest.mark.parametrize(
    ("code", "arguments", "text"),
    [
        (2, (*CHANNELS, "--align", "many"), "neither 'auto' nor a number"),
        (2, (*CHANNELS, "--scope", "global"), "--scope is not an option of --structure channels"),
        (2, ("--structure", "none", "--align", "8"), "--align is not an option of --structure none"),
        (2, ("--structure", "none", "--limit", "0.5"), "--limit is not an option of --structure none"),
        (2, ("--structure", "blocks", "--sparsity", "0.5"), "--sparsity is not an option of --structure blocks"),
        (2, ("--structure", "blocks", "--plan-out", "p"), "--plan-out is not an option of --structure blocks"),
        (2, (*CHANNELS, "--blocks", "1"), "--blocks is not an option of --structure channels"),
        (3, ("--structure", "blocks"), "prune-blocks needs data"),
        (2, ("--structure", "2:4", "--pattern", "1:4"), "--pattern is not an option of --structure 2:4"),
        (2, ("--structure", "2:4", "--sparsity", "0.5"), "pattern and sparsity do not go together"),
        (8, (*CHANNELS, "--plan", "nowhere.json"), "no such file"),
        (8, (*CHANNELS, "--plan-out", "no/where/p.json"), "folder does not exist"),
    ],
)
def test_what_cannot_be(code, arguments, text, folder, tmp_path):
    fails(code, "prune", folder / "mlp.onnx", "-o", tmp_path / "a.onnx", *arguments, text=text)
    assert not list(tmp_path.iterdir())


def test_patterns(folder, tmp_path):
    made = ok("prune", folder / "mlp.onnx", "-o", tmp_path / "a.onnx", "--structure", "2:4")
    assert made["passes"][0]["options"]["pattern"] == "2:4"
    assert made["passes"][0]["effect"]["sparsity"] == 0.5
    assert made["passes"][0]["effect"]["label"] == "download size only"
    made = ok("prune", folder / "mlp.onnx", "-o", tmp_path / "b.onnx", "--structure", "none", "--pattern", "1:8")
    assert made["passes"][0]["effect"]["sparsity"] == 0.875


def test_blocks(folder, tmp_path):
    np.savez(tmp_path / "image.npz", image=builders.samples(20, 3, 8, 8))
    arguments = ("--structure", "blocks", "--no-measure", "--data", tmp_path / "image.npz")
    made = ok("prune", folder / "cnn.onnx", "-o", tmp_path / "a.onnx", *arguments, "--blocks", "1")
    assert [block["nodes"] for block in made["passes"][0]["effect"]["blocks"]] == [["conv2"]]
    assert made["data"]["calibration"] == 16
    assert made["fidelity"] is not None
    fails(5, "prune", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx", *arguments, text="no block can be removed")


def test_a_plan_is_not_written_over(folder, tmp_path):
    out = tmp_path / "a.onnx"
    (tmp_path / "plan.json").write_text("mine")
    fails(8, "prune", folder / "mlp.onnx", "-o", out, *CHANNELS, "--plan-out", tmp_path / "plan.json", text="exists")
    fails(2, "prune", folder / "mlp.onnx", "-o", out, *CHANNELS, "--plan-out", out, text="cannot be one file")
    arguments = ("--plan-out", folder / "mlp.onnx", "--force")
    fails(2, "prune", folder / "mlp.onnx", "-o", out, *CHANNELS, *arguments, text="same file")
    assert (tmp_path / "plan.json").read_text() == "mine"
    assert not out.exists()


def test_the_table_names_what_stays(folder, tmp_path):
    done = run("prune", folder / "cnn.onnx", "-o", tmp_path / "a.onnx", *CHANNELS, "--align", "1")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "of 16 units cut, ranked by l2" in shown
    assert "left whole head: its channels stay: it reaches the output 'scores'" in shown
    refused = fails(5, "prune", folder / "relu.onnx", "-o", tmp_path / "b.onnx", *CHANNELS)
    assert "no unit can be removed" in refused["message"]


def test_a_latency_target(folder, tmp_path):
    out = ("-o", tmp_path / "o.onnx", "--target-latency", "0.5")
    fails(2, "prune", folder / "mlp.onnx", *out, "--structure", "none", text="--target-latency is not an option")
    fails(2, "prune", folder / "mlp.onnx", *out, *CHANNELS, "--sparsity", "0.5", text="do not go together")
    low = ("-o", tmp_path / "o.onnx", "--target-latency", "0.001")
    fails(5, "prune", folder / "mlp.onnx", *low, *CHANNELS, text="no candidate is within 0.001")
    assert not list(tmp_path.iterdir())
