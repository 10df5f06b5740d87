"""Samples that factors are not made from: these say what is really lost."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import DataError
from onnxcomp.evaluate.fidelity import compare_sessions
from onnxcomp.passes.base import Context

#: share of the samples that judges, and the fewest samples that are divided
_JUDGING = 0.25
_FEWEST = 8

#: samples of each part that whole models are run on
_SOME = 32

#: a relative error of the outputs that is worth a note: a tenth of their energy
_LARGE = 0.3

#: errors on the two parts that differ by this factor speak of too few samples
_APART = 1.5


@dataclasses.dataclass(frozen=True)
class Parts:
    """Samples that factors are made from, and those that judge; the same where there are too few to divide."""

    fitted: Batches
    judging: Batches

    @property
    def divided(self) -> bool:
        """Whether they are others."""
        return self.judging is not self.fitted

    @staticmethod
    def of(data: Batches, context: Context) -> Parts:
        """Three quarters and one; same data, same parts."""
        if data.samples >= _FEWEST:
            parts = data.split(1 - _JUDGING)
            if all(_some(part) for part in parts):  # a fixed batch may be larger
                return Parts(*parts)
        context.note(
            f"no samples held out of {data.samples}: what is lost on others than these is not known; "
            f"{_FEWEST} or more would say it"
        )
        return Parts(data, data)


def few(data: Batches, count: int) -> Batches:
    """The first samples; all of them where a fixed batch takes more."""
    taken = data.take(min(count, data.samples))
    return taken if _some(taken) else data


class Judge:
    """Compares a model with what it was when this was made."""

    def __init__(self, reference: ir.Model, parts: Parts, context: Context) -> None:
        self._parts, self._context = parts, context
        self._floats = [spec.name for spec in models.signature(reference).outputs if "float" in spec.dtype]
        self._reference = self._open(reference)

    def judge(self, model: ir.Model) -> dict[str, Any]:
        """For the record: relative errors of the outputs on both parts, the largest over the float outputs.

        A large one is noted.
        """
        session = self._open(model)
        fitted, held_out = (self._error(session, part) for part in (self._parts.fitted, self._parts.judging))
        divided = self._parts.divided
        if held_out > _LARGE:
            self._context.note(_said(fitted, held_out) if divided else f"outputs change by {_share(held_out)}")
        errors = {"fitted": fitted} | ({"held_out": held_out} if divided else {})
        return {
            "samples": {
                "fitted": self._parts.fitted.samples,
                "held_out": self._parts.judging.samples if divided else 0,
            },
            "output_error": {part: round(e, 6) if math.isfinite(e) else None for part, e in errors.items()},
        }

    def _error(self, session: runtime.Session, data: Batches) -> float:
        try:
            fidelity = compare_sessions(self._reference, session, few(data, _SOME))
        except DataError:  # sizes of outputs that depend on values, others here
            return math.inf
        found = [fidelity.outputs[name] for name in self._floats if name in fidelity.outputs]
        return max((10 ** (-one.sqnr_db / 20) if math.isfinite(one.max_abs) else math.inf for one in found), default=0)

    def _open(self, model: ir.Model) -> runtime.Session:
        path = models.write_to(model, self._context.workdir, "judged")
        try:
            return runtime.open_session(path, settings=runtime.frugal(path))
        finally:
            for file in self._context.workdir.glob("judged*"):
                with contextlib.suppress(OSError):  # mapped, where such a file cannot go
                    file.unlink()


def _said(fitted: float, held_out: float) -> str:
    more = "more samples would help" if held_out > _APART * fitted else "look at the accuracy, or keep more"
    return (
        f"on samples that the factors were not made from, outputs change by {_share(held_out)} "
        f"(on those that they were made from, {_share(fitted)}): {more}"
    )


def _share(error: float) -> str:
    return f"{error:.0%} of their size" if math.isfinite(error) else "more than their size"


def _some(data: Batches) -> bool:
    return any(True for _ in data)
