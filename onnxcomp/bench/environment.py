"""What was measured on: everything two runs must share before their numbers may be compared."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime as ort
import psutil

from onnxcomp import devices
from onnxcomp.runtime import cpu_features, ort_distributions

_PACKAGES = ("onnxcomp", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "psutil", "scipy")

#: variables that change what runs where, or how many threads do
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "KMP_AFFINITY",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
    "OMP_NUM_THREADS",
    "ORT_DISABLE_TELEMETRY",
)

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_TURBO_OFF = Path("/sys/devices/system/cpu/intel_pstate/no_turbo")
CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@dataclasses.dataclass(frozen=True)
class Cgroup:
    """The CPU limits of the control group this process is in.

    Attributes:
        quota_cores: CPU time per time allowed; None: no limit.
        throttled_periods: how often the limit stopped the group so far; None: not readable.
        throttled_ns: for how long.
    """

    quota_cores: float | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None


@dataclasses.dataclass(frozen=True)
class Environment:
    """The machine and the software; None where it cannot be read.

    Attributes:
        cpu: model name.
        cores, affinity: cores there are, and those this process may use.
        isa: CPU features that decide over kernels.
        governor: frequency governor of the first core.
        turbo: whether the clock may rise above its base.
        virtualized: whether a hypervisor shows.
        cgroup: CPU limits.
        memory_bytes: of the machine.
        kernel, python: versions.
        load_average: over 1, 5 and 15 minutes, before the benchmark.
        ort: version, build_info, distributions, providers, telemetry.
        packages: versions by distribution.
        variables: environment variables that matter and are set.
        gpus: the devices with their driver, or why none is known.
    """

    cpu: str | None
    cores: int | None
    affinity: int | None
    isa: tuple[str, ...]
    governor: str | None
    turbo: bool | None
    virtualized: bool
    cgroup: Cgroup
    memory_bytes: int
    kernel: str
    python: str
    load_average: tuple[float, float, float]
    ort: dict[str, Any]
    packages: dict[str, str]
    variables: dict[str, str]
    gpus: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields by name; plain types."""
        return {
            **dataclasses.asdict(self),
            "isa": list(self.isa),
            "load_average": list(self.load_average),
        }


def capture() -> Environment:
    """Read the environment of this process."""
    return Environment(
        cpu=_cpuinfo("model name") or platform.processor() or None,
        cores=psutil.cpu_count(),
        affinity=_affinity(),
        isa=tuple(sorted(cpu_features())),
        governor=_line(_GOVERNOR),
        turbo={"0": True, "1": False}.get(_line(_TURBO_OFF) or ""),
        virtualized="hypervisor" in (_cpuinfo("flags") or "").split(),
        cgroup=cgroup(),
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        python=platform.python_version(),
        load_average=os.getloadavg(),
        ort={
            "version": ort.__version__,
            "build_info": ort.get_build_info(),
            "cuda": getattr(ort, "cuda_version", "") or None,
            "distributions": list(ort_distributions()),
            "providers": list(ort.get_available_providers()),
            "telemetry": os.environ.get("ORT_DISABLE_TELEMETRY") != "1",
        },
        packages=_packages(),
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        gpus=devices.devices().to_json(),
    )


def usable_cores() -> int:
    """Cores that this process may use at the same time: by affinity, and by the limit of its group."""
    found = _affinity() or psutil.cpu_count() or 1
    quota = cgroup().quota_cores
    return max(found if quota is None else min(found, int(quota)), 1)


def _affinity() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def cgroup(root: Path = CGROUP, own: Path = OWN_CGROUP) -> Cgroup:
    """CPU quota and throttling of this process's group, in either version of control groups.

    The nearest group that has the files counts: inside of a container the own group is the root.
    """
    for folder in cgroup_folders(root, own):
        if (folder / "cpu.max").is_file():
            quota, _, period = (_line(folder / "cpu.max") or "max").partition(" ")
            counts = _counts(folder / "cpu.stat")
            stopped = counts.get("throttled_usec")
            return Cgroup(
                None if quota == "max" else int(quota) / int(period or 100_000),
                counts.get("nr_throttled"),
                None if stopped is None else stopped * 1000,
            )
        if (folder / "cpu.cfs_quota_us").is_file():
            amount = int(_line(folder / "cpu.cfs_quota_us") or -1)
            length = int(_line(folder / "cpu.cfs_period_us") or 100_000)
            counts = _counts(folder / "cpu.stat")
            return Cgroup(
                None if amount < 0 else amount / length,
                counts.get("nr_throttled"),
                counts.get("throttled_time"),
            )
    return Cgroup()


def cgroup_folders(root: Path, own: Path) -> list[Path]:
    """The folders of this process's control groups, the nearest first."""
    folders = []
    try:
        entries = own.read_text().splitlines()
    except OSError:
        entries = []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        folders += [base / path.lstrip("/"), base]
    return [*folders, root]


def _counts(path: Path) -> dict[str, int]:
    try:
        return {k: int(v) for k, v in re.findall(r"^(\w+) (\d+)$", path.read_text(), re.MULTILINE)}
    except OSError:
        return {}


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cpuinfo(key: str) -> str | None:
    match = re.search(rf"^{key}\s*:\s*(.*)$", _line(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return match[1] if match else None


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
