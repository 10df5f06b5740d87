"""The doctor calls this environment well, and names what is wrong in a broken one."""

from __future__ import annotations

import dataclasses
import json
import platform
import types

import numpy as np
import pytest

from onnxcomp import devices, doctor, runtime
from onnxcomp.errors import ProviderError
from onnxcomp.settings import libraries


def finding(name):
    (found,) = [f for f in doctor.examine().findings if f.name == name]
    return found


@pytest.fixture
def distributions(monkeypatch):
    return lambda *names: monkeypatch.setattr(runtime, "ort_distributions", lambda: names)


def test_this_environment_is_well():
    found = doctor.examine()
    assert [f for f in found.findings if not f.ok and f.name != "room"] == []
    assert found.providers["cpu"] == "works"
    assert found.packages["onnxcomp"] == doctor.metadata.version("onnxcomp")
    assert platform.python_version() in finding("python").text
    assert finding("provider cpu").text == "works"


def test_packages_that_are_not_there_are_said_to_be_missing(monkeypatch):
    def version(name):
        if name == "torch":
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    packages = doctor.examine().packages
    assert packages["torch"] == "not installed"
    assert packages["onnx"] == "1.0"


def test_two_distributions_are_wrong(distributions):
    distributions("onnxruntime 1.32.0", "onnxruntime-gpu 1.31.1")
    found = finding("onnxruntime")
    assert not found.ok
    assert "onnxruntime 1.32.0, onnxruntime-gpu 1.31.1" in found.text
    assert "uninstall all" in found.hint
    assert not doctor.examine().ok


def test_no_distribution_is_wrong_too(distributions):
    distributions()
    found = finding("onnxruntime")
    assert not found.ok
    assert "no installed distribution" in found.text
    assert "onnxcomp[cpu]" in found.hint


def test_one_distribution_is_named(distributions):
    distributions("onnxruntime-gpu 1.31.1")
    assert finding("onnxruntime") == doctor.Finding("onnxruntime", True, "onnxruntime-gpu 1.31.1")


@pytest.fixture
def with_cuda(monkeypatch):
    """Pretend that the build has CUDA; sessions on it are made by `opened`."""
    real = runtime.open_session

    def pretend(opened):
        monkeypatch.setattr(runtime, "available_providers", lambda: ("cpu", "cuda"))
        monkeypatch.setattr(
            runtime,
            "open_session",
            lambda path, *, provider: opened() if provider == "cuda" else real(path, provider=provider),
        )

    return pretend


def test_a_provider_that_fails_is_a_finding(with_cuda):
    def fail():
        raise ProviderError("no driver", where="cuda")

    with_cuda(fail)
    found = doctor.examine()
    assert found.providers == {"cpu": "works", "cuda": "no driver (cuda)"}
    assert not found.ok
    assert finding("provider cuda").hint == "check the driver (nvidia-smi) and the devices"


def test_a_library_that_is_missing_is_named_in_the_loaders_words(with_cuda, monkeypatch, tmp_path):
    """A library that does not load, as ORT's without CUDA: the real loader, and its own words."""

    def fail():
        raise ProviderError("ORT did not use CUDAExecutionProvider, it fell back to CPUExecutionProvider")

    with_cuda(fail)
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    real = libraries.missing
    monkeypatch.setattr(libraries, "missing", lambda provider: real(provider, tmp_path))
    monkeypatch.setattr(libraries, "ort_cuda", lambda: "13.0")
    found = finding("provider cuda")
    assert not found.ok
    assert "in this build but does not work" in found.text
    assert "libonnxruntime_providers_cuda.so" in found.text
    assert "CUDA 13.0" in found.hint


def test_tensorrt_that_is_not_installed_is_no_fault(monkeypatch):
    monkeypatch.setattr(libraries, "missing", lambda provider: "libnvinfer.so.10: cannot open shared object file")
    found = doctor._provider("tensorrt", "cannot be used")
    assert found.ok
    assert "libnvinfer.so.10" in found.text


