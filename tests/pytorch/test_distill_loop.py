"""The training loop: what it learns, chooses, records and refuses."""

from __future__ import annotations

import json
import math
import sys
import types

import distill_samples
import numpy as np
import pytest
import torch

from onnxcomp import runtime
from onnxcomp.errors import DataError, GateError, NoEffectError, OutputError, UnsupportedError, UsageError
from onnxcomp.evaluate import evaluate
from onnxcomp.passes.distill import Settings
from onnxcomp.pipeline import verify
from onnxcomp.pytorch import distill
from onnxcomp.pytorch.distillation import state as states


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    distill_samples.teacher(folder)
    distill_samples.student(folder)
    np.savez(folder / "data.npz", **distill_samples.samples(folder / "teacher.onnx"))
    return folder


def run(place, output, **options):
    options = {"epochs": 3, "batch": 20, "lr": 0.02, "student": place / "student8.onnx", **options}
    data = options.pop("data", place / "data.npz")
    return distill(place / "teacher.onnx", options.pop("student"), data, output, **options)


def test_a_student_learns_and_its_record_says_so(place, tmp_path):
    done = run(place, tmp_path / "out.onnx", epochs=5)
    history = done.trained.history
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3, 4, 5]
    assert history[-1]["validation"]["loss"] < 0.5 * history[0]["validation"]["loss"]
    assert history[-1]["loss"] < history[1]["loss"]
    assert history[-1]["lr"] < history[1]["lr"] <= 0.02
    record = json.loads((tmp_path / "out.onnx.record.json").read_text())
    assert record == {"schema": "onnxcomp/distill/1", **done.to_json()}
    assert record["input"]["path"] == str(place / "teacher.onnx")
    assert record["student"]["path"] == str(place / "student8.onnx")
    assert record["data"]["trained"] == 180
    assert record["data"]["judged"] == 20
    assert record["fidelity"]["samples"] == 20
    assert record["size_ratio"] < 0.5
    assert verify(tmp_path / "out.onnx").checks


def test_the_file_answers_as_the_student_did(place, tmp_path):
    """The agreement of the last epochs, measured in torch, is that of the file in ONNX Runtime."""
    done = run(place, tmp_path / "out.onnx", metric="agreement")
    best = done.trained.history[done.trained.best]["validation"]
    assert done.fidelity.agreement.value == pytest.approx(best["agreement"])
    assert best["agreement"] == max(entry["validation"]["agreement"] for entry in done.trained.history)
    assert best["accuracy"] == best["agreement"]  # the labels are the teacher's classes


@pytest.mark.parametrize("loss", ["kl", "dkl", "dist", "mse", "cosine"])
def test_every_loss_falls(place, tmp_path, loss):
    done = run(place, tmp_path / "out.onnx", loss=loss)
    measured = [entry["validation"] for entry in done.trained.history]
    assert measured[-1]["loss"] < measured[0]["loss"]
    assert ("agreement" in measured[0]) == (loss in ("kl", "dkl", "dist"))


def test_the_teachers_answers_can_be_kept(place, tmp_path):
    live = run(place, tmp_path / "live.onnx")
    kept = run(place, tmp_path / "kept.onnx", cache=tmp_path / "cache")
    again = run(place, tmp_path / "again.onnx", cache=tmp_path / "cache")
    assert (tmp_path / "kept.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert kept.trained.history[-1]["validation"]["loss"] == pytest.approx(
        live.trained.history[-1]["validation"]["loss"], rel=1e-3
    )
    assert again.trained.best == kept.trained.best


def test_the_control_never_asks_the_teacher(place, tmp_path, monkeypatch):
    """With labels alone, training runs ask nothing; only judging does, once for all epochs."""
    from onnxcomp.pytorch.distillation.teacher import OrtTeacher

    sizes = []
    answer = OrtTeacher.outputs
    monkeypatch.setattr(OrtTeacher, "outputs", lambda self, batch: sizes.append(len(batch["x"])) or answer(self, batch))
    done = run(place, tmp_path / "out.onnx", labels_weight=1.0, epochs=2)
    assert sizes == [20, 20]  # once before the first step, then in epoch 0
    assert done.trained.history[-1]["validation"]["accuracy"] > done.trained.history[0]["validation"]["accuracy"]


