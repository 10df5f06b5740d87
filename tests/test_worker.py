"""A child that fails in any way becomes a typed error, leaves no process behind, and never hurts the parent."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import builders
import numpy as np
import psutil
import pytest
import worker_jobs as jobs

from onnxcomp import worker
from onnxcomp.errors import LimitError, UnsafeModelError, UsageError, WorkerCrashError, WorkerTimeoutError
from onnxcomp.worker import RemoteError, WorkerLimits, isolated

HERE = str(Path(__file__).parent)
MIB = 1 << 20


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(check, seconds=60):
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def nobody_lives(pids):
    return eventually(lambda: all(map(is_gone, pids)))


def family(folder):
    """The ids that `jobs.hang` wrote."""
    assert eventually((folder / "pids").exists)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def script(code, **options):
    """A Python process of its own that may import the jobs."""
    env = {**os.environ, "PYTHONPATH": HERE}
    head = "from onnxcomp.worker import WorkerLimits, isolated; import worker_jobs as jobs\n"
    return subprocess.Popen([sys.executable, "-c", head + code], env=env, text=True, **options)


@pytest.fixture
def place(tmp_path):
    """A folder whose processes are ended whatever the test found."""
    yield tmp_path
    if (tmp_path / "pids").exists():
        for pid in family(tmp_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def clock(monkeypatch):
    """The parent's clock, moved by hand."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(worker, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_result_comes_back():
    assert isolated(jobs.add, [1], b=[2]) == [1, 2]


def test_it_works_from_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(isolated(jobs.add, 1, 2)))
    thread.start()
    thread.join()
    assert found == [3]


def test_our_errors_come_back_with_all_their_fields():
    with pytest.raises(UnsafeModelError) as caught:
        isolated(jobs.refuse)
    assert (caught.value.message, caught.value.where, caught.value.hint) == (
        "too deep",
        "model.onnx: node n",
        "do not",
    )


def test_an_unexpected_exception_carries_the_worker_s_traceback():
    with pytest.raises(RemoteError, match="IndexError") as caught:
        isolated(jobs.trip)
    assert "worker_jobs.py" in str(caught.value)
    assert "parents[7]" in str(caught.value)


def test_a_result_that_cannot_be_pickled_is_a_bug_with_a_traceback():
    with pytest.raises(RemoteError, match="give_unpicklable"):
        isolated(jobs.give_unpicklable)


@pytest.mark.parametrize(
    ("job", "text"), [(jobs.read_nothing, "SIGSEGV"), (jobs.abort, "SIGABRT"), (jobs.fork_and_crash, "SIGSEGV")]
)
def test_a_crash_names_its_signal(job, text):
    with pytest.raises(WorkerCrashError, match=text):
        isolated(job)


@pytest.mark.parametrize("code", [0, 3])
def test_an_early_exit_is_a_crash(code):
    with pytest.raises(WorkerCrashError, match=f"exit code {code}"):
        isolated(jobs.leave, code)


def test_a_kill_from_outside_is_taken_for_lack_of_memory():
    with pytest.raises(LimitError, match="lack of memory"):
        isolated(jobs.kill_self)


def test_a_memory_error_is_a_limit():
    with pytest.raises(LimitError, match="out of memory"):
        isolated(jobs.run_out)


@pytest.mark.parametrize("job", [jobs.grow, jobs.grow_in_a_child])
def test_the_memory_limit_counts_the_worker_and_its_children(job):
    with pytest.raises(LimitError, match="the limit is 200 MiB") as caught:
        isolated(job, 800 * MIB, limits=WorkerLimits(memory_bytes=200 * MIB))
    assert type(caught.value) is LimitError
    assert "--memory-limit" in caught.value.hint


def test_a_worker_below_the_memory_limit_is_left_alone():
    assert isolated(jobs.grow, 16 * MIB, limits=WorkerLimits(memory_bytes=400 * MIB)) == "all of it"


def test_time_is_limited_and_nobody_is_left(place):
    with pytest.raises(WorkerTimeoutError, match="longer than 5 s"):
        isolated(jobs.hang, place, limits=WorkerLimits(seconds=5))
    assert nobody_lives(family(place))
    assert (place / "cleaned").exists()


def test_silence_is_limited_and_nobody_is_left(place):
    with pytest.raises(WorkerTimeoutError, match="no progress for 5 s"):
        isolated(jobs.hang, place, limits=WorkerLimits(stall_seconds=5))
    assert nobody_lives(family(place))


def test_a_worker_deaf_to_sigterm_is_killed(place, monkeypatch):
    monkeypatch.setattr(worker, "_GRACE", 0.2)
    with pytest.raises(KeyboardInterrupt):
        isolated(jobs.hang, place, deaf=True, on_progress=interrupt)
    assert nobody_lives(family(place))
    assert not (place / "cleaned").exists()


def test_a_frozen_worker_is_killed(monkeypatch):
    monkeypatch.setattr(worker, "_GRACE", 0.2)
    with pytest.raises(WorkerTimeoutError):
        isolated(jobs.freeze, limits=WorkerLimits(seconds=2))


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_interruption_stops_the_worker_after_its_clean_up(place):
    with pytest.raises(KeyboardInterrupt):
        isolated(jobs.hang, place, on_progress=interrupt)
    assert nobody_lives(family(place))
    assert (place / "cleaned").exists()


def test_a_failing_callback_stops_the_worker(place):
    with pytest.raises(ZeroDivisionError):
        isolated(jobs.hang, place, on_progress=lambda *_: 1 / 0)
    assert nobody_lives(family(place))


def test_processes_left_behind_by_a_success_end_too(place):
    pid = isolated(jobs.leave_a_process, place)
    assert nobody_lives([pid])


