"""`scripts/gpu_check` on a host without a GPU: it says so; its checks are rehearsed on the CPU, and can fail."""

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader

import numpy as np
import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts/gpu_check"


@pytest.fixture(scope="module")
def script():
    loader = SourceFileLoader("gpu_check", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
    path = list(sys.path)
    loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.fixture
def checks(script):
    from gpu_checks import checks

    return checks


def ran(script, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    code = script.main()
    return code, capsys.readouterr().out


def test_without_a_device_it_is_skipped(script, checks, monkeypatch, capsys):
    monkeypatch.setattr(checks, "device_is_there", lambda: False)
    assert ran(script, monkeypatch, capsys) == (0, "skipped: no CUDA device\n")
    code, out = ran(script, monkeypatch, capsys, "--json")
    assert (code, json.loads(out)["skipped"]) == (0, "no CUDA device")


def test_it_runs_as_a_command():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "--rehearse" in done.stdout


def test_checks_are_rehearsed_on_the_cpu(script, monkeypatch, capsys):
    names = ["fidelity", "same_outputs_when_bound", "placement", "quantized", "refusals", "cuda_graph", "given"]
    code, out = ran(script, monkeypatch, capsys, "--rehearse", "--json", "--seconds", "0.2", "--only", *names)
    found = json.loads(out)
    status = {one["name"]: one["status"] for one in found["checks"]}
    assert code == 0, found
    assert status == dict.fromkeys(names[:4], "passed") | dict.fromkeys(names[4:], "skipped")
    assert found["counts"] == {"passed": 4, "failed": 0, "skipped": 3}
    assert {one["said"] for one in found["checks"] if one["status"] == "skipped"} == {"only on CUDA", "no models named"}


def test_a_check_that_fails_is_told_and_the_others_run(script, checks, monkeypatch, capsys):
    def wrong(stage):
        raise AssertionError("outputs differ")

    def fine(stage):
        return "well"

    monkeypatch.setattr(checks, "CHECKS", (wrong, fine))
    code, out = ran(script, monkeypatch, capsys, "--rehearse")
    assert code == 1
    assert out.splitlines()[0].startswith("failed   wrong")
    assert "outputs differ (test_gpu_check.py:" in out
    assert out.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"


def test_outputs_that_differ_fail_a_check(checks):
    wanted = np.array([1.0, -4.0])
    assert checks._near(wanted + 2e-5, wanted, 1e-4) == pytest.approx(5e-6)
    with pytest.raises(AssertionError, match=r"differ by 2\.5e-01"):
        checks._near([1.0, -3.0], wanted, 1e-4)


def test_only_a_typed_refusal_counts(checks):
    from onnxcomp.errors import InvalidModelError, ProviderError

    def refuse(error):
        raise error

    checks._refused(lambda: refuse(ProviderError("no such device")))
    with pytest.raises(AssertionError, match="refused as InvalidModelError"):
        checks._refused(lambda: refuse(InvalidModelError("bad")))
    with pytest.raises(AssertionError, match="not refused"):
        checks._refused(lambda: None)


@pytest.mark.gpu
def test_all_of_it_on_a_gpu():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    if "skipped: no CUDA device" in done.stdout:
        pytest.skip("no CUDA device")
    assert done.returncode == 0, done.stdout