def test_parts_of_a_step_give_the_step(place, tmp_path):
    whole = run(place, tmp_path / "whole.onnx", epochs=1)
    parts = run(place, tmp_path / "parts.onnx", epochs=1, accumulate=4)
    assert parts.trained.history[1]["loss"] == pytest.approx(whole.trained.history[1]["loss"], rel=1e-4)


def test_the_average_is_the_result(place, tmp_path):
    plain = run(place, tmp_path / "plain.onnx")
    mean = run(place, tmp_path / "mean.onnx", average=0.9)
    assert mean.trained.history[1]["loss"] == plain.trained.history[1]["loss"]  # it does not change the training
    assert mean.trained.history[1]["validation"] != plain.trained.history[1]["validation"]


def test_a_running_average_forgets_its_start():
    module = torch.nn.Linear(1, 1, bias=False)
    kept = {"weight": torch.full((1, 1), 5.0)}
    torch.nn.init.ones_(module.weight)
    for step in range(1, 60):
        states.average(kept, module, decay=0.9, step=step)
    assert kept["weight"].item() == pytest.approx(1.0, abs=0.02)


def test_patience_ends_the_training(place, tmp_path):
    """A rate that ruins the student: the first epochs stay the best ones."""
    done = run(place, tmp_path / "out.onnx", epochs=30, lr=1.0, warm_up=0.3, patience=2)
    assert done.trained.stopped_early
    assert len(done.trained.history) == done.trained.best + 3


def test_augmented_samples_reach_teacher_and_student(place, tmp_path):
    seen = []

    def flip(feeds, generator):
        seen.append(generator.integers(1 << 30))
        return {"x": -feeds["x"]}

    plain = run(place, tmp_path / "plain.onnx", epochs=1)
    flipped = run(place, tmp_path / "flipped.onnx", epochs=1, augment=flip)
    assert len(seen) == len(set(seen)) == 9
    assert flipped.trained.history[1]["loss"] != plain.trained.history[1]["loss"]
    assert flipped.trained.history[0]["validation"] == plain.trained.history[0]["validation"]
    with pytest.raises(UsageError, match="never come again"):
        run(place, tmp_path / "out.onnx", augment=flip, cache=tmp_path / "cache")


def test_a_loss_that_is_not_finite_stops_with_the_step(place, tmp_path):
    data = dict(np.load(place / "data.npz"))
    data["x"][:] = 1e30
    with pytest.raises(GateError, match="not finite") as caught:
        run(place, tmp_path / "out.onnx", data=data, loss="mse")
    assert "epoch 0" in caught.value.where
    assert not (tmp_path / "out.onnx").exists()


def test_a_gradient_that_overflows_names_the_step_and_the_checkpoint(place, tmp_path):
    def grow(feeds, generator):
        return {"x": feeds["x"] * np.float32(1e19)}

    with pytest.raises(GateError, match="is not finite") as caught:
        run(place, tmp_path / "out.onnx", augment=grow, loss="mse", checkpoint=tmp_path / "kept")
    assert caught.value.where == "epoch 1, step 1"
    assert "checkpoint.safetensors holds the last good step" in caught.value.hint


def test_a_student_that_has_nothing_to_learn(place, tmp_path):
    with pytest.raises(NoEffectError, match="no epoch is better than the student as it came"):
        run(place, tmp_path / "out.onnx", student=place / "teacher.onnx")
    assert list(tmp_path.iterdir()) == []


def few(place):
    return {"x": np.load(place / "data.npz")["x"][:9]}


