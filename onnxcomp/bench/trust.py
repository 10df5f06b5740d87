"""How far the machine let us measure: a grade, and each reason with its cause and what to do."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from typing import Any

import psutil

from onnxcomp.bench.environment import Environment, cgroup

GRADES = ("good", "fair", "poor")


@dataclasses.dataclass(frozen=True)
class Reason:
    """One thing that disturbed the measurement.

    Attributes:
        name: from a closed set: steal, contended, switches, load, throttled, governor, ort.
        grade: what it makes of the whole: 'fair' or 'poor'.
        text: what was seen, with its number.
        hint: what to do.
    """

    name: str
    grade: str
    text: str
    hint: str

    def to_json(self) -> dict[str, str]:
        """The fields by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Trust:
    """The grade of a benchmark's surroundings.

    Attributes:
        grade: 'good', 'fair' or 'poor': the worst of the reasons.
        reasons: what speaks against 'good'.
    """

    grade: str
    reasons: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        """`{grade, reasons: [{name, grade, text, hint}]}`."""
        return {"grade": self.grade, "reasons": [r.to_json() for r in self.reasons]}


@dataclasses.dataclass(frozen=True)
class Counters:
    """What the system counts while we measure; two of them make a difference.

    Attributes:
        seconds: clock.
        steal_seconds: time the hypervisor gave to others, all cores; None: not readable.
        involuntary_switches: how often this process, or one that it started and that has ended, was put aside
            for another.
        throttled_ns: how long its group was stopped; None: not readable.
    """

    seconds: float
    steal_seconds: float | None
    involuntary_switches: int
    throttled_ns: int | None


def read_counters() -> Counters:
    """The counters now."""
    steal = getattr(psutil.cpu_times(), "steal", None)
    switches = sum(resource.getrusage(who).ru_nivcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Counters(time.monotonic(), steal, switches, cgroup().throttled_ns)


def judge(before: Counters, after: Counters, environment: Environment, contention: float | None) -> Trust:
    """Grade what happened between two readings.

    Args:
        before: counters at the start.
        after: counters at the end.
        environment: as captured before the start.
        contention: wall time / CPU time of runs on one thread; None where there are none.
    """
    seconds = max(after.seconds - before.seconds, 1e-9)
    cores = environment.cores or os.cpu_count() or 1
    found = [
        _contended(contention or 1.0),
        _switches((after.involuntary_switches - before.involuntary_switches) / seconds),
        _load(environment.load_average[0], cores),
        _governor(environment.governor),
        _distributions(environment.ort["distributions"]),
    ]
    if before.steal_seconds is not None and after.steal_seconds is not None:
        found.append(_steal((after.steal_seconds - before.steal_seconds) / seconds / cores))
    if before.throttled_ns is not None and after.throttled_ns is not None:
        found.append(_throttled((after.throttled_ns - before.throttled_ns) / 1e9 / seconds))
    reasons = tuple(r for r in found if r is not None)
    return Trust(max((r.grade for r in reasons), key=GRADES.index, default="good"), reasons)


def _grade(value: float, fair: float, poor: float) -> str | None:
    return "poor" if value > poor else "fair" if value > fair else None


def _reason(name: str, grade: str | None, text: str, hint: str) -> Reason | None:
    return None if grade is None else Reason(name, grade, text, hint)


def _contended(ratio: float) -> Reason | None:
    grade = _grade(ratio, 1.1, 1.5)
    return _reason(
        "contended",
        grade,
        f"a run took {ratio:.2f} times its CPU time: other work held the core",
        "stop other work on this machine, or pin the benchmark to a free core (taskset)",
    )


def _switches(per_second: float) -> Reason | None:
    grade = _grade(per_second, 20, 100)
    return _reason(
        "switches",
        grade,
        f"the system put this process aside {per_second:.0f} times a second for other work",
        "stop other work on this machine, or use fewer threads than there are free cores",
    )


def _load(load: float, cores: int) -> Reason | None:
    grade = _grade(load / cores, 1.0, 2.0)
    return _reason(
        "load",
        grade,
        f"the load average before the start was {load:.1f} on {cores} cores",
        "wait until the machine is idle",
    )


def _governor(governor: str | None) -> Reason | None:
    if governor in (None, "performance"):
        return None
    return Reason(
        "governor",
        "fair",
        f"the frequency governor is '{governor}': the clock rate follows the load",
        "cpupower frequency-set --governor performance",
    )


def _distributions(names: list[str]) -> Reason | None:
    if len(names) < 2:
        return None
    return Reason(
        "ort",
        "poor",
        f"several distributions overwrite each other's files: {', '.join(names)}",
        "uninstall all of them, then install one",
    )


def _steal(share: float) -> Reason | None:
    grade = _grade(share, 0.01, 0.05)
    return _reason(
        "steal",
        grade,
        f"the hypervisor gave {share:.1%} of the CPU time to other machines",
        "use a dedicated machine, or measure at another time",
    )


def _throttled(share: float) -> Reason | None:
    grade = _grade(share, 0.0, 0.05)
    return _reason(
        "throttled",
        grade,
        f"the CPU limit of this container stopped it for {share:.1%} of the time",
        "raise the CPU limit, or use fewer threads",
    )
