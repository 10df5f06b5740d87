"""`onnxcomp bench --scenario workers` end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import builders
import psutil
import pytest


@pytest.fixture
def model(tmp_path):
    return builders.save(builders.mlp(), tmp_path / "mlp.onnx")


def start(*arguments, **options):
    command = [sys.executable, "-m", "onnxcomp", "bench", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_the_command_prints_one_object(model):
    run = start(model, "--scenario", "workers", "--workers", 1, "--seconds", 1, "--json", "--seed", 4)
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, stderr
    found = json.loads(stdout)
    assert found["schema"] == "onnxcomp/bench/1"
    assert [(r["kind"], r["workers"]) for r in found["results"]] == [("processes", 1)]
    assert found["seed"] == 4


def test_workers_without_their_scenario_are_a_usage_error(model):
    for arguments in (["--workers", "2"], ["--scenario", "workers", "--workers", "0"]):
        run = start(model, *arguments)
        _, stderr = run.communicate(timeout=300)
        assert run.returncode == 2
        assert "workers" in stderr


def test_an_interruption_leaves_no_process_and_no_file(model, tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    run = start(model, "--scenario", "workers", "--workers", 3, "--seconds", 600, env=env)
    deadline = time.monotonic() + 120
    while len(family := psutil.Process(run.pid).children(recursive=True)) < 4:  # the verb's worker and three replicas
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode == 130
    gone = time.monotonic() + 30
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family):
        assert time.monotonic() < gone
        time.sleep(0.05)
    assert list(tmp_path.glob("onnxcomp-*")) == []
