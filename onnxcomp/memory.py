"""How much memory this process holds.

RSS counts shared pages in full in every process, so that sharing looks like no saving; PSS divides
them among those who share, USS leaves them out.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from onnxcomp import devices


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes held by one process; None where the system does not tell.

    Attributes:
        pss_bytes: private pages, and the process's share of the common ones.
        uss_bytes: private pages only: what ends with the process.
        anonymous_bytes: the part of PSS that no file stands behind.
        file_bytes: the part of PSS that is mapped from files.
        peak_bytes: most resident memory (RSS) so far (VmHWM).
        device_bytes: on GPUs, by NVML; None also for a process that does not use CUDA.
    """

    pss_bytes: int | None = None
    uss_bytes: int | None = None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    peak_bytes: int | None = None
    device_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def measure(process: Path = Path("/proc/self")) -> Memory:
    """Memory of the process whose folder in `/proc` this is."""
    rollup, status = _kilobytes(process / "smaps_rollup"), _kilobytes(process / "status")
    private = [rollup.get(f"Private_{kind}") for kind in ("Clean", "Dirty", "Hugetlb")]
    uss = None if private[0] is None or private[1] is None else sum(p or 0 for p in private)
    return Memory(
        pss_bytes=rollup.get("Pss"),
        uss_bytes=uss,
        anonymous_bytes=rollup.get("Pss_Anon"),
        file_bytes=rollup.get("Pss_File"),
        peak_bytes=status.get("VmHWM"),
        device_bytes=_on_devices(process),
    )


def _on_devices(process: Path) -> int | None:
    """NVML is asked only of a process that uses CUDA: loading it takes memory that would count."""
    if not devices.uses_cuda(process):
        return None
    return devices.memory(os.getpid() if process.name == "self" else int(process.name))


def reset_peak() -> None:
    """Let `peak_bytes` of this process count from now on; where the system cannot, it counts from the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Give free memory of this process's heap back to the system; nothing happens where the C library cannot.

    Opening a model takes and frees buffers of megabytes, and glibc keeps what it was once given: 7 to 38 MB of a
    worker, more than all its own data.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(path: Path) -> dict[str, int]:
    try:
        text = path.read_text()
    except OSError:
        return {}
    return {key: int(value) << 10 for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
