"""Real processes of a small model: their memory, outputs and times come back; a dead one ends all."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import builders
import numpy as np
import psutil
import pytest
import worker_jobs as jobs

from onnxcomp import replicas, worker
from onnxcomp.errors import DataError, InvalidModelError, LimitError, ProviderError, UsageError, WorkerCrashError
from onnxcomp.replicas import feeding, gate
from onnxcomp.replicas.replica import _digest
from onnxcomp.runtime import open_session
from onnxcomp.worker import WorkerLimits

FEEDS = [{"x": builders.samples(4, 16, seed=seed)} for seed in range(3)]


@pytest.fixture
def model(tmp_path):
    return builders.save(builders.mlp(), tmp_path / "mlp.onnx")


@pytest.fixture
def wide(tmp_path):
    """16 MB of weights."""
    return builders.save(builders.mlp(width=160_000), tmp_path / "wide.onnx")


BEFORE = set()  # what other tests of this process keep: a fork server and its tracker


@pytest.fixture(autouse=True)
def _apart_from_other_tests():
    BEFORE.clear()
    BEFORE.update(psutil.Process().children(recursive=True))


def mine():
    """Processes that the test has started and that still run."""
    children = psutil.Process().children(recursive=True)
    return [p for p in children if p not in BEFORE and p.status() != psutil.STATUS_ZOMBIE]


def digest(outputs):
    """As a replica makes it."""
    made = hashlib.sha256()
    for name, value in outputs.items():
        made.update(name.encode())
        _digest(made, value)
    return made.hexdigest()


def test_processes_open_the_model_themselves_and_agree(wide):
    heard = []
    found = replicas.run(wide, 2, feeds=FEEDS, seconds=0.2, on_progress=heard.append)
    assert heard == ["imported", "loaded", "warm", "ran"]
    assert (found.kind, found.count, len(found.replicas), len(found.callers)) == ("processes", 2, 2, 2)
    session = open_session(wide)
    assert found.outputs == tuple(digest(session.run(feed)) for feed in FEEDS)
    assert len(set(found.outputs)) == 3
    assert found.outputs_equal
    for one in found.replicas:
        assert one.start_seconds > 0
        assert one.load_seconds > 0
        assert one.cpu_seconds > 0
        (caller,) = one.callers
        assert caller.output_bytes == 3 * 4 * 10 * 4
        assert caller.runs >= len(caller.wall_ns) == len(caller.cpu_ns) > 0
        assert caller.elapsed_ns >= 0.2e9
        # the weights are in the memory of each, the second time as packed copies or not
        assert one.memory["loaded"].anonymous_bytes - one.memory["imported"].anonymous_bytes > 10e6
        assert one.memory["ran"].peak_bytes >= one.memory["loaded"].peak_bytes > 0
    for point in replicas.POINTS:
        total = found.memory(point)
        assert total.pss_bytes == sum(r.memory[point].pss_bytes for r in found.replicas)
        assert total.uss_bytes <= total.pss_bytes
    out = found.to_json()
    assert out["memory"]["ran"]["pss_bytes"] == found.memory().pss_bytes
    assert out["runs_per_second"] == pytest.approx(sum(c.runs_per_second for c in found.callers))
    assert mine() == []


def test_threads_share_one_session(wide):
    found = replicas.run(wide, 3, feeds=FEEDS, seconds=0.1, kind="threads")
    assert (len(found.replicas), len(found.callers)) == (1, 3)
    assert found.outputs_equal
    assert all(caller.runs > 0 for caller in found.callers)
    one, three = found.memory("loaded").uss_bytes, replicas.run(wide, 3, feeds=FEEDS).memory("loaded").uss_bytes
    assert three > 2 * one


def test_without_time_nothing_is_timed(model):
    found = replicas.run(model, 1, feeds=FEEDS)
    assert found.runs_per_second is None
    assert found.cpu_seconds_per_run is None
    assert found.callers[0].runs == 0
    assert found.to_json()["runs_per_second"] is None


def test_a_dead_replica_is_an_error_and_the_others_end(model):
    def kill(point):
        if point == "loaded":
            os.kill(mine()[0].pid, signal.SIGSEGV)

    with pytest.raises(WorkerCrashError, match=r"SIGSEGV \(process \d of 3\)"):
        replicas.run(model, 3, feeds=FEEDS, seconds=60, on_progress=kill)
    assert mine() == []


def test_a_frozen_replica_is_found(model):
    def freeze(point):
        if point == "imported":
            os.kill(mine()[0].pid, signal.SIGSTOP)

    with pytest.raises(LimitError, match="no progress for 1 s"):
        replicas.run(model, 2, feeds=FEEDS, limits=WorkerLimits(stall_seconds=1), on_progress=freeze)
    assert mine() == []


def test_memory_of_all_together_is_limited(wide):
    with pytest.raises(LimitError, match="the limit is 60 MiB"):
        replicas.run(wide, 2, feeds=FEEDS, seconds=30, limits=WorkerLimits(memory_bytes=60 << 20))
    assert mine() == []


def test_errors_of_the_model_and_of_the_data_are_typed(tmp_path, model):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:-40])
    with pytest.raises(InvalidModelError):
        replicas.run(broken, 1, feeds=FEEDS)
    with pytest.raises(DataError):
        replicas.run(model, 2, feeds=[{"x": np.zeros((2, 5), np.float32)}])
    with pytest.raises(ProviderError):
        replicas.run(model, 1, feeds=FEEDS, provider="openvino")
    assert mine() == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"count": 0}, "at least one"),
        ({"kind": "process"}, "unknown kind"),
        ({"feeds": []}, "nothing to feed"),
        ({"seconds": -1.0}, "negative"),
        ({"seconds": float("nan")}, "negative"),
    ],
)
def test_usage(model, options, text):
    with pytest.raises(UsageError, match=text):
        replicas.run(model, **{"count": 1, "feeds": FEEDS, **options})


def test_an_interruption_leaves_nothing(model, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_replicas
from onnxcomp import replicas
replicas.run({str(model)!r}, 2, feeds=test_replicas.FEEDS, seconds=60, on_progress=lambda p: print(p, flush=True))
"""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while parent.stdout.readline() != b"warm\n":
        assert parent.poll() is None
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=60)
    assert not any(child.is_running() for child in children)
    assert list(tmp_path.glob("onnxcomp-replicas-*")) == []


