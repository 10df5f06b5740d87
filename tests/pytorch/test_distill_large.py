"""More samples than memory should hold: they stay in files, and the student is the same."""

from __future__ import annotations

import os
import subprocess
import sys

import builders
import distill_samples
import numpy as np
import pytest
import torch
from onnx import helper

from onnxcomp.data import Batches, mapped
from onnxcomp.errors import DataError, OutputError
from onnxcomp.model import load, signature
from onnxcomp.pytorch import distill
from onnxcomp.pytorch.distillation import columns, samples
from onnxcomp.pytorch.distillation.columns import Column, Keeper


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_memory(monkeypatch):
    """Nothing fits in memory, every file is large."""
    monkeypatch.setattr(samples, "IN_MEMORY", 0)
    monkeypatch.setattr(mapped, "_LARGE", 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    distill_samples.teacher(folder)
    distill_samples.student(folder)
    arrays = distill_samples.samples(folder / "teacher.onnx", 300)
    for name, save in (("stored", np.savez), ("packed", np.savez_compressed)):
        (folder / name).mkdir()
        for i in range(3):
            save(folder / name / f"{i}.npz", **{key: array[100 * i : 100 * i + 100] for key, array in arrays.items()})
    np.savez(folder / "whole.npz", **arrays)
    return folder


@pytest.mark.parametrize("data", ["stored", "packed", "whole.npz"])
def test_samples_in_files_train_the_same_student(place, tmp_path, data, small_memory, monkeypatch):
    """Mapped, or spilled where they are packed: the bits are those of samples in memory."""
    options = {"epochs": 1, "batch": 20, "lr": 0.02, "labels_weight": 0.3}
    models = (place / "teacher.onnx", place / "student8.onnx", place / data)
    found = distill(*models, tmp_path / "files.onnx", **options)
    monkeypatch.setattr(samples, "IN_MEMORY", 1 << 30)
    expected = distill(*models, tmp_path / "memory.onnx", **options)
    assert (tmp_path / "files.onnx").read_bytes() == (tmp_path / "memory.onnx").read_bytes()
    assert found.fidelity == expected.fidelity


@pytest.mark.parametrize(("data", "stays"), [("stored", True), ("packed", False)])
def test_what_a_file_holds_unpacked_is_not_copied(place, data, stays, small_memory, monkeypatch):
    spilled = []
    monkeypatch.setattr(
        Keeper, "_spill", lambda self, part, spill=Keeper._spill: spilled.append(part) or spill(self, part)
    )
    read = samples.read(place / data, signature(load(place / "teacher.onnx")).inputs)
    assert isinstance(read.arrays["x"], Column)
    assert all(mapped.mapping_of(part) is not None for part in read.arrays["x"].parts)
    assert (not spilled) == stays
    rows = np.array([299, 0, 100, 99, 0])
    whole = np.load(place / "whole.npz")
    np.testing.assert_array_equal(read.arrays["x"][rows], whole["x"][rows])
    np.testing.assert_array_equal(read.labels_of(rows), whole["labels"][rows])


def test_many_files_are_not_kept_open(place, small_memory, monkeypatch):
    """The third of two allowed is copied."""
    monkeypatch.setattr(columns, "_MAPS", 2)
    read = samples.read(place / "stored", signature(load(place / "teacher.onnx")).inputs)
    maps = {id(mapped.mapping_of(part)) for part in read.arrays["x"].parts}
    assert len(maps) == 3  # two files and the temporary one
    np.testing.assert_array_equal(read.arrays["x"][np.arange(300)], np.load(place / "whole.npz")["x"])


def test_integers_are_cast_as_they_are_read(tmp_path, small_memory):
    """Token numbers in 16 bits for a model that takes 64, texts of several lengths: cut by their mask."""
    builders.save(builders.encoder(), tmp_path / "encoder.onnx")
    ids = np.random.default_rng(0).integers(0, 50, (40, 6)).astype(np.int16)
    np.save(tmp_path / "ids.npy", ids)
    read = samples.read(tmp_path / "ids.npy", signature(load(tmp_path / "encoder.onnx")).inputs)
    feeds = read.feeds(np.array([3, 39]))
    assert feeds["ids"].dtype == np.int64
    np.testing.assert_array_equal(feeds["ids"], ids[[3, 39]])


def test_shards_that_do_not_fit_each_other(place, tmp_path, small_memory):
    builders.save(builders.encoder(), tmp_path / "encoder.onnx")
    for length in (4, 5):
        np.save(tmp_path / f"{length}.npy", np.zeros((20, length), np.int64))
    with pytest.raises(DataError, match=r"shards of different shapes: \(4,\) and \(5,\)"):
        samples.read(tmp_path, signature(load(tmp_path / "encoder.onnx")).inputs)


def test_a_full_disk_is_an_output_error(place, small_memory, monkeypatch):
    class Full:
        def tell(self):
            return 0

        def seek(self, _):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(columns.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(OutputError, match="the disk is full"):
        samples.read(place / "packed", signature(load(place / "teacher.onnx")).inputs)


def test_a_selection_of_a_large_shard_comes_in_pieces(place, monkeypatch):
    """The same batches, and the hash of the same bytes as long as it fits in one piece."""
    inputs = signature(load(place / "teacher.onnx")).inputs
    half = Batches(place / "whole.npz", inputs, batch_size=7).split(0.5)[0]
    before = [batch.feeds["x"] for batch in half]
    monkeypatch.setattr("onnxcomp.data.batches._AT_ONCE", 21 * 72)  # 72 bytes a sample with its label
    pieces = [len(shard["x"]) for shard in half._shards()]
    assert pieces == [21] * 7 + [3]
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate([batch.feeds["x"] for batch in half]))


_JOB = """
import sys, torch
torch.set_num_threads(1)
from onnxcomp.pytorch import distill
from onnxcomp.pytorch.distillation import samples
samples.IN_MEMORY = 16 << 20
teacher, student, *sources, output = sys.argv[1:]
for data in sources:
    done = distill(teacher, student, data, output, loss="mse", epochs=1, batch=64, lr=1e-4, force=True)
    print(done.to_json()["passes"][0]["peak_rss_bytes"])
"""

_WIDTH = 16384
_COUNT = 3072  # 192 MiB


_SHARDS = f"""
import numpy as np

def shards(count=16):
    for i in range(count):
        yield {{"x": np.full(({_COUNT // 16}, {_WIDTH}), i, "f")}}

def few():
    return shards(2)
"""


def wide(path, seed):
    """x (batch, 16384) -> y (batch, 4)."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    weights = [builders.weight("w", 4, _WIDTH, seed=seed, scale=0.01), builders.weight("b", 4, seed=seed)]
    inputs, outputs = builders.value("x", "batch", _WIDTH), builders.value("y", "batch", 4)
    return builders.save(builders.model([node], [inputs], [outputs], weights), path)


@pytest.mark.parametrize("kind", ["mapped", "spilled"])
def test_memory_does_not_grow_with_the_samples(tmp_path, kind):
    """192 MiB take as much as 24 MiB do and a few buffers, less than half of themselves."""
    teacher, student = (wide(tmp_path / f"{name}.onnx", seed) for seed, name in enumerate(("teacher", "student")))
    sources = [f"{tmp_path}/shards.py:{name}" for name in ("few", "shards")]
    (tmp_path / "shards.py").write_text(_SHARDS)
    if kind == "mapped":
        sources = [str(tmp_path / f"{name}.npy") for name in ("few", "many")]
        for path, count in zip(sources, (_COUNT // 8, _COUNT), strict=True):
            array = np.lib.format.open_memmap(path, "w+", np.float32, (count, _WIDTH))
            array[:, 0] = np.arange(count) % 7  # the rest is a hole in the file
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p]), "OMP_NUM_THREADS": "1"}
    arguments = [teacher, student, *sources, tmp_path / "out.onnx"]
    done = subprocess.run(
        [sys.executable, "-c", _JOB, *map(str, arguments)], capture_output=True, text=True, env=environment, check=True
    )
    few, many = map(int, done.stdout.split())
    assert many - few < 96 << 20, (few, many)
