"""NVIDIA's devices, as their driver describes them through NVML; nothing where there is none.

The library (`nvidia-ml-py`, module `pynvml`, in the extra `gpu`) is imported when it is first asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        index: the driver's number of it.
        name: of the product.
        uuid: which piece.
        memory_bytes: in all.
        driver: its version.
        cuda: the newest CUDA that the driver supports, as '13.0'.
    """

    index: int
    name: str
    uuid: str
    memory_bytes: int
    driver: str
    cuda: str


@dataclasses.dataclass(frozen=True)
class Devices:
    """All GPUs; `note` says why there are none."""

    devices: tuple[Device, ...]
    note: str | None

    def to_json(self) -> dict[str, Any]:
        """`{devices: [...], note}`."""
        return {"devices": [dataclasses.asdict(device) for device in self.devices], "note": self.note}


def devices() -> Devices:
    """What the driver knows; never raises."""
    with _nvml() as (nvml, note):
        if nvml is None:
            return Devices((), note)
        try:
            found = tuple(_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            return Devices((), f"NVML: {error}")
    return Devices(found, None if found else "the driver knows no device")


def used(index: int = 0) -> int | None:
    """Bytes of a GPU that all processes together use; None where NVML does not tell."""
    with _nvml() as (nvml, _):
        if nvml is None:
            return None
        try:
            return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index)).used)
        except nvml.NVMLError:
            return None


def memory(pid: int) -> int | None:
    """Bytes that a process holds on all GPUs; None where NVML does not tell.

    In a container the driver counts processes by the host's numbers, and does not know this one.
    """
    with _nvml() as (nvml, _):
        if nvml is None:
            return None
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            found = [p for handle in handles for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        except nvml.NVMLError:
            return None
    held = [process.usedGpuMemory for process in found if process.pid == pid]
    return None if not held or None in held else sum(held)


def uses_cuda(process: Path) -> bool:
    """Whether the process whose folder in `/proc` this is has loaded CUDA's driver."""
    try:
        return "/libcuda.so" in (process / "maps").read_text()
    except OSError:
        return False


@contextlib.contextmanager
def _nvml() -> Iterator[tuple[Any, str | None]]:
    """NVML, ready, or None and why."""
    nvml = _module()
    if nvml is None:
        yield None, "nvidia-ml-py is not installed: nothing is known of GPUs"
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        yield None, f"NVML: {error}"
        return
    try:
        yield nvml, None
    finally:
        nvml.nvmlShutdown()


@functools.cache
def _module() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    return Device(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


def _text(value: Any) -> str:
    """Older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