def unlabelled(place):
    return {"x": np.load(place / "data.npz")["x"]}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"data": few}, DataError, "9 samples are too few"),
        ({"data": "random:100"}, DataError, "needs real data"),
        ({"data": unlabelled, "labels_weight": 0.5}, DataError, "the data has no labels"),
        ({"data": unlabelled, "metric": "accuracy"}, UsageError, "accuracy cannot be measured"),
        ({"loss": "mse", "metric": "agreement"}, UsageError, "agreement cannot be measured"),
        ({"rate": 0.1}, UsageError, "no such option"),
        ({"epochs": 0}, UsageError, "--epochs must be 1 or more"),
        ({"validation": 0.0}, UsageError, "--validation is a share between 0 and 1"),
        ({"lr": math.nan}, UsageError, "--lr must be above 0"),
        ({"resume": True}, UsageError, "--resume needs --checkpoint"),
        ({"hint": ("a",)}, UsageError, "not of the form TEACHER_TENSOR=STUDENT_TENSOR"),
        ({"hint": ("a=a",), "labels_weight": 1}, UsageError, "hints have nothing to follow"),
        ({"mask": "z"}, UsageError, "there is no such input"),
        ({"device": "cuda"}, UnsupportedError, "torch finds no CUDA device"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(place, tmp_path, options, error, text):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if callable(options.get("data")):
        options = {**options, "data": options["data"](place)}
    with pytest.raises(error, match=text):
        run(place, tmp_path / "out.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_curves_need_tensorboard(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UnsupportedError, match="tensorboard is not installed"):
        run(place, tmp_path / "out.onnx", tensorboard=tmp_path / "curves")
    assert list(tmp_path.iterdir()) == []


def test_every_epoch_is_a_point_of_the_curves(place, tmp_path, monkeypatch):
    """With a stand-in for the package: names, values, steps."""
    points = []

    class SummaryWriter:
        def __init__(self, folder):
            points.append(folder)

        def add_scalar(self, *point):
            points.append(point)

        def flush(self):
            pass

        def close(self):
            points.append("closed")

    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    done = run(place, tmp_path / "out.onnx", tensorboard=tmp_path / "curves", epochs=1)
    first, last = done.trained.history
    assert points[0] == str(tmp_path / "curves")
    assert ("validation/loss", first["validation"]["loss"], 0) in points
    assert ("loss", last["loss"], 9) in points
    assert points[-1] == "closed"


def test_an_output_that_exists_is_kept(place, tmp_path):
    (tmp_path / "out.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        run(place, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="same file"):
        run(place, place / "teacher.onnx", force=True)
    assert (tmp_path / "out.onnx").read_bytes() == b"mine"


def test_the_rate_rises_and_falls():
    settings = Settings(lr=1.0, warm_up=0.2)
    rates = [settings.rate(step, 50) for step in range(50)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


def test_the_same_seed_gives_the_same_bytes(place, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(place, tmp_path / f"{name}.onnx", seed=seed)
    read = {name: (tmp_path / f"{name}.onnx").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]


@pytest.mark.slow
def test_digits_with_a_quarter_of_the_parameters(tmp_path):
    """Handwritten digits: within a point of the teacher; the control has the same student, seed and budget."""
    from onnxcomp_models import digits
    from safetensors.torch import save_file

    from onnxcomp.pytorch import export

    found = digits.data()
    network = digits.train(seed=0, epochs=12)
    save_file(dict(network.state_dict()), tmp_path / "w.safetensors")
    shape = {"inputs": ["image:float32[2,1,8,8]"], "dynamic": ["image:0=batch"]}
    export("onnxcomp_models.digits:build", tmp_path / "t.onnx", weights=tmp_path / "w.safetensors", **shape)
    train = {"image": found.train_images, "labels": found.train_labels}
    np.savez(tmp_path / "test.npz", image=found.test_images, labels=found.test_labels)
    (tmp_path / "nets.py").write_text(_NETS)
    export(f"{tmp_path}/nets.py:small", tmp_path / "s.onnx", purpose="training", **shape)
    scores = {"teacher": evaluate(tmp_path / "t.onnx", tmp_path / "test.npz").value.value}
    for name, weight in (("student", 0.0), ("control", 1.0)):
        done = distill(
            tmp_path / "t.onnx",
            tmp_path / "s.onnx",
            train,
            tmp_path / f"{name}.onnx",
            labels_weight=weight,
            epochs=20,
            lr=5e-3,
            augment=f"{tmp_path}/nets.py:shifted",
        )
        scores[name] = evaluate(tmp_path / f"{name}.onnx", tmp_path / "test.npz").value.value
    assert done.elements[1] <= sum(p.numel() for p in network.parameters()) / 4
    assert scores["teacher"] > 0.985
    assert scores["student"] >= scores["teacher"] - 0.01, scores
    assert scores["control"] > 0.9, scores
    assert runtime.open_session(tmp_path / "student.onnx").signature.inputs[0].shape == ("batch", 1, 8, 8)


_NETS = """
import numpy as np
from onnxcomp_models.digits import model


def small():
    whole, model.WIDTHS = model.WIDTHS, (16, 32, 56)
    try:
        return model.Digits().eval()
    finally:
        model.WIDTHS = whole


def shifted(feeds, generator):
    padded = np.pad(feeds["image"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    moves = generator.integers(0, 3, (len(padded), 2))
    return {"image": np.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, moves, strict=True)])}
"""
