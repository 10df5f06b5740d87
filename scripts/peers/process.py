"""One command with a time limit: what it printed, and what it cost."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

#: runs a command and prints the CPU time of all its processes and the peak resident memory of the largest; a small
#: process of its own, because Linux counts what the parent held when it forked
_WATCH = """
import resource, subprocess, sys
try:
    code = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, timeout=float(sys.argv[1])).returncode
except subprocess.TimeoutExpired:
    code = 124
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"\\n{code} {used.ru_utime + used.ru_stime} {used.ru_maxrss}")
"""


@dataclasses.dataclass(frozen=True)
class Ran:
    """What became of a command.

    Attributes:
        code: its exit code; 124 where it took too long and was killed.
        text: stdout and stderr.
        seconds: wall time, with starting Python.
        cpu_seconds: CPU time of all its processes.
        peak_bytes: largest resident memory of any of its processes.
    """

    code: int
    text: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def last_line(self) -> str:
        """The last line that is no hint: where Python and our command line name the error."""
        lines = [line.strip() for line in self.text.splitlines()]
        return next((line for line in reversed(lines) if line and not line.startswith("hint:")), "no output")


def run(command: Sequence[Any], timeout: float) -> Ran:
    """Run a command to its end, or for `timeout` seconds."""
    start = time.monotonic()
    watched = [sys.executable, "-I", "-S", "-c", _WATCH, str(timeout), *map(str, command)]
    # some peers report their use over the network, but not from CI
    environment = {**os.environ, "CI": "true"}
    done = subprocess.run(watched, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, env=environment)
    seconds = time.monotonic() - start
    text, last = done.stdout.decode(errors="replace").rstrip().rsplit("\n", 1)
    code, cpu, peak = last.split()
    text = f"no result after {timeout:g} s" if int(code) == 124 else text
    return Ran(int(code), text, seconds, float(cpu), int(peak) * 1024)
