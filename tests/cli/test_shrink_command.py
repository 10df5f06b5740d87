"""`onnxcomp shrink`: its JSON, its exit codes, an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import real_data
from test_cli import fails, run

KEYS = {
    "schema", "baseline", "wanted", "metric", "samples", "best", "tested", "front", "tried", "rejected", "left_out",
    "budget_met", "why_none", "undecided", "samples_needed", "complete", "candidates", "benchmark", "seconds", "report",
}  # fmt: skip


@pytest.fixture(scope="module")
def snips(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("snips")
    np.savez(folder / "data.npz", **real_data.samples("snips_transformer", shared)[0])
    return shared / "models/snips_transformer.onnx", folder / "data.npz"


def test_nothing_to_gain_is_exit_5_with_the_whole_result(shared, tmp_path):
    model = shared / "models/tract_xgboost_classifier_tree.onnx"
    np.savez(tmp_path / "d.npz", input=np.random.default_rng(0).standard_normal((400, 13)).astype(np.float32))
    out = tmp_path / "out"
    done = run("shrink", model, "--data", tmp_path / "d.npz", "--max-drop", "5%", "-o", out, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 5
    assert set(found) == KEYS
    assert found["schema"] == "onnxcomp/shrink/1"
    assert (found["best"], found["budget_met"]) == (None, False)
    page = (out / "report.html").read_text()
    assert "Nothing beats the input" in page
    assert page.count("<h2") >= 3


def test_usage(snips, tmp_path):
    model, data = snips
    out = tmp_path / "out"
    fails(2, "shrink", model, "--data", data, "--max-drop", "5", "-o", out, text="write")
    fails(2, "shrink", model, "--data", data, "--max-drop", "5%", "--time-budget", "soon", "-o", out, text="duration")
    fails(3, "shrink", model, "--data", "random:100", "--max-drop", "5%", "-o", out, text="real data")
    fails(3, "shrink", data, "--data", data, "--max-drop", "5%", "-o", tmp_path / "other", text="")
    assert not (tmp_path / "other").exists()


def test_an_interruption_leaves_the_best_so_far_and_a_search_to_resume(snips, tmp_path):
    model, data = snips
    out = tmp_path / "out"
    options = [model, "--data", data, "--max-drop", "5%", "-o", out, "--passes", "simplify,quantize-dynamic,smooth"]
    command = [sys.executable, "-m", "onnxcomp", "shrink", *map(str, options), "--no-tune"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as search:
        assert search.stderr is not None
        for line in search.stderr:
            if line.startswith("dynamic int8:"):
                break
        search.send_signal(signal.SIGINT)
        search.communicate(timeout=120)
    assert search.returncode == 130
    assert (out / "best.onnx").exists()
    assert (out / "recipe.toml").exists()
    assert not (out / "shrink.json").exists()
    done = run("shrink", *options, "--no-tune", "--resume", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["best"]["name"].startswith("dynamic int8")
