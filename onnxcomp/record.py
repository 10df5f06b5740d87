"""Records: what happened between an input file and an output file, for people and for scripts."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from onnxcomp import __version__, runtime
from onnxcomp.evaluate.fidelity import Fidelity
from onnxcomp.evaluate.score import Score
from onnxcomp.model import ModelFile
from onnxcomp.passes.base import Note
from onnxcomp.speed import Speed
from onnxcomp.stages import Stage


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        peak_rss_bytes: the process's peak resident memory while the pass ran; None where unknown.
        stage: what the model was worth then; None where it was not judged.
    """

    name: str
    options: Mapping[str, Any]
    seconds: float
    peak_rss_bytes: int | None
    effect: Mapping[str, Any]
    notes: tuple[Note, ...]
    stage: Stage | None = None

    def to_json(self) -> dict[str, Any]:
        """One entry of `passes`."""
        stage = dict.fromkeys(("bytes", "score", "speed")) if self.stage is None else self.stage.to_json()
        return {
            "name": self.name,
            "options": dict(self.options),
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "effect": dict(self.effect),
            "notes": [note.to_json() for note in self.notes],
            **stage,
        }


@dataclasses.dataclass(frozen=True)
class Record:
    """What happened between an input file and an output file.

    Attributes:
        fidelity: candidate against reference on samples that did not calibrate; None without data.
        equivalence: for exact and near passes, largest relative difference of the outputs; None if not run.
        speed: candidate against reference; None where it was not asked for.
        score: of the input, where each pass was judged; None where it was not asked for.
        data: where samples came from, and how many calibrated and judged.
    """

    input: ModelFile
    output: ModelFile
    passes: tuple[PassRecord, ...]
    fidelity: Fidelity | None
    equivalence: float | None
    speed: Speed | None
    data: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    score: Score | None = None

    @property
    def size_ratio(self) -> float:
        """Candidate bytes / reference bytes."""
        return self.output.bytes / self.input.bytes

    def to_json(self) -> dict[str, Any]:
        """The keys that every pass verb prints."""
        return {
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "size_ratio": self.size_ratio,
            "passes": [p.to_json() for p in self.passes],
            "fidelity": None if self.fidelity is None else self.fidelity.to_json(),
            "equivalence": self.equivalence,
            "speed": None if self.speed is None else self.speed.to_json(),
            "score": None if self.score is None else self.score.to_json(),
            "data": None if self.data is None else dict(self.data),
            "warnings": list(self.warnings),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Versions of what shaped a result: onnxcomp, its libraries, Python, and the CPU's int8 features."""
    names = ("numpy", "onnx", "onnx-ir", "onnxscript")
    found = {name: metadata.version(name) for name in names}
    for distribution in runtime.ort_distributions():
        name, version = distribution.split(" ")
        found[name] = version
    found["python"] = platform.python_version()
    found["cpu"] = " ".join(sorted(runtime.cpu_features()))
    return {"onnxcomp": __version__, **found}