def test_progress_restarts_the_stall_clock(clock, tmp_path):
    def heard(text, _fraction):
        clock.now += 10
        (tmp_path / text).touch()

    limits = WorkerLimits(stall_seconds=15)
    assert isolated(jobs.in_lockstep, tmp_path, 5, limits=limits, on_progress=heard) == "done"
    assert clock.now == 50


def test_progress_does_not_restart_the_time_limit(clock, tmp_path):
    def heard(text, _fraction):
        clock.now += 10
        (tmp_path / text).touch()

    with pytest.raises(WorkerTimeoutError, match="longer than 25 s"):
        isolated(jobs.in_lockstep, tmp_path, 5, limits=WorkerLimits(seconds=25), on_progress=heard)


def test_progress_arrives_as_it_happens_with_its_fraction(tmp_path):
    heard = []

    def on_progress(text, fraction):
        heard.append((text, fraction))
        (tmp_path / text).touch()

    isolated(jobs.in_lockstep, tmp_path, 4, on_progress=on_progress)
    assert heard == [("step 0", 0.0), ("step 1", 0.25), ("step 2", 0.5), ("step 3", 0.75)]


def test_thousands_of_messages_keep_their_order():
    heard = []
    isolated(jobs.count_up, 5000, on_progress=lambda text, fraction: heard.append((text, fraction)))
    assert heard == [(str(step), None) for step in range(5000)]


def test_reports_are_dropped_where_nobody_listens():
    assert isolated(jobs.count_up, 3) is None
    assert worker.report("outside of a worker") is None


def test_a_hundred_megabytes_go_in_and_come_out():
    data = bytes(range(256)) * 400_000
    assert isolated(jobs.extended, data) == data + b"end"


def test_a_function_of_the_main_script_is_refused():
    done = script("def f(): pass\nisolated(f)", stderr=subprocess.PIPE)
    _, stderr = done.communicate(timeout=300)
    assert done.returncode == 1
    assert "UsageError: a worker cannot import a function of the main script" in stderr


def test_the_refusal_is_typed(monkeypatch):
    monkeypatch.setattr(jobs.add, "__module__", "__main__")
    with pytest.raises(UsageError, match="main script") as caught:
        isolated(jobs.add, 1)
    assert "module" in caught.value.hint


@pytest.mark.parametrize("code", ["", "import io, sys; sys.stderr = io.StringIO()\n"])
def test_nothing_of_the_worker_reaches_the_parent_s_stdout(code):
    parent = script(
        code + "isolated(jobs.shout); print('{}')",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = parent.communicate(timeout=300)
    assert stdout == "{}\n"
    assert sorted(stderr.split()) == ["inherited", "printed", "written"]


def test_a_parent_without_stderr_can_still_work():
    parent = script("import sys; sys.stderr = None; isolated(jobs.shout); print('{}')", stdout=subprocess.PIPE)
    assert parent.communicate(timeout=300)[0] == "{}\n"


def test_a_worker_dumps_no_core():
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("core dumps are off here, whatever a worker does")
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        assert isolated(jobs.surroundings)["core"] == (0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_the_worker_s_surroundings(monkeypatch):
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    found = isolated(jobs.surroundings)
    del found["core"]
    assert found == {
        "stdin": "",
        "child_stdin": b"",
        "telemetry": "1",
        "config_from_model": None,
    }


def test_the_parent_s_stdin_stays_the_parent_s():
    parent = script(
        "found = isolated(jobs.surroundings)['stdin']; print([found, input()])",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.communicate("mine\n", timeout=300)[0] == "['', 'mine']\n"


def test_the_worker_dies_with_a_killed_parent(place):
    parent = script(f"import pathlib; isolated(jobs.hang, pathlib.Path({str(place)!r}))")
    pids = family(place)
    assert not any(map(is_gone, pids))
    parent.kill()
    parent.wait()
    assert nobody_lives(pids)
    assert (place / "cleaned").exists()


def test_a_deaf_worker_dies_with_a_killed_parent_too(place):
    parent = script(f"import pathlib; isolated(jobs.hang, pathlib.Path({str(place)!r}), deaf=True)")
    pids = family(place)
    parent.kill()
    parent.wait()
    assert nobody_lives(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_is_an_interruption_that_cleans_up(place, number):
    code = f"""
import pathlib, signal
try:
    isolated(jobs.hang, pathlib.Path({str(place)!r}))
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    parent = script(code, stdout=subprocess.PIPE)
    pids = family(place)
    parent.send_signal(number)
    assert parent.communicate(timeout=300)[0] == "interrupted True\n"
    assert nobody_lives(pids)
    assert (place / "cleaned").exists()


@pytest.fixture
def killer(tmp_path):
    """The legal model that kills ORT."""
    return builders.save(builders.layer_norm_empty_bias(), tmp_path / "killer.onnx")


def test_the_model_that_kills_ort_kills_only_the_worker(killer):
    try:
        answer = isolated(jobs.ort_alone, killer)
    except WorkerCrashError as error:
        answer = str(error)
    assert answer in {"loaded", "the worker process died with SIGSEGV"}


def test_the_model_that_kills_ort_runs_in_our_sessions(killer):
    x = builders.samples(2, 8)
    y = isolated(jobs.open_and_run, killer, {"x": x})["y"]
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, want, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["optimize", "-o", "out.onnx", "--allow-no-effect"], ["bench", "--seconds", "0.5", "--seed", "0"]],
    ids=lambda a: a[0],
)
def test_no_verb_dies_of_the_model_that_kills_ort(killer, arguments):
    verb, *options = arguments
    command = [sys.executable, "-m", "onnxcomp", verb, str(killer), *options, "--json"]
    done = subprocess.run(command, cwd=killer.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in {0, 7}, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["schema"].startswith("onnxcomp/")
