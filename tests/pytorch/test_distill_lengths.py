"""Texts of about one length in one run: the same learning with less padding."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from onnxcomp import model as models
from onnxcomp.model import InputSpec
from onnxcomp.pytorch import distill
from onnxcomp.pytorch.distillation.lengths import Lengths
from onnxcomp.pytorch.distillation.samples import Samples, order
from onnxcomp.pytorch.distillation.teacher import OrtTeacher
from onnxcomp.runtime import open_session

LONGEST = 30


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def embedder(path, seed):
    """input_ids, attention_mask (batch, seq) int64 -> the mean over what is no padding, a Gemm -> y (batch, 6)."""
    texts = [builders.value(name, "batch", "seq", dtype=TensorProto.INT64) for name in ("input_ids", "attention_mask")]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["wide"]),
        helper.make_node("Mul", ["e", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["wide", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Gemm", ["mean", "w", "b"], ["y"]),
    ]
    axes = [helper.make_tensor(name, TensorProto.INT64, [1], [axis]) for name, axis in (("last", 2), ("one", 1))]
    weights = [builders.weight(name, *shape, seed=seed + i, scale=1.0) for i, (name, shape) in enumerate(SHAPES)]
    return builders.save(builders.model(nodes, texts, [builders.value("y", "batch", 6)], [*weights, *axes]), path)


SHAPES = (("table", (40, 8)), ("w", (8, 6)), ("b", (6,)))


def texts(count=120, seed=0):
    generator = np.random.default_rng(seed)
    mask = (np.arange(LONGEST) < generator.integers(1, LONGEST + 1, (count, 1))).astype(np.int64)
    return {"input_ids": generator.integers(1, 40, (count, LONGEST)) * mask, "attention_mask": mask}


@pytest.fixture
def place(tmp_path):
    embedder(tmp_path / "teacher.onnx", 0)
    embedder(tmp_path / "student.onnx", 50)
    return tmp_path


def run(place, output, **options):
    options = {"loss": "mse", "epochs": 3, "batch": 16, "lr": 0.05, **options}
    return distill(place / "teacher.onnx", place / "student.onnx", texts(), place / output, **options)


def test_padding_changes_nothing(place, monkeypatch):
    cut = run(place, "cut.onnx")
    monkeypatch.setattr(Lengths, "of", lambda *_: None)
    padded = run(place, "padded.onnx")
    for one, other in zip(cut.trained.history, padded.trained.history, strict=True):
        assert (one["loss"] or 0) == pytest.approx(other["loss"] or 0, rel=1e-4)
        assert one["validation"] == pytest.approx(other["validation"], rel=1e-4)
    feeds = texts(20, seed=1)
    answers = [open_session(place / name).run(feeds)["y"] for name in ("cut.onnx", "padded.onnx")]
    np.testing.assert_allclose(*answers, rtol=1e-3, atol=1e-4)


def asked(monkeypatch):
    """(samples, positions, positions that are no padding) of every batch that the teacher answers."""
    sizes = []
    answer = OrtTeacher.outputs

    def outputs(self, batch):
        mask = batch["attention_mask"]
        sizes.append((*mask.shape, int(mask.sum(1).max())))
        return answer(self, batch)

    monkeypatch.setattr(OrtTeacher, "outputs", outputs)
    return sizes


def test_runs_are_as_long_as_their_texts(place, monkeypatch):
    sizes = asked(monkeypatch)
    run(place, "out.onnx")
    runs = sizes[1:]  # the first one proves that all fits
    assert all(length == min(-(-real // 8) * 8, LONGEST) for _, length, real in runs)
    # 6 steps of 16 in each of 3 epochs, and 12 samples that judge 4 times, whose answers are asked for once
    assert sum(count for count, *_ in runs) == 3 * 6 * 16 + 12


def test_kept_answers_are_found_again(place, monkeypatch):
    run(place, "first.onnx", cache=place / "cache")
    sizes = asked(monkeypatch)
    run(place, "second.onnx", cache=place / "cache")
    assert sizes == []
    assert (place / "first.onnx").read_bytes() == (place / "second.onnx").read_bytes()


def test_what_compares_samples_gets_them_together(place, monkeypatch):
    sizes = asked(monkeypatch)
    run(place, "out.onnx", loss="dist", epochs=1)
    assert {count for count, *_ in sizes} == {16, 12}


def test_labels_of_positions_are_cut_too():
    arrays = texts(20)
    specs = [InputSpec(name, "int64", ("batch", "seq")) for name in arrays]
    lengths = Lengths.of(specs, arrays)
    samples = Samples(arrays, arrays["input_ids"], None, {}, lengths)
    for rows in order(samples, validation=0.2, batch=8, accumulate=1, seed=0).judged():
        np.testing.assert_array_equal(samples.labels_of(rows), samples.feeds(rows)["input_ids"])


def test_samples_without_padding_stay_together(place):
    inputs = models.signature(models.load(place / "teacher.onnx")).inputs
    full = {name: np.ones((9, 4), np.int64) for name in ("input_ids", "attention_mask")}
    assert Lengths.of(inputs, full) is None
    assert Lengths.of(inputs[:1], full) is None
    assert Lengths.of(inputs, texts()) is not None
