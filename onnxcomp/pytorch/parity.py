"""The gate of an export: ONNX Runtime and torch agree, at the traced size and at others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxcomp import runtime, worker
from onnxcomp.errors import AccuracyGateError, DataError, GateError
from onnxcomp.pytorch.specs import Input

#: sizes other than the traced one that must have been compared when an axis is dynamic
_FEWEST_OTHERS = 2


@dataclasses.dataclass(frozen=True)
class Parity:
    """One comparison.

    Attributes:
        sizes: of the dynamic axes.
        max_rel_error: largest difference over the largest absolute output of torch.
    """

    sizes: Mapping[str, int]
    max_rel_error: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"sizes": dict(self.sizes), "max_rel_error": self.max_rel_error}


def check_axes(path: Path, inputs: Sequence[Input]) -> None:
    """Raise GateError where an axis that was asked to be dynamic came out frozen."""
    declared = {spec.name: spec.shape for spec in runtime.open_session(path).signature.inputs}
    for one in inputs:
        shape = declared.get(one.name)
        for axis, dim in one.dims.items():
            if shape is None or isinstance(shape[axis], int):
                raise GateError(
                    f"axis {axis} ('{dim}') was frozen to {shape[axis] if shape else 'nothing'} by the export",
                    where=f"input {one.name}",
                    hint="the module fixes this size, in a reshape or a loop; make it depend on x.shape",
                )


def check_parity(
    module: nn.Module,
    path: Path,
    inputs: Sequence[Input],
    sizes: Sequence[Mapping[str, int]],
    tolerance: float,
) -> list[Parity]:
    """Run both at every size; a static model twice, with different values.

    Sizes that torch itself refuses are passed over, but some other than the traced must remain.
    Raises AccuracyGateError naming the worst output, the sizes and the error.
    """
    session = runtime.open_session(path)
    names = [spec.name for spec in session.signature.outputs]
    done: list[Parity] = []
    cases = list(sizes) if len(sizes) > 1 else [sizes[0], sizes[0]]
    refused = []
    for seed, case in enumerate(cases):
        worker.report("comparing with torch", seed / len(cases))
        arrays = {one.name: one.make(case, seed) for one in inputs}
        try:
            expected = _torch(module, list(arrays.values()))
        except _TORCH_ERRORS as error:
            if seed == 0:
                raise
            refused.append(f"{_show(case)}: {str(error).splitlines()[0][:120]}")
            continue
        try:
            got = list(session.run(arrays).values())
        except DataError as error:
            raise AccuracyGateError(
                f"the exported model does not run at {_show(case)}: {error.message}",
                where=path.name,
                hint=_HINT,
            ) from error
        hint = _HINT if case != sizes[0] else _HINT_TRACED
        done.append(Parity(case, _worst(names, expected, got, case, tolerance, hint=hint)))
    if len(sizes) > 1 and len(done) - 1 < _FEWEST_OTHERS:
        raise GateError(
            f"the model could be compared at {len(done) - 1} other sizes only; torch refused {'; '.join(refused)}",
            hint="name sizes that the module can take with --check-sizes",
        )
    return done


def output_shapes(
    module: nn.Module, inputs: Sequence[Input], sizes: Sequence[Mapping[str, int]]
) -> list[list[tuple[int, ...]]]:
    """Shapes of torch's outputs at every size that torch takes."""
    found = []
    for case in sizes:
        try:
            found.append([out.shape for out in _torch(module, [one.make(case, 0) for one in inputs])])
        except _TORCH_ERRORS:
            continue  # `check_parity` says which sizes were refused
    return found


#: what a module raises at sizes that it cannot take
_TORCH_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)

_HINT = "a size is baked into the graph: Python code that depends on x.shape runs once, while tracing"

_HINT_TRACED = "does the module give the same outputs twice? Random parts and ones that train must be off in eval mode"


def _torch(module: nn.Module, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    with torch.inference_mode():
        output = module(*(torch.from_numpy(a) for a in arrays))
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


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
