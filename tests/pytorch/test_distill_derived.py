"""Students made from their teacher: layers taken out, neurons cut, then taught by the whole."""

from __future__ import annotations

import sys
from pathlib import Path

import builders
import numpy as np
import pytest
import real_data
import torch

from onnxcomp.evaluate import compare, evaluate
from onnxcomp.passes import PruneBlocks, PruneStructured
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch import distill

sys.path.insert(0, str(Path(__file__).parent.parent / "passes"))

import block_graphs


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_four_of_six_layers_learn_what_six_knew(tmp_path):
    teacher = builders.save(block_graphs.transformer(6, normalized="post"), tmp_path / "teacher.onnx")
    generator = np.random.default_rng(0)
    x = {"x": generator.standard_normal((300, 5, 8)).astype(np.float32)}
    steps = [PruneBlocks(blocks=2), PruneStructured(sparsity=0.5, align=1)]
    optimize_file(teacher, tmp_path / "cut.onnx", steps, data=x)
    done = distill(teacher, tmp_path / "cut.onnx", x, tmp_path / "out.onnx", loss="mse", epochs=5, lr=0.01, batch=30)
    history = [entry["validation"]["loss"] for entry in done.trained.history]
    assert history[done.trained.best] < 0.5 * history[0]
    assert done.size_ratio < 0.75


@pytest.mark.shared
def test_one_of_two_layers_and_a_sixth_of_its_units_recover(shared, tmp_path):
    """The intent transformer, by 512 sentences without labels; judged by 700 others."""
    teacher = shared / "models" / "snips_transformer.onnx"
    data, (judging, _) = real_data.snips_calibration(shared / "data"), real_data.samples("snips_transformer", shared)
    steps = [PruneBlocks(samples=64), PruneStructured(sparsity=0.85, repair="none")]
    optimize_file(teacher, tmp_path / "cut.onnx", steps, data=data)
    done = distill(teacher, tmp_path / "cut.onnx", data, tmp_path / "out.onnx", epochs=4, lr=1e-3, batch=32)
    before, after = (compare(teacher, tmp_path / name, {"ids": judging["ids"]}) for name in ("cut.onnx", "out.onnx"))
    accuracy = [evaluate(tmp_path / name, judging).value.value for name in ("cut.onnx", "out.onnx")]
    history = [entry["validation"]["loss"] for entry in done.trained.history]
    assert history[-1] < 0.2 * history[0]
    assert 1 - after.agreement.value < 0.5 * (1 - before.agreement.value)
    assert accuracy[1] > accuracy[0] + 0.02
