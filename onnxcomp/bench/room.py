"""Would so many copies fit into memory? Told before they are made, not by a machine that swaps."""

from __future__ import annotations

from pathlib import Path

import psutil

from onnxcomp.bench.environment import CGROUP, OWN_CGROUP, cgroup_folders
from onnxcomp.errors import LimitError
from onnxcomp.memory import Memory

#: of what is free, as `onnxcomp.worker.WorkerLimits`
_SHARE = 0.8


def predict(first: Memory, count: int) -> int | None:
    """Bytes that `count` workers need at their peak, from the memory of one; None where that is unknown.

    What is mapped from files is held once.
    """
    if first.peak_bytes is None or first.file_bytes is None:
        return None
    private = max(first.peak_bytes - first.file_bytes, 0)
    return count * private + first.file_bytes


def check(first: Memory, count: int, *, name: str, free: int | None = None) -> None:
    """Raise LimitError where `count` workers like the first would need more than 80 % of what is free."""
    needed, free = predict(first, count), free_bytes() if free is None else free
    if needed is not None and needed > _SHARE * free:
        raise LimitError(
            f"{count} workers would take about {needed >> 20} MiB, of {free >> 20} MiB that are free; "
            f"one takes {(first.peak_bytes or 0) >> 20} MiB at its peak",
            where=name,
            hint="use fewer workers, threads on one session, or a machine with more memory",
        )


def free_bytes(root: Path = CGROUP, own: Path = OWN_CGROUP) -> int:
    """Memory that this process and its children may still take, within the limit of its container."""
    found = [int(psutil.virtual_memory().available)]
    for folder in cgroup_folders(root, own):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            found.append(max(limit - used, 0))
    return min(found)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # 'max': no limit
        return None
