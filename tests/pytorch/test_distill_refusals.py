"""What goes wrong in or before a training: it is named, nothing is written, and what was kept is of use."""

from __future__ import annotations

import builders
import distill_samples
import numpy as np
import pytest
import torch
from onnx import helper
from safetensors import SafetensorError, safe_open

from onnxcomp.errors import GateError, OutputError, UnsupportedError, UsageError
from onnxcomp.pytorch import distill
from onnxcomp.pytorch.distillation import checkpoint as checkpoints
from onnxcomp.pytorch.distillation.checkpoint import NAME

OPTIONS = {"epochs": 2, "batch": 20, "lr": 0.02, "checkpoint_seconds": 0.0}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    distill_samples.teacher(folder)
    distill_samples.student(folder)
    np.savez(folder / "data.npz", **distill_samples.samples(folder / "teacher.onnx"))
    return folder


def run(place, output, student="student8.onnx", **options):
    return distill(place / "teacher.onnx", place / student, place / "data.npz", output, **{**OPTIONS, **options})


def test_operators_that_cannot_train_are_named_all_at_once(place, tmp_path):
    proto = builders.mlp(width=8)
    proto.graph.node.insert(0, helper.make_node("Unique", ["x"], ["unique"], name="first"))
    proto.graph.node.append(helper.make_node("Det", ["unique"], ["det"], name="second"))
    builders.save(proto, place / "odd.onnx")
    with pytest.raises(UnsupportedError, match="Unique") as caught:
        run(place, tmp_path / "out.onnx", "odd.onnx", checkpoint=tmp_path / "kept")
    assert "Det (1x)" in caught.value.message
    assert caught.value.where == "first, second"
    assert list(tmp_path.iterdir()) == []


def test_outputs_without_a_counterpart_are_named(place, tmp_path):
    """One of two is called as the teacher's; the other is nobody's."""
    proto = builders.mlp(width=8)
    proto.graph.output.append(builders.value("h", "batch", 8))
    builders.save(proto, place / "two.onnx")
    with pytest.raises(UsageError, match="the student's outputs are y, h, the teacher's y") as caught:
        run(place, tmp_path / "out.onnx", "two.onnx")
    assert caught.value.where == "h"
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_leaves_the_last_good_step(place, tmp_path):
    """The sixth step meets infinities: the checkpoint is that of the fifth, and all of it is finite."""
    seen = []

    def poison(feeds, _generator):
        seen.append(feeds)
        return feeds if len(seen) < 6 else {"x": np.full_like(feeds["x"], np.inf)}

    with pytest.raises(GateError, match="the loss is not finite") as caught:
        run(place, tmp_path / "out.onnx", augment=poison, checkpoint=tmp_path / "kept")
    assert caught.value.where == "epoch 1, step 6"
    assert str(tmp_path / "kept" / NAME) in caught.value.hint
    with safe_open(tmp_path / "kept" / NAME, "np") as file:
        assert '"step": 5' in file.metadata()["onnxcomp"]
        assert all(np.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118 - no mapping
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("call", ["save_file", "fsync"])
def test_a_full_disk_leaves_the_checkpoint_before(place, tmp_path, monkeypatch, call):
    """The seventh does not fit: an error with the path, no litter, and the run goes on to the same bits."""
    target = checkpoints if call == "save_file" else checkpoints.os
    real, count = getattr(target, call), 0

    def full(*arguments):
        nonlocal count
        count += 1
        if count == 7:
            raise SafetensorError("No space left on device") if call == "save_file" else OSError(28, "No space left")
        return real(*arguments)

    kept = tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr(target, call, full)
        with pytest.raises(OutputError, match=r"cannot be written|the disk is full") as caught:
            run(place, tmp_path / "out.onnx", checkpoint=kept)
    assert str(kept / NAME) in str(caught.value.where)
    assert [path.name for path in kept.iterdir()] == [NAME]
    done = run(place, tmp_path / "out.onnx", checkpoint=kept, resume=True)
    assert done.trained.resumed == 5  # the first checkpoint is that of step 0
    run(place, tmp_path / "whole.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
