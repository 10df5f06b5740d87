"""The gate of an export: ONNX Runtime and torch agree, at the traced size and at others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.errors import AccuracyGateError, DataError, GateError, UnsupportedError
from onnxcomp.pytorch.capture import TORCH_ERRORS, Feeds, Subject, first_line
from onnxcomp.pytorch.specs import Input

#: sizes other than the traced one that must have been compared when an axis is dynamic
_FEWEST_OTHERS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs, and what torch makes of them.

    Attributes:
        sizes: of the dynamic axes.
        feeds: arrays by input name.
        expected: torch's outputs in order.
        inputs: 'seeded' or 'real'.
    """

    sizes: Mapping[str, int]
    feeds: Feeds
    expected: Sequence[np.ndarray]
    inputs: Literal["seeded", "real"]


@dataclasses.dataclass(frozen=True)
class Parity:
    """One comparison.

    Attributes:
        sizes: of the dynamic axes.
        max_rel_error: largest difference over the largest absolute output of torch.
        inputs: 'seeded' or 'real'.
    """

    sizes: Mapping[str, int]
    max_rel_error: float
    inputs: str = "seeded"

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"sizes": dict(self.sizes), "max_rel_error": self.max_rel_error, "inputs": self.inputs}


def check_axes(path: Path, inputs: Sequence[Input]) -> None:
    """Raise GateError where an axis that was asked to be dynamic came out frozen."""
    declared = {spec.name: spec.shape for spec in models.signature(models.load(path)).inputs}
    for one in inputs:
        shape = declared.get(one.name)
        for axis, dim in one.dims.items():
            if shape is None or isinstance(shape[axis], int):
                raise GateError(
                    f"axis {axis} ('{dim}') was frozen to {shape[axis] if shape else 'nothing'} by the export",
                    where=f"input {one.name}",
                    hint="the module fixes this size, in a reshape or a loop; make it depend on x.shape",
                )


def cases_of(subject: Subject, sizes: Sequence[Mapping[str, int]], real: Iterable[Feeds] = ()) -> list[Case]:
    """What torch computes at every size on seeded inputs, and on `real` ones.

    A static model is tried twice, with different values. Sizes that the module itself refuses are
    passed over, but three others than the traced must remain.

    Raises GateError: at a size that the module takes, the captured program gives a wrong answer or
    none; or too few sizes are left.
    """
    found: list[Case] = []
    refused = []
    cases = list(sizes) if len(sizes) > 1 else [sizes[0], sizes[0]]
    for seed, case in enumerate(cases):
        worker.report("running torch", seed / len(cases))
        feeds: Feeds = {one.name: one.make(case, seed) for one in subject.inputs}
        try:
            expected = subject.eager(feeds)
        except TORCH_ERRORS as error:
            if _specialized(error, case):
                raise GateError(
                    f"the program was captured for other sizes than {_show(case)}: {first_line(error)}",
                    hint="capture it again from a module that depends on x.shape, or with this axis fixed",
                ) from error
            if seed == 0:
                raise UnsupportedError(f"the module does not run at {_show(case)}: {first_line(error)}") from error
            refused.append(f"{_show(case)}: {first_line(error)}")
            continue
        _check_captured(subject, feeds, case)
        found.append(Case(case, feeds, expected, "seeded"))
    if len(sizes) > 1 and len(found) - 1 < _FEWEST_OTHERS:
        raise GateError(
            f"the model could be compared at {len(found) - 1} other sizes only; torch refused {'; '.join(refused)}",
            hint="name sizes that the module can take with --check-sizes",
        )
    for batch in real:
        size = {dim: batch[one.name].shape[axis] for one in subject.inputs for axis, dim in one.dims.items()}
        try:
            found.append(Case(size, batch, subject.eager(batch), "real"))
        except TORCH_ERRORS as error:
            raise DataError(f"torch does not run on the data: {first_line(error)}", where="--data") from error
    return found


def _specialized(error: BaseException, case: Mapping[str, int]) -> bool:
    """Whether a program's guard asks for one number: bounds and divisors are limits, a number is a baked-in size."""
    text = str(error)
    return "Guard failed" in text and "==" in text and "%" not in text and 1 not in case.values()


def _check_captured(subject: Subject, feeds: Feeds, case: Mapping[str, int]) -> None:
    """The captured program knows what it was specialized for; the ONNX file does not."""
    try:
        subject.captured(feeds)
    except TORCH_ERRORS as error:
        if 1 in case.values():
            return  # torch's guards exclude 1 by convention, whether it works or not
        raise GateError(
            f"the captured program does not hold at {_show(case)}: {first_line(error)}", hint=_HINT
        ) from error


def check_parity(path: Path, cases: Sequence[Case], tolerance: float) -> list[Parity]:
    """ONNX Runtime against what torch computed. Raises AccuracyGateError naming the worst output, size and error."""
    session = runtime.open_session(path, settings=runtime.frugal(path))
    names = [spec.name for spec in session.signature.outputs]
    done: list[Parity] = []
    for index, case in enumerate(cases):
        worker.report("comparing with torch", index / len(cases))
        try:
            got = list(session.run(case.feeds).values())
        except DataError as error:
            raise AccuracyGateError(
                f"the exported model does not run at {_show(case.sizes)}: {error.message}", where=path.name, hint=_HINT
            ) from error
        hint = _HINT if case.sizes != cases[0].sizes else _HINT_TRACED
        worst = _worst(names, case.expected, got, case.sizes, tolerance, hint=hint)
        done.append(Parity(case.sizes, worst, case.inputs))
    return done


_HINT = "a size is baked into the graph: Python code that depends on x.shape runs once, while tracing"

_HINT_TRACED = "does the module give the same outputs twice? Random parts and ones that train must be off in eval mode"


def _worst(
    names: Sequence[str],
    expected: Sequence[np.ndarray],
    got: Sequence[Any],
    sizes: Mapping[str, int],
    tolerance: float,
    *,
    hint: str,
) -> float:
    if len(expected) != len(got):
        raise AccuracyGateError(f"torch gives {len(expected)} outputs, the exported model {len(got)}")
    worst = 0.0
    for name, want, have in zip(names, expected, got, strict=True):
        if want.shape != have.shape:
            raise AccuracyGateError(
                f"shape {have.shape} instead of {want.shape} at {_show(sizes)}",
                where=f"output {name}",
                hint=hint,
            )
        error = _relative(want, have)
        if not error <= tolerance:
            raise AccuracyGateError(
                f"differs from torch by {error:.2g} of the largest value at {_show(sizes)}, {tolerance:g} is allowed",
                where=f"output {name}",
                hint=hint,
            )
        worst = max(worst, error)
    return worst


def _relative(want: np.ndarray, have: np.ndarray) -> float:
    if want.size == 0:
        return 0.0
    a, b = want.astype(np.float64), have.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = float(np.max(np.where(same, 0.0, np.abs(a - b))))
    largest = float(np.max(np.abs(np.where(np.isfinite(a), a, 0.0))))
    return difference / largest if largest else difference


def _show(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sizes.items()) or "the traced sizes"
