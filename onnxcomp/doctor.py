"""What this environment can do: ONNX Runtime builds, providers that really work, CPU, versions."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import psutil

from onnxcomp import devices, runtime
from onnxcomp import model as models
from onnxcomp.errors import OnnxcompError
from onnxcomp.settings import libraries

_PACKAGES = (
    "onnxcomp",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "numpy",
    "scipy",
    "torch",
    "matplotlib",
    "jinja2",
    "scikit-learn",
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: what was looked at.
        ok: whether it is as it should be.
        text: what was found.
        hint: what to do where it is not.
    """

    name: str
    ok: bool
    text: str
    hint: str | None = None


@dataclasses.dataclass(frozen=True)
class Examination:
    """All checks; `providers` lists those on which a model really ran."""

    findings: Sequence[Finding]
    providers: Mapping[str, str]
    packages: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(f.ok for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp doctor --json`."""
        return {
            "ok": self.ok,
            "findings": [dataclasses.asdict(f) for f in self.findings],
            "providers": dict(self.providers),
            "packages": dict(self.packages),
        }


def examine() -> Examination:
    """Look at everything; nothing is raised, what is wrong is a finding."""
    providers = {name: _try(name) for name in runtime.available_providers()}
    findings = [
        _python(),
        _distributions(),
        *(_provider(name, state) for name, state in providers.items()),
        *_gpus(providers),
        _int8(),
        _telemetry(),
        _room(),
    ]
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return Examination(findings, providers, packages)


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _distributions() -> Finding:
    found = runtime.ort_distributions()
    if len(found) == 1:
        return Finding("onnxruntime", True, found[0])
    if not found:
        return Finding(
            "onnxruntime",
            False,
            "no installed distribution provides the package that is imported",
            "pip install 'onnxcomp[cpu]', or 'onnxcomp[gpu]' for CUDA; never both",
        )
    return Finding(
        "onnxruntime",
        False,
        f"{len(found)} distributions share the package onnxruntime: {', '.join(found)}",
        "they overwrite each other: uninstall all of them, then install onnxcomp[cpu] or onnxcomp[gpu]",
    )


def _provider(name: str, state: str) -> Finding:
    """What the trial said, and where it failed what the loader says of the provider's libraries."""
    if state == "works":
        return Finding(f"provider {name}", True, state)
    missing = libraries.missing(runtime.PROVIDERS[name])
    if missing is None:
        return Finding(f"provider {name}", False, state, "check the driver (nvidia-smi) and the devices")
    if name == "tensorrt":
        # every GPU build of ORT names it, TensorRT itself comes apart
        return Finding(f"provider {name}", True, f"does not work: {missing}; install TensorRT to use it")
    return Finding(
        f"provider {name}",
        False,
        f"is in this build but does not work: {missing}",
        f"install what is missing for CUDA {libraries.ort_cuda() or 'of this build'}: pip install 'onnxcomp[gpu]'",
    )


def _gpus(providers: Mapping[str, str]) -> list[Finding]:
    """The devices, where this ORT could use one or the driver knows one; and two CUDAs in one environment."""
    found, mine, torchs = devices.devices(), libraries.ort_cuda(), libraries.torch_cuda()
    findings = []
    if found.devices or "cuda" in providers:
        text = "; ".join(
            f"{d.index}: {d.name}, {d.memory_bytes / 1e9:.0f} GB, driver {d.driver}, CUDA up to {d.cuda}"
            for d in found.devices
        )
        findings.append(Finding("gpus", True, text or found.note or "none"))
    if mine is not None and found.devices and _major(found.devices[0].cuda) < _major(mine):
        text = f"the driver supports CUDA {found.devices[0].cuda}, ONNX Runtime was built for {mine}"
        findings.append(Finding("cuda driver", False, text, "install a newer driver, or an older onnxruntime-gpu"))
    if mine is not None and torchs is not None and _major(mine) != _major(torchs):
        text = f"torch was built for CUDA {torchs}, ONNX Runtime for CUDA {mine}: each needs libraries of its own"
        works = providers.get("cuda") == "works"
        hint = "install builds of one CUDA"
        findings.append(Finding("cuda versions", works, text, None if works else hint))
    return findings


def _major(version: str) -> int:
    return int(version.split(".", maxsplit=1)[0])


def _try(provider: str) -> str:
    """'works', or why a one-node model does not run on the provider."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2])
    node = ir.node("Relu", [x])
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape([2])
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 17}, name="probe")
    with tempfile.TemporaryDirectory() as folder:
        path = models.write_to(ir.Model(graph, ir_version=9), Path(folder), "probe")
        try:
            out = runtime.open_session(path, provider=provider).run({"x": np.array([-1, 2], np.float32)})
        except OnnxcompError as error:
            return str(error)
    return "works" if np.array_equal(out["y"], [0, 2]) else "gives wrong results"


def _int8() -> Finding:
    flags = " ".join(sorted(runtime.cpu_features())) or "unknown"
    if not runtime.saturates_int8():
        return Finding("int8", True, f"CPU features: {flags}")
    return Finding(
        "int8",
        True,
        f"CPU features: {flags}; no VNNI, so int8 weights are kept in 7 bits and gain less speed",
    )


def _telemetry() -> Finding:
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    return Finding(
        "telemetry",
        True,
        "ONNX Runtime's is off" if off else "ONNX Runtime's is on, as ORT_DISABLE_TELEMETRY asks",
    )


def _room() -> Finding:
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(tempfile.gettempdir()).free
    ok = memory > 1 << 30 and disk > 1 << 30
    text = f"{memory / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB in {tempfile.gettempdir()} free"
    return Finding("room", ok, text, None if ok else "free memory or disk, or set TMPDIR")
