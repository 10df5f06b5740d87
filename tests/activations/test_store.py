"""Kept statistics: resumed to the same bytes, redone where damaged, another file for anything else."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import pytest

from onnxcomp.activations import Channels, Histogram, Range, Rows, observe, store
from onnxcomp.data import Batches
from onnxcomp.errors import OutputError
from onnxcomp.model import load, signature

MODULE = importlib.import_module("onnxcomp.activations.observe")
TENSORS = ("h", "a", "y")


@pytest.fixture
def model(tmp_path):
    return load(builders.save(builders.mlp(), tmp_path / "m.onnx"))


@pytest.fixture
def runs(monkeypatch):
    """A list that grows by one for each run of a session."""
    counted: list[int] = []

    class Counting:
        def __init__(self, session):
            self.session = session

        def run(self, names, feeds):
            counted.append(len(names))
            return self.session.run(names, feeds)

    plain = MODULE._session

    def session(*args):
        made = plain(*args)
        return dataclasses.replace(made, ort=Counting(made.ort))

    monkeypatch.setattr(MODULE, "_session", session)
    return counted


def data(model, count=100, *, seed=0, batch_size=8):
    return Batches({"x": builders.samples(count, 16, seed=seed)}, signature(model).inputs, batch_size=batch_size)


def wanted():
    return {name: (Histogram(), Channels(-1), Rows(20), Range()) for name in TENSORS}


def collect(model, batches, tmp_path, folder):
    found = wanted()
    observe(model, batches, found, workdir=tmp_path, store=folder)
    return found


def as_bytes(found):
    return [{k: np.asarray(v).tobytes() for k, v in s.state().items()} for held in found.values() for s in held]


def test_a_finished_one_is_not_run_again(model, runs, tmp_path):
    first = collect(model, data(model), tmp_path, tmp_path / "kept")
    assert len(runs) == 1 + 13  # one sample for the sizes, then 100 samples by 8
    runs.clear()
    again = collect(model, data(model), tmp_path, tmp_path / "kept")
    assert runs == []
    assert as_bytes(again) == as_bytes(first) == as_bytes(collect(model, data(model), tmp_path, None))


@pytest.mark.parametrize("budget", [64 << 20, 200], ids=["one turn", "turns"])
def test_an_interrupted_one_goes_on_to_the_same_bytes(model, runs, tmp_path, monkeypatch, budget):
    monkeypatch.setattr(MODULE, "_BUDGET", budget)  # one sample: h and a 128 bytes each, y 40
    monkeypatch.setattr(store, "_EVERY", 0.0)
    collect(model, data(model), tmp_path, tmp_path / "whole")
    all_runs = len(runs) - 1
    assert all_runs == (13 if budget > 200 else 200)
    runs.clear()

    def interrupt(text, fraction):
        if len(runs) > 1 + all_runs // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MODULE.worker, "report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect(model, data(model), tmp_path, tmp_path / "halves")
    before = len(runs) - 1
    runs.clear()
    collect(model, data(model), tmp_path, tmp_path / "halves")
    assert len(runs) - 1 == all_runs - (before - 1)  # the run that was interrupted is the only one done twice
    (whole,), (halves,) = ((tmp_path / name).iterdir() for name in ("whole", "halves"))
    assert whole.name == halves.name
    assert whole.read_bytes() == halves.read_bytes()


KILLED = """
import importlib, os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import test_store
test_store.store._EVERY = 0.0
seen = []
test_store.MODULE.worker.report = lambda *_: os._exit(9) if len(seen) == 5 else seen.append(1)
folder = Path({folder!r})
model = test_store.load(folder / "m.onnx")
test_store.collect(model, test_store.data(model), folder, folder / "kept")
"""


def test_a_killed_process_leaves_what_it_had_kept(model, runs, tmp_path):
    """No clean-up runs: what counts is what stands on disk."""
    here = Path(__file__).parent
    script = KILLED.format(tests=str(here.parent), here=str(here), folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 9
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".activations"]
    found = collect(model, data(model), tmp_path, tmp_path / "kept")
    assert len(runs) == 1 + 13 - 5
    assert as_bytes(found) == as_bytes(collect(model, data(model), tmp_path, None))


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "other", "pickle"])
def test_a_damaged_file_is_redone(model, runs, tmp_path, damage):
    folder = tmp_path / "kept"
    first = collect(model, data(model), tmp_path, folder)
    (path,) = folder.iterdir()
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(
        {
            "truncated": good[:middle],
            "empty": b"",
            "bit": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
            "other": b"no statistics at all, but some text that is long enough",
            "pickle": b"\x80\x04K\x01.",
        }[damage]
    )
    runs.clear()
    again = collect(model, data(model), tmp_path, folder)
    assert len(runs) == 14
    assert as_bytes(again) == as_bytes(first)
    assert path.read_bytes() == good


def test_anything_else_is_another_file(model, runs, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    other = load(builders.save(builders.mlp(width=33), tmp_path / "other.onnx"))
    weights = load(builders.save(builders.mlp(), tmp_path / "weights.onnx"))
    held = weights.graph.initializers["w1"]
    held.const_value = MODULE.ir.Tensor(held.const_value.numpy() * np.float32(1.0001), name="w1")
    observations = [
        lambda: collect(model, data(model), tmp_path, folder),
        lambda: collect(other, data(other), tmp_path, folder),
        lambda: collect(weights, data(weights), tmp_path, folder),
        lambda: collect(model, data(model, 99), tmp_path, folder),
        lambda: collect(model, data(model, seed=1), tmp_path, folder),
        lambda: collect(model, data(model, batch_size=4), tmp_path, folder),
        lambda: collect(model, data(model).split(0.5)[0], tmp_path, folder),
        lambda: observe(model, data(model), {"h": [Rows(3)]}, workdir=tmp_path, store=folder),
        lambda: observe(model, data(model), {"a": [Rows(3)]}, workdir=tmp_path, store=folder),
        lambda: observe(model, data(model), {"a": [Rows(4)]}, workdir=tmp_path, store=folder),
        lambda: observe(model, data(model), {"a": [Channels(1)]}, workdir=tmp_path, store=folder),
    ]
    for number, observation in enumerate(observations, start=1):
        runs.clear()
        observation()
        assert runs, f"observation {number} was taken from another's file"
        assert len(list(folder.iterdir())) == number


def test_what_another_observation_has_seen_is_taken_from_it(model, runs, tmp_path):
    """As a search for nodes to leave in float asks: some of the tensors, then some that are new."""
    folder = tmp_path / "kept"
    first = collect(model, data(model), tmp_path, folder)
    runs.clear()
    some = {"a": [Range(), Histogram()], "h": [Rows(20)]}
    observe(model, data(model), some, workdir=tmp_path, store=folder)
    assert runs == []
    assert as_bytes(some) == as_bytes({"a": [first["a"][3], first["a"][0]], "h": [first["h"][2]]})
    more = {"a": [Rows(4), Range()], "h": [Range()], "x": [Range()]}
    observe(model, data(model), more, workdir=tmp_path, store=folder)
    assert set(runs) == {1}  # of a only, for what was not kept of it; x is fed
    alone = {"a": [Rows(4), Range()], "h": [Range()], "x": [Range()]}
    observe(model, data(model), alone, workdir=tmp_path)
    assert as_bytes(more) == as_bytes(alone)
    runs.clear()
    observe(model, data(model), alone, workdir=tmp_path, store=folder)
    assert runs == []


def test_what_an_interrupted_observation_has_is_not_taken_by_another(model, runs, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    monkeypatch.setattr(store, "_EVERY", 0.0)

    def interrupt(text, fraction):
        if len(runs) > 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MODULE.worker, "report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect(model, data(model), tmp_path, folder)
    assert list(folder.iterdir())
    runs.clear()
    ranged = {"a": [Range()]}
    observe(model, data(model), ranged, workdir=tmp_path, store=folder)
    assert len(runs) == 1 + 13
    assert as_bytes(ranged) == as_bytes({"a": [collect(model, data(model), tmp_path, None)["a"][3]]})


def test_where_no_folder_can_be(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        collect(model, data(model), tmp_path, tmp_path / "file" / "kept")