def test_a_replica_imports_no_more_than_a_server():
    code = "import onnxcomp.replicas.replica, sys; print([m for m in ('onnx', 'onnx_ir', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_large_feeds_are_mapped_and_small_ones_sent(tmp_path):
    large, strings = builders.samples(300, 100), np.array(["a", "bc"], dtype=object)
    parcels = feeding.wrap([{"a": large, "b": large[:2], "c": strings}], tmp_path)
    assert [p.stat().st_size for p in tmp_path.iterdir()] == [large.nbytes]
    feeds = feeding.Feeds(parcels)
    (back,) = feeds.arrays
    for _ in range(2):
        assert np.array_equal(back["a"], large)
        assert np.array_equal(back["b"], large[:2])
        assert list(back["c"]) == ["a", "bc"]
        feeds.drop()


def test_feeds_are_no_memory_of_a_replica(model):
    found = replicas.run(model, 1, feeds=[{"x": builders.samples(200_000, 16)}])  # 12.8 MB
    small = replicas.run(model, 1, feeds=[{"x": builders.samples(4, 16)}])
    assert abs(found.memory("ran").file_bytes - small.memory("ran").file_bytes) < 6e6


def test_a_gate_holds_until_it_is_opened(tmp_path):
    passed = threading.Event()
    with gate.gates(tmp_path, ("a",)) as closed:
        path = closed["a"].path
        thread = threading.Thread(target=lambda: (gate.wait(path), passed.set()))
        thread.start()
        time.sleep(0.2)
        assert not passed.is_set()
        closed["a"].open()
        thread.join(60)
        assert passed.is_set()
        gate.wait(path)


def test_outputs_that_differ_have_other_digests():
    zero = np.zeros((2, 3), np.float32)
    others = [zero.T, zero.astype(np.int32), zero + 1, [zero], {"a": 0.0}, np.array(["x"], dtype=object)]
    assert len({digest({"y": value}) for value in [zero, *others]} | {digest({"z": zero})}) == len(others) + 2


def test_the_files_of_the_model_are_synced(tmp_path, monkeypatch):
    path = builders.externalize(builders.mlp(), tmp_path)
    seen = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(Path(f"/proc/self/fd/{fd}").readlink().name))
    replicas.sync(path)
    assert seen == ["model.onnx", "weights.data"]


def test_calls_side_by_side_answer_in_order_and_are_heard_apart():
    heard = []
    calls = [functools.partial(jobs.count_up, 2), functools.partial(jobs.add, 1, b=2)]
    assert worker.side_by_side(calls, on_progress=lambda *said: heard.append(said)) == [None, 3]
    assert heard == [(0, "0", None), (0, "1", None)]


def test_one_of_several_calls_that_fails_ends_all(tmp_path):
    calls = [functools.partial(jobs.hang, tmp_path), functools.partial(jobs.abort)]
    with pytest.raises(WorkerCrashError, match=r"SIGABRT \(process 2 of 2\)"):
        worker.side_by_side(calls)
    assert mine() == []