DEVICE = devices.Device(0, "NVIDIA H100", "GPU-0", 80 << 30, "580.65", "13.1")


@pytest.fixture
def gpu(monkeypatch):
    def pretend(*, found=(DEVICE,), note=None, ort="13.0", torch=None):
        monkeypatch.setattr(devices, "devices", lambda: devices.Devices(tuple(found), note))
        monkeypatch.setattr(libraries, "ort_cuda", lambda: ort)
        monkeypatch.setattr(libraries, "torch_cuda", lambda: torch)

    return pretend


def test_devices_are_listed(gpu):
    gpu()
    assert finding("gpus").text == "0: NVIDIA H100, 86 GB, driver 580.65, CUDA up to 13.1"
    gpu(found=(), note="nvidia-ml-py is not installed", ort=None)
    assert [f.name for f in doctor._gpus({"cpu": "works"})] == []
    assert doctor._gpus({"cuda": "no driver"})[0].text == "nvidia-ml-py is not installed"


def test_a_driver_that_is_too_old_is_wrong(gpu):
    gpu(found=(dataclasses.replace(DEVICE, cuda="12.8"),))
    found = finding("cuda driver")
    assert not found.ok
    assert "CUDA 12.8" in found.text
    assert "13.0" in found.text


@pytest.mark.parametrize(("torch", "cuda", "ok"), [("12.8", "no driver", False), ("12.8", "works", True)])
def test_two_cudas_are_named(gpu, torch, cuda, ok):
    gpu(torch=torch)
    (found,) = [f for f in doctor._gpus({"cuda": cuda}) if f.name == "cuda versions"]
    assert found.ok is ok
    assert "torch was built for CUDA 12.8, ONNX Runtime for CUDA 13.0" in found.text
    assert (found.hint is None) is ok


@pytest.mark.parametrize("torch", ["13.2", None])
def test_one_cuda_is_not_mentioned(gpu, torch):
    gpu(torch=torch)
    assert [f.name for f in doctor._gpus({"cuda": "works"})] == ["gpus"]


def test_a_provider_that_gives_wrong_results_is_a_finding(with_cuda):
    with_cuda(lambda: types.SimpleNamespace(run=lambda feeds: {"y": np.array([-1, 2], np.float32)}))
    assert not finding("provider cuda").ok
    assert finding("provider cuda").text == "gives wrong results"
    with_cuda(lambda: types.SimpleNamespace(run=lambda feeds: {"y": np.array([0, 2], np.float32)}))
    assert finding("provider cuda").ok


@pytest.mark.parametrize(("asked", "text"), [("1", "is off"), ("0", "is on"), (None, "is on")])
def test_telemetry_is_told_as_it_is(monkeypatch, asked, text):
    if asked is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    else:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", asked)
    assert text in finding("telemetry").text


@pytest.mark.parametrize(("flags", "seven"), [({"avx", "avx2"}, True), ({"avx", "avx512_vnni"}, False), (set(), False)])
def test_a_cpu_without_vnni_is_told_of_seven_bits(monkeypatch, flags, seven):
    monkeypatch.setattr(runtime, "cpu_features", lambda: frozenset(flags))
    found = finding("int8")
    assert ("7 bits" in found.text) is seven
    assert " ".join(sorted(flags)) in found.text
    assert ("unknown" in found.text) is (not flags)


@pytest.mark.parametrize(
    ("memory", "disk", "ok"), [(2 << 30, 2 << 30, True), (2 << 29, 2 << 30, False), (2 << 30, 7, False)]
)
def test_little_memory_or_disk_is_a_finding(monkeypatch, memory, disk, ok):
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=memory))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=disk))
    found = finding("room")
    assert found.ok is ok
    assert (found.hint is None) is ok


def test_the_json_holds_all_of_it():
    found = doctor.examine()
    document = json.loads(json.dumps(found.to_json()))
    assert document["ok"] is found.ok
    assert [f["name"] for f in document["findings"]] == [f.name for f in found.findings]
    assert document["providers"] == found.providers
    assert document["packages"] == found.packages
