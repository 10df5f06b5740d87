"""A single model in several fresh sessions: how the runs and the time are shared."""

from __future__ import annotations

import itertools

import bench_models
import pytest

from onnxcomp.bench import bench, single
from onnxcomp.errors import UsageError


def test_every_session_has_its_share_of_the_runs(tmp_path, monkeypatch):
    opened = []
    usual = single.Job.open
    monkeypatch.setattr(single.Job, "open", lambda self, index: opened.append(index) or usual(self, index))
    path = bench_models.linear(tmp_path / "net.onnx")
    found = bench(path, seconds=20, sessions=4, max_runs=22, seed=1).to_json()["results"][0]
    assert found["sessions"] == 4
    assert found["samples"]["per_session"] == [6, 6, 6, 6]
    assert found["runs"] == len(found["samples"]["wall_ns"]) == len(found["samples"]["cpu_ns"]) == 24
    assert len(opened) == 1 + 4  # the feeds are tried first
    assert found["warm_up"]["runs"] >= 4 * 3


def test_one_session_is_the_default(tmp_path):
    path = bench_models.linear(tmp_path / "net.onnx")
    found = bench(path, seconds=0.2, max_runs=30, seed=1).to_json()["results"][0]
    assert found["sessions"] == 1
    assert found["samples"]["per_session"] == [found["runs"]]


def test_a_slow_model_has_five_sessions_at_least(tmp_path, monkeypatch):
    path = bench_models.linear(tmp_path / "net.onnx")
    ticks = itertools.count(step=100.0)
    monkeypatch.setattr(single.time, "monotonic", lambda: next(ticks))
    found = bench(path, seconds=1.0, sessions=9, seed=1).to_json()["results"][0]
    assert found["sessions"] == 5
    assert min(found["samples"]["per_session"]) >= 3


def test_no_session_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least one session"):
        bench(tmp_path / "net.onnx", sessions=0)
