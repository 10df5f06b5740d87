"""The cache: exact bytes, one teacher, whole batches, a bounded file; nothing stale, nothing silent."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading

import builders
import numpy as np
import pytest
import real_data
import torch

from onnxcomp.errors import DataError, OutputError, UnsupportedError, UsageError
from onnxcomp.passes import QuantizeDynamic
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch.distillation.ahead import ahead
from onnxcomp.pytorch.distillation.answers import Answers
from onnxcomp.pytorch.distillation.cache import Cached
from onnxcomp.pytorch.distillation.remembered import Remembered
from onnxcomp.pytorch.distillation.teacher import OrtTeacher


class Counted:
    """x (n, 4) -> y (n, 3) and h (n, 2, 2); counts what it is asked."""

    names, inputs = ("y", "h"), ("x",)

    def __init__(self, sha256="a", *, scale=1.0, mixes=False):
        self.sha256, self.scale, self.mixes = sha256, scale, mixes
        self.asked = []

    def outputs(self, batch):
        x = torch.from_numpy(np.asarray(batch["x"], np.float32)).reshape(len(batch["x"]), 4)
        self.asked.append(len(x))
        y = self.scale * torch.sin(x[:, :3] * 3)
        return {"y": y - y.mean(0) if self.mixes else y, "h": (x / 3).reshape(-1, 2, 2)}


def rows(count=12, seed=0):
    return builders.samples(count, 4, seed=seed)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name])


def test_a_sample_is_asked_for_once(tmp_path):
    """Whatever the order, the batch size and the run; all bits are there."""
    x, teacher = rows(), Counted()
    expected = Counted().outputs({"x": x})
    with Cached(teacher, tmp_path) as cached:
        same(cached.outputs({"x": x, "labels": np.zeros(12)}), expected)
        assert teacher.asked == [12, 1]  # one alone: the proof
        order = np.random.default_rng(0).permutation(12)
        for part in np.split(order, 4):
            same(cached.outputs({"x": x[part]}), {name: tensor[part] for name, tensor in expected.items()})
        assert teacher.asked == [12, 1]
        assert (cached.usage.samples, cached.usage.hits, cached.usage.misses) == (12, 12, 12)
        assert (cached.names, cached.inputs, cached.sha256) == (teacher.names, teacher.inputs, "a")
    again = Counted()
    with Cached(again, tmp_path) as cached:
        same(cached.outputs({"x": x}), expected)
        assert again.asked == []
        assert cached.usage.bytes > 12 * 7 * 4


def test_the_whole_batch_is_asked_for_what_is_missing(tmp_path):
    x, teacher = rows(), Counted()
    with Cached(teacher, tmp_path) as cached:
        cached.outputs({"x": x[:4]})
        same(cached.outputs({"x": x[2:8]}), Counted().outputs({"x": x[2:8]}))
        assert teacher.asked == [4, 1, 6]
        assert (cached.usage.samples, cached.usage.hits, cached.usage.misses) == (8, 2, 8)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.nextafter(x, np.float32(9)),  # one bit
        lambda x: x.astype(np.float64),  # equal values
        lambda x: x.view(np.int32),  # equal bytes
        lambda x: x.reshape(-1, 2, 2),  # equal bytes, another shape
    ],
)
def test_other_bytes_are_another_sample(tmp_path, change):
    x, teacher = rows(4), Counted()
    with Cached(teacher, tmp_path) as cached:
        cached.outputs({"x": x})
        cached.outputs({"x": change(x)})
        assert cached.usage.hits == 0
        assert cached.usage.samples == 8


def test_a_repeated_sample_is_stored_once(tmp_path):
    x = rows(2)[[0, 1, 0, 0]]
    with Cached(Counted(), tmp_path) as cached:
        same(cached.outputs({"x": x}), Counted().outputs({"x": x}))
        assert cached.usage.samples == 2


@pytest.mark.parametrize(
    ("teacher", "dtype", "what"),
    [(Counted("b"), "float32", "another teacher"), (Counted(), "float16", "another dtype")],
)
def test_answers_of_another_teacher_are_an_error(tmp_path, teacher, dtype, what):
    with Cached(Counted(), tmp_path) as cached:
        cached.outputs({"x": rows()})
    with pytest.raises(DataError, match=what):
        Cached(teacher, tmp_path, dtype)
    assert teacher.asked == []
    renamed = Counted()
    renamed.names = ("y",)
    with pytest.raises(DataError, match="another names"):
        Cached(renamed, tmp_path)


def test_half_precision_is_the_same_new_and_stored(tmp_path):
    x, exact = rows(), Counted().outputs({"x": rows()})
    with Cached(Counted(), tmp_path, "float16") as cached:
        new, stored = cached.outputs({"x": x}), cached.outputs({"x": x})
    same(stored, new)
    assert not torch.equal(new["y"], exact["y"])
    torch.testing.assert_close(new["y"], exact["y"], rtol=1e-3, atol=1e-3)


def test_beyond_half_precision_is_an_error(tmp_path):
    with Cached(Counted(scale=1e6), tmp_path, "float16") as cached, pytest.raises(DataError, match="range of float16"):
        cached.outputs({"x": rows()})
    with pytest.raises(UsageError, match="float32 or float16"):
        Cached(Counted(), tmp_path / "b", "int8")


def test_answers_that_depend_on_the_batch_are_refused(tmp_path):
    with Cached(Counted(mixes=True), tmp_path) as cached:
        with pytest.raises(UnsupportedError, match="rest of the batch"):
            cached.outputs({"x": rows()})
        assert cached.usage.samples == 0


def test_dynamic_quantization_depends_on_the_batch(tmp_path):
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    optimize_file(path, tmp_path / "q.onnx", [QuantizeDynamic()])
    x = builders.samples(8, 16)
    x[1:] *= 20
    with (
        Cached(OrtTeacher(tmp_path / "q.onnx"), tmp_path / "q") as cached,
        pytest.raises(UnsupportedError, match="batch"),
    ):
        cached.outputs({"x": x})
    with Cached(OrtTeacher(path), tmp_path / "m") as cached:
        assert len(cached.outputs({"x": x})["y"]) == 8


def test_inputs_without_samples_are_refused(tmp_path):
    teacher = OrtTeacher(builders.save(builders.stateful(), tmp_path / "m.onnx"))
    feeds = {"x": rows(1), "state": np.zeros((2, 1, 4), np.float32), "rate": np.float32(1).reshape(())}
    with Cached(teacher, tmp_path) as cached, pytest.raises(UnsupportedError, match="no first axis"):
        cached.outputs(feeds)


def test_a_full_file_says_so_and_the_teacher_goes_on(tmp_path):
    teacher = Counted()
    with Cached(teacher, tmp_path, limit_bytes=1 << 17) as cached:
        for seed in range(40):
            x = rows(50, seed)
            same(cached.outputs({"x": x}), Counted().outputs({"x": x}))
        usage = cached.usage
    assert usage.full
    assert 0 < usage.samples < 2000
    assert (tmp_path / "answers.sqlite").stat().st_size <= 1 << 17
    assert usage.to_json()["full"] is True
    with Cached(Counted(), tmp_path, limit_bytes=1 << 17) as cached:
        same(cached.outputs({"x": rows(50, 0)}), Counted().outputs({"x": rows(50, 0)}))
        assert cached.usage.hits == 50


def test_a_killed_run_leaves_whole_batches(tmp_path):
    script = f"""
