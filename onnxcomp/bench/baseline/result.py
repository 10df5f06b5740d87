"""What a baseline says about a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxcomp.bench.baseline import stored, surroundings
from onnxcomp.bench.result import Benchmark, finite

Json = Mapping[str, Any]

VERDICTS = ("passed", "regression", "undecided")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row against its counterpart.

    Attributes:
        key: what both ran under, the model first.
        method: 'interleaved' (measured side by side, now) or 'stored' (indicative).
        found: see `stored.Found`.
        verdict: one of `VERDICTS`.
        reasons: why undecided.
        control: of the interleaved comparison: `{ratio, low, high, ok}`.
    """

    key: Json
    method: str
    found: stored.Found
    verdict: str
    reasons: tuple[str, ...] = ()
    control: Json | None = None

    def to_json(self) -> dict[str, Any]:
        """`{model, ..., method, indicative, what, speedup, sessions, verdict, reasons, aa}`."""
        speedup, counts = self.found.speedup, self.found.counts
        return {
            **self.key,
            "method": self.method,
            "indicative": self.method == "stored",
            "what": self.found.what,
            "speedup": None if speedup is None else speedup.to_json(),
            "sessions": None if counts is None else list(counts),
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "aa": self.control,
        }


@dataclasses.dataclass(frozen=True)
class Gate:
    """What a stored run says about this one.

    Attributes:
        path: of the stored run.
        tolerance: a slowdown that passes.
        differences: of machine, software and session options.
        rows: one per row that both have.
        missing: rows of the stored run that this one has not; they are not judged.
    """

    path: str
    tolerance: float
    differences: tuple[surroundings.Difference, ...]
    rows: tuple[Row, ...]
    missing: tuple[Json, ...]

    @property
    def verdict(self) -> str:
        """The worst of the rows; 'undecided' where there is none."""
        found = {row.verdict for row in self.rows}
        if "regression" in found:
            return "regression"
        return "passed" if found == {"passed"} else "undecided"

    def to_json(self) -> dict[str, Any]:
        """The object under `baseline`."""
        return {
            "path": self.path,
            "tolerance": self.tolerance,
            "verdict": self.verdict,
            "differences": [d.to_json() for d in self.differences],
            "rows": [row.to_json() for row in self.rows],
            "missing": [dict(key) for key in self.missing],
        }


@dataclasses.dataclass(frozen=True)
class Gated:
    """A benchmark and what its baseline says about it."""

    benchmark: Benchmark
    gate: Gate

    def to_json(self) -> dict[str, Any]:
        """The object of the benchmark, with `baseline`."""
        cleaned: dict[str, Any] = finite({"baseline": self.gate.to_json()})
        return {**self.benchmark.to_json(), **cleaned}
