"""GPUs as NVML tells of them, with an NVML that pretends: this machine may have none."""

import builtins
import os
import types

import pytest

from onnxcomp import devices, memory


class Fake:
    """`pynvml` with two devices."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, fails=(), processes=None, count=2):
        self.fails, self.count, self.open = fails, count, 0
        self.processes = processes or {}

    def __getattr__(self, name):
        answers = {
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: b"NVIDIA H100" if handle == 0 else "NVIDIA L4",
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=80 << 30, used=3 << 30),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
                types.SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.processes.get(handle, ())
            ],
            "nvmlSystemGetDriverVersion": lambda: "580.65.06",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
            "nvmlInit": lambda: self._count(1),
            "nvmlShutdown": lambda: self._count(-1),
        }

        def call(*arguments):
            if name in self.fails:
                raise self.NVMLError("Driver Not Loaded")
            return answers[name](*arguments)

        return call

    def _count(self, change):
        self.open += change


@pytest.fixture
def nvml(monkeypatch):
    def pretend(**facts):
        fake = Fake(**facts)
        monkeypatch.setattr(devices, "_module", lambda: fake)
        return fake

    return pretend


def test_every_device_is_described(nvml):
    fake = nvml()
    found = devices.devices().to_json()
    assert found["note"] is None
    assert [d["name"] for d in found["devices"]] == ["NVIDIA H100", "NVIDIA L4"]
    assert found["devices"][1] == {
        "index": 1, "name": "NVIDIA L4", "uuid": "GPU-1", "memory_bytes": 80 << 30,
        "driver": "580.65.06", "cuda": "13.1",
    }  # fmt: skip
    assert fake.open == 0


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_is_not_there_is_a_note(nvml, fails):
    fake = nvml(fails=(fails,))
    assert devices.devices() == devices.Devices((), "NVML: Driver Not Loaded")
    assert devices.memory(1) is None
    assert fake.open == 0


def test_no_device_is_a_note(nvml):
    nvml(count=0)
    assert "no device" in devices.devices().note


def test_without_the_library(monkeypatch):
    real = builtins.__import__

    def refuse(name, *more):
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *more)

    devices._module.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "nvidia-ml-py is not installed" in devices.devices().note
    assert devices.memory(os.getpid()) is None
    assert devices.used() is None
    devices._module.cache_clear()


def test_memory_of_a_process_is_summed_over_devices(nvml):
    nvml(processes={0: [(7, 100), (8, 50)], 1: [(7, 20)]})
    assert devices.memory(7) == 120
    assert devices.memory(8) == 50
    assert devices.memory(9) is None  # in a container: the host's numbers are others
    assert devices.used() == 3 << 30


def test_what_the_driver_may_not_tell_is_unknown(nvml):
    nvml(processes={0: [(7, None)]})
    assert devices.memory(7) is None
    nvml(fails=("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMemoryInfo"))
    assert devices.memory(7) is None
    assert devices.used() is None


@pytest.mark.parametrize(
    ("maps", "held"), [("7f00 r-xp /usr/lib/x86_64-linux-gnu/libcuda.so.580.65\n", 120), ("7f00 libcudart.so\n", None)]
)
def test_only_a_process_with_cuda_is_asked_for(nvml, tmp_path, maps, held):
    nvml(processes={0: [(4242, 120)]})
    process = tmp_path / "4242"
    process.mkdir()
    (process / "maps").write_text(maps)
    assert memory.measure(process).device_bytes == held


def test_this_process_uses_none():
    assert memory.measure().device_bytes is None
