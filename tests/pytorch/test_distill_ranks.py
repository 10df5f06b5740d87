"""Several processes train what one would: shares of samples, losses, weights, checkpoints, failures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import distill_ranks
import distill_samples
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxcomp.errors import UnsupportedError, UsageError
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch import with_torch
from onnxcomp.pytorch.distillation import ranks as several
from onnxcomp.pytorch.distillation.ranks import Ranks
from onnxcomp.pytorch.distillation.samples import Samples, order
from onnxcomp.pytorch.distillation.setup import make_settings
from onnxcomp.recipe import Recipe

COUNT = 2


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two processes have gone through all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    distill_samples.teacher(folder)
    distill_samples.student(folder)
    np.savez(folder / "data.npz", **distill_samples.samples(folder / "teacher.onnx"))
    ports = free_ports(len(distill_ranks.CASES) + 1)
    common = {**os.environ, "WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = os.pathsep.join([path for path in sys.path if path])
    script = str(Path(distill_ranks.__file__))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(folder), *ports], env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(COUNT)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return folder


def told(place, case):
    """What each process says of a case."""
    documents = [json.loads((place / f"{case}.{rank}.json").read_text()) for rank in range(COUNT)]
    assert not any("bug" in document for document in documents), documents
    return documents


def weights(path):
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", ["whole", "uneven", "resumed"])
def test_two_processes_learn_what_one_does(place, tmp_path, case):
    """Losses, judgements and weights, to the order of sums; resumed, the last half came from the checkpoint."""
    first, second = told(place, case)
    assert first["output"] == second["output"]
    assert first["history"] == second["history"]
    options = {"batch": 21, "accumulate": 2, "metric": "agreement"} if case == "uneven" else {}
    for name in ("teacher.onnx", "student8.onnx", "data.npz"):
        (tmp_path / name).symlink_to(place / name)
    alone = distill_ranks.run(tmp_path, "alone", **options)
    for ours, theirs in zip(first["history"], alone.trained.history, strict=True):
        assert (ours["loss"] or 0) == pytest.approx(theirs["loss"] or 0, rel=1e-5)
        assert ours["validation"] == pytest.approx(theirs["validation"], rel=1e-5)
        assert ours["lr"] == theirs["lr"]
    assert first["resumed_from_step"] == (13 if case == "resumed" else None)
    expected = weights(tmp_path / "alone.onnx")
    for name, array in weights(place / f"{case}.onnx").items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_process_holds_the_same_student(place):
    """Its own first weights and statistics are the first process's and the mean; what is not used stays alike too."""
    first, second = told(place, "statistics")
    assert first["best"] == second["best"] > 0
    assert first["held"] == second["held"]
    assert first["held"]["unused"] == [0, 0]
    assert np.abs(first["held"]["norm.running_mean"]).max() > 0


def test_what_fails_in_one_ends_all(place):
    first, second = told(place, "failing")
    assert first == second
    assert (first["class"], first["message"], first["where"]) == ("DataError", "a sample is bad", "sample 7")
    assert not (place / "failing.onnx").exists()


@pytest.mark.usefixtures("one_thread")
def test_a_recipe_in_two_processes_is_that_of_one(place, tmp_path):
    """Pruned once, trained twice together, published by the first: the same figures and weights."""
    first, second = told(place, "stages")
    assert second == {"published": False}
    assert [path.name for path in place.glob("kept_stages*")] == ["kept_stages0"]
    steps = with_torch(Recipe.parse(distill_ranks.RECIPE).passes)
    alone = optimize_file(place / "teacher.onnx", tmp_path / "alone.onnx", steps, data=place / "data.npz").to_json()
    for ours, theirs in zip(first["passes"], alone["passes"], strict=True):
        assert ours["name"] == theirs["name"]
        for one, other in zip(ours["effect"].get("history", ()), theirs["effect"].get("history", ()), strict=True):
            assert one["validation"] == pytest.approx(other["validation"], rel=1e-4)
    assert first["output"]["bytes"] == alone["output"]["bytes"]
    expected = weights(tmp_path / "alone.onnx")
    for name, array in weights(place / "stages.onnx").items():
        if array.dtype == np.float32:
            np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_what_fails_in_a_pass_ends_those_that_wait(place):
    first, second = told(place, "failing_stage")
    assert first["class"] == second["class"] == "UsageError"
    assert first["message"] == second["message"] == "there is no such input"
    assert not (place / "no.onnx").exists()


@pytest.mark.parametrize(("batch", "ranks"), [(20, 2), (21, 2), (7, 3), (4, 4)])
@pytest.mark.parametrize("size", [None, 1])
def test_a_step_is_shared_without_overlap(batch, ranks, size):
    samples = Samples({"x": np.zeros((100, 2))}, None, size, {})
    plans = [
        order(samples, validation=0.1, batch=batch, accumulate=2, seed=3, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    alone = order(samples, validation=0.1, batch=batch, accumulate=2, seed=3)
    for step, expected in zip(zip(*(plan.epoch(1) for plan in plans), strict=True), alone.epoch(1), strict=True):
        shares = [np.concatenate(runs) for runs in step]
        assert np.concatenate(shares).tolist() == np.concatenate(expected).tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    judged = np.concatenate([rows for plan in plans for rows in plan.judged()])
    assert sorted(judged) == alone.judging.tolist()


def test_a_fixed_batch_is_not_cut():
    samples = Samples({"x": np.zeros((80, 2))}, None, 8, {})
    plans = [order(samples, validation=0.1, batch=24, accumulate=1, seed=0, rank=rank, ranks=2) for rank in range(2)]
    assert [[len(rows) for rows in next(plan.epoch(0))] for plan in plans] == [[8, 8], [8]]


def test_fewer_samples_than_processes_are_refused():
    samples = Samples({"x": np.zeros((80, 2))}, None, None, {})
    with pytest.raises(UsageError, match="2 runs per step for 3 processes"):
        order(samples, validation=0.1, batch=2, accumulate=1, seed=0, rank=0, ranks=3)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Ranks()),
        ({"WORLD_SIZE": "4"}, Ranks()),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            Ranks(3, 4, 1),
        ),
    ],
)
def test_what_torchrun_says(monkeypatch, environment, expected):
    say(monkeypatch, environment)
    assert several.from_environment() == expected


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "invalid literal"),
    ],
)
def test_half_of_what_torchrun_says_is_refused(monkeypatch, environment, text):
    say(monkeypatch, environment)
    with pytest.raises(UsageError, match=text):
        several.from_environment()


def say(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_each_process_needs_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    automatic = make_settings({})
    assert several.choose_device(automatic, Ranks(5, 6, 1)) == torch.device("cuda", 1)
    assert chosen == [1]
    assert several.choose_device(automatic, Ranks()) == torch.device("cuda")
    assert several.choose_device(make_settings({"device": "cpu"}), Ranks(5, 6, 3)) == torch.device("cpu")
    with pytest.raises(UnsupportedError, match="process 4 of this host has no CUDA device") as caught:
        several.choose_device(automatic, Ranks(3, 4, 3))
    assert "--nproc-per-node 2" in caught.value.hint
