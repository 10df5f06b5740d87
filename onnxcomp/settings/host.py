"""What packs and tuned settings are tied to: a runtime, and a CPU, which decides over its kernels."""

from __future__ import annotations

import dataclasses
import functools
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: flags by which ONNX Runtime's math library chooses kernels, x86 and ARM, in Linux's spelling
_FLAGS = frozenset(
    {
        *("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
        *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "svebf16", "svei8mm", "sme", "sme2"),
    }
)


@dataclasses.dataclass(frozen=True)
class Host:
    """A runtime on a CPU.

    Attributes:
        onnxruntime: version.
        machine: as `uname -m` says.
        flags: the CPU's features that decide over kernels, sorted.
    """

    onnxruntime: str
    machine: str
    flags: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"onnxruntime": self.onnxruntime, "machine": self.machine, "flags": list(self.flags)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Host:
        """What `to_json` gave. Raises KeyError, TypeError."""
        return cls(str(values["onnxruntime"]), str(values["machine"]), tuple(map(str, values["flags"])))

    def differences(self, other: Host) -> list[str]:
        """What is not the same in the other, in words; empty where what one made serves the other."""
        found = []
        if self.onnxruntime != other.onnxruntime:
            found.append(f"onnxruntime {self.onnxruntime} here, {other.onnxruntime} there")
        if self.machine != other.machine:
            found.append(f"a {self.machine} here, a {other.machine} there")
        elif self.flags != other.flags:
            more, less = set(self.flags) - set(other.flags), set(other.flags) - set(self.flags)
            words = [
                f"only {place}: {' '.join(sorted(some))}" for place, some in (("here", more), ("there", less)) if some
            ]
            found.append("CPU features " + ", ".join(words))
        return found


def current() -> Host:
    """The runtime of this process, and its CPU."""
    import onnxruntime as ort

    return Host(ort.__version__, platform.machine(), tuple(sorted(cpu_flags() & _FLAGS)))


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Every feature flag of the CPU, in Linux's spelling; none where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found[0].split()) if found else frozenset()
