"""Structured pruning of what torch exports: detectors' and language models' blocks, all residual groups and heads."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
import zoo
from conftest import ROOT

from onnxcomp import worker
from onnxcomp.model import load
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.prune.plan import Plan, cut_state
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch import export
from onnxcomp.runtime import open_session


def nets():
    """The script that measures the gain has the nets."""
    spec = importlib.util.spec_from_file_location("pruning_gain", ROOT / "scripts" / "pruning_gain.py")
    module = sys.modules["pruning_gain"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(name, folder, **sizes):
    """torch's own export of a net with random numbers everywhere."""
    gain = nets()
    module, arguments, axes = gain.MODELS[name].build(**sizes)
    gain.randomise(module)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), arguments, dynamo=True, opset_version=20, dynamic_shapes=(axes,), input_names=["x"]
        )
    program.save(folder / "m.onnx")
    return folder / "m.onnx"


#: net -> (its sizes, its export in the test, share to cut, groups, size ratio at most)
CASES = {
    "mobilenet-v2": ({"width": 16, "size": 32}, 0.3, 25, 0.65),
    "resnet-18": ({"width": 16, "size": 32}, 0.5, 12, 0.4),
    "encoder": ({"width": 96, "layers": 6}, 0.5, 12, 0.6),
}


@pytest.mark.parametrize("name", CASES)
def test_torchs_own_export(name, tmp_path):
    sizes, sparsity, groups, ratio = CASES[name]
    path = written(name, tmp_path, **sizes)
    record = optimize_file(path, tmp_path / "cut.onnx", [PruneStructured(sparsity=sparsity, align=4)])
    onnx.checker.check_model(onnx.load(tmp_path / "cut.onnx"), full_check=True)
    effect = record.passes[0].effect
    assert effect["equivalence_error"] <= 1e-5
    assert len(effect["groups"]) == groups
    assert record.size_ratio <= ratio
    if name == "encoder":
        assert [g["units"] for g in effect["groups"]] == [12, 384] * 6
        assert [g["kept"] for g in effect["groups"]] == [6, 192] * 6


def test_a_family_of_transformers(tmp_path):
    """Heads and neurons with open batch and length; the shapes of the mask are computed, and left whole."""
    found = worker.isolated(zoo.export_all, ["bert"], tmp_path)["bert"]
    assert not isinstance(found, Exception)
    record = optimize_file(tmp_path / "bert.onnx", tmp_path / "cut.onnx", [PruneStructured(sparsity=0.5)])
    effect = record.passes[0].effect
    assert [group["units"] for group in effect["groups"]] == [4, 64, 4, 64, 32]
    assert all(group["kept"] == group["units"] // 2 for group in effect["groups"])
    assert effect["equivalence_error"] <= 1e-5
    assert any("GatherND" in refused["reason"] for refused in effect["refused"])
    onnx.checker.check_model(onnx.load(tmp_path / "cut.onnx"), full_check=True)


class Net(torch.nn.Module):
    """x (batch, 8) -> `width` neurons -> (batch, 4)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.up, self.norm, self.down = (
            torch.nn.Linear(8, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.Linear(width, 4),
        )

    def forward(self, x):
        return self.down(torch.relu(self.norm(self.up(x))))


def test_a_plan_cuts_the_module_it_was_exported_from(tmp_path):
    """The narrower module with the cut weights computes what the cut file does: ready to be fine-tuned."""
    torch.manual_seed(0)
    net = Net()
    nets().randomise(net)
    net.eval()
    path = tmp_path / "net.onnx"
    export((net, (torch.randn(2, 8),)), path, dynamic=["x:0=batch"], purpose="training")
    record = optimize_file(path, tmp_path / "cut.onnx", [PruneStructured(sparsity=0.5)])
    plan = Plan.from_json(record.passes[0].effect["plan"])
    parameters = json.loads(load(path).metadata_props["onnxcomp.parameters"])
    narrow = Net(6)
    narrow.load_state_dict(cut_state(net.state_dict(), plan, parameters))
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected = narrow.eval()(x).numpy()
    found = open_session(tmp_path / "cut.onnx").run({"x": x.numpy()})
    assert np.abs(next(iter(found.values())) - expected).max() <= 1e-5