import os, numpy as np
from pathlib import Path
from onnxcomp.pytorch.distillation.answers import Answers
file = Answers(Path({str(tmp_path / "answers.sqlite")!r}), {{"a": 1}}, np.dtype("float32"), limit_bytes=1 << 30)
file.store({{bytes([i]): [np.full(3, i, np.float32)] for i in range(5)}})
def rows():
    for i in range(5, 9):
        yield bytes([i]), "[[3]]", 0, b""
    os._exit(9)
with file._transaction():
    file._file.executemany("INSERT INTO answers VALUES (?, ?, ?, ?)", rows())
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == 9
    file = Answers(tmp_path / "answers.sqlite", {"a": 1}, np.dtype("float32"), limit_bytes=1 << 30)
    assert len(file) == 5
    found = file.look_up([bytes([i]) for i in range(9)])
    assert sorted(found) == [bytes([i]) for i in range(5)]
    assert found[bytes([4])][0].tolist() == [4, 4, 4]
    file.close()


def test_damage_is_an_error(tmp_path):
    with Cached(Counted(), tmp_path) as cached:
        cached.outputs({"x": rows()})
    with sqlite3.connect(tmp_path / "answers.sqlite") as file:
        file.execute("UPDATE answers SET data = zeroblob(length(data))")
    file.close()
    with Cached(Counted(), tmp_path) as cached, pytest.raises(DataError, match="is damaged"):
        cached.outputs({"x": rows()})
    (tmp_path / "answers.sqlite").write_bytes(b"something else, of some length" * 100)
    with pytest.raises(DataError, match="the cache is damaged"):
        Cached(Counted(), tmp_path)
    with pytest.raises(OutputError):
        Cached(Counted(), tmp_path / "answers.sqlite")


def test_several_may_share_a_file(tmp_path):
    x = rows(200)
    expected = Counted().outputs({"x": x})
    wrong = []

    def work(seed):
        with Cached(Counted(), tmp_path) as cached:
            for part in np.split(np.random.default_rng(seed).permutation(200), 20):
                found = cached.outputs({"x": x[part]})
                if not all(torch.equal(tensor, expected[name][part]) for name, tensor in found.items()):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with Cached(Counted(), tmp_path) as cached:
        assert cached.usage.samples == 200


def test_a_real_teacher_ahead_of_its_student(tmp_path, shared):
    """Tokenized text of Snips, two epochs: the second asks nothing and gives the same."""
    ids = real_data.snips_calibration(shared / "data")["ids"][:64]
    path = shared / "models/snips_transformer.onnx"
    batches = [{"ids": ids[i : i + 16]} for i in range(0, 64, 16)]
    live = OrtTeacher(path, ("softmax",))
    with Cached(OrtTeacher(path, ("softmax",)), tmp_path) as cached:
        for _ in range(2):
            for batch, found in ahead(cached, iter(batches)):
                same(found, live.outputs(batch))
        assert (cached.usage.hits, cached.usage.misses) == (64, 64)


def test_whole_batches_are_remembered_as_far_as_they_fit():
    """By their bytes, order included; for a teacher of any kind."""
    x, teacher = rows(), Counted(mixes=True)
    remembered = Remembered(teacher, limit=2 * 4 * 7 * 4)  # two batches of 4 samples with 7 floats
    parts = np.split(x, 3)
    for _ in range(3):
        for part in parts:
            same(
                remembered.outputs({"x": part.copy(), "labels": np.zeros(4)}), Counted(mixes=True).outputs({"x": part})
            )
    assert teacher.asked == [4] * 5  # the third batch each time
    remembered.outputs({"x": parts[0][::-1].copy()})
    remembered.outputs({"x": parts[0].astype(np.float64)})
    assert teacher.asked == [4] * 7
    with pytest.raises(KeyError):
        remembered.outputs({"y": x})
    assert (remembered.names, remembered.inputs, remembered.sha256) == (teacher.names, teacher.inputs, "a")
