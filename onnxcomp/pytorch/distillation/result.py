"""What a distillation gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch

from onnxcomp.evaluate.fidelity import Fidelity
from onnxcomp.model import ModelFile
from onnxcomp.passes.distill import Settings
from onnxcomp.pytorch.distillation.loop import Trained
from onnxcomp.record import versions


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A student that was trained and published.

    Attributes:
        input: the teacher; of a torch module, its class, and SHA-256 and bytes of its state dict.
        teacher: what it is, an ONNX file or a torch module.
        student: where the student came from: path, SHA-256, bytes.
        output: the file.
        settings: of the training.
        trained: the history, the best epoch.
        elements: (elements that trained, all float elements of the student).
        fidelity: output against teacher, in ONNX Runtime, on the samples that did not train; None where their
            outputs cannot be compared one by one.
        data: where samples came from, and how many trained and judged.
        seconds: wall time of the training.
        peak_bytes: most resident memory of this process; None where the system does not tell.
        warnings: what the user should know.
    """

    input: ModelFile
    teacher: Literal["onnx", "torch"]
    student: Mapping[str, Any]
    output: ModelFile
    settings: Settings
    trained: Trained
    elements: tuple[int, int]
    fidelity: Fidelity | None
    data: Mapping[str, Any]
    seconds: float
    peak_bytes: int | None
    warnings: tuple[str, ...]

    @property
    def size_ratio(self) -> float:
        """Student bytes / teacher bytes."""
        return self.output.bytes / self.input.bytes

    def to_json(self) -> dict[str, Any]:
        """The keys of `onnxcomp distill --json`."""
        step = {
            "name": "distill",
            "options": self.settings.to_json(),
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_bytes,
            "effect": effect(self.trained, self.elements),
            "notes": [],
        }
        return {
            "input": {**self.input.to_json(), "kind": self.teacher},
            "student": dict(self.student),
            "output": self.output.to_json(),
            "size_ratio": self.size_ratio,
            "passes": [step],
            "history": [dict(entry) for entry in self.trained.history],
            "resumed_from_step": self.trained.resumed,
            "fidelity": None if self.fidelity is None else self.fidelity.to_json(),
            "equivalence": None,
            "speed": None,
            "data": dict(self.data),
            "warnings": list(self.warnings),
            "versions": {**versions(), "torch": torch.__version__},
        }


def effect(trained: Trained, elements: tuple[int, int]) -> dict[str, Any]:
    """The `effect` of a training; `elements`: as in `Distilled`."""
    return {
        "trained_parameters": elements[0],
        "parameters": elements[1],
        "steps": trained.steps,
        "best_epoch": trained.best,
        "stopped_early": trained.stopped_early,
        "before": dict(trained.history[0]["validation"]),
        "after": dict(trained.history[trained.best]["validation"]),
    }
