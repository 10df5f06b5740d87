"""What a candidate loses against the reference: by the user's metric, or by fidelity without labels."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.evaluate import compare_sessions
from onnxcomp.evaluate import evaluate as score
from onnxcomp.evaluate.recorded import Recorded

EvalData = str | Path | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How much worse a candidate is.

    Attributes:
        drop: positive is worse, in the metric's unit, with its 95 % interval where there is one.
    """

    drop: float
    low: float | None
    high: float | None

    def fits(self, max_drop: float) -> bool:
        """Whether the drop is allowed; NaN is not."""
        return self.drop <= max_drop


@dataclasses.dataclass(frozen=True)
class Judge:
    """Judges candidates on the same samples.

    Attributes:
        metric: the metric's name; without labels 'agreement' or 'relative_error'.
        data: where the samples come from.
        verdict: of the model at a path.
    """

    metric: str
    data: Mapping[str, Any]
    verdict: Callable[[Path], Verdict]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return int(self.data["samples"])


def make_judge(reference: Path, data: EvalData, metric: str, *, batch_size: int, folder: Path) -> Judge:
    """By `metric` against labels; without labels by the share of samples whose class stays the same, or,
    where no output holds class scores, by the relative error of the worst output.

    Args:
        reference: path of the float model.
        data: real samples.
        metric: as `evaluate` takes it; plays no part without labels.
        batch_size: samples per run where the model leaves it open.
        folder: private, for the reference's outputs.

    Raises DataError for random data and samples that do not fit.
    """
    inputs = _open(reference).signature.inputs
    batches = Batches(data, inputs, batch_size=batch_size)
    batches.require_real("accuracy")
    if batches.labelled:

        def by_metric(path: Path) -> Verdict:
            found = score(path, batches, metric=metric, against=reference, batch_size=batch_size)
            assert found.drop is not None
            drop = found.drop
            if found.higher_is_better:
                return Verdict(drop.value, drop.low, drop.high)
            return Verdict(-drop.value, -drop.high, -drop.low)

        return Judge(metric, batches.to_json(), by_metric)

    recorded = Recorded.record(reference, batches, folder)

    def by_fidelity(path: Path) -> Verdict:
        # a record is played once; each candidate gets one that starts anew, on the same files
        found = compare_sessions(copy.deepcopy(recorded), _open(path), batches)
        if found.agreement is not None:
            agreed = found.agreement
            return Verdict(1 - agreed.value, 1 - agreed.high, 1 - agreed.low)
        worst = max((10 ** (-output.sqnr_db / 20) for output in found.outputs.values()), default=math.nan)
        return Verdict(worst, None, None)

    scores = compare_sessions(copy.deepcopy(recorded), copy.deepcopy(recorded), batches).agreement
    return Judge("relative_error" if scores is None else "agreement", batches.to_json(), by_fidelity)


def _open(path: Path) -> runtime.Session:
    return runtime.open_session(path, settings=runtime.frugal(path))


def to_json(verdict: Verdict | None) -> dict[str, Any]:
    """`{drop, low, high}`; what is not known or not finite is null."""
    if verdict is None:
        return {"drop": None, "low": None, "high": None}
    values = dataclasses.asdict(verdict)
    return {key: v if v is not None and math.isfinite(v) else None for key, v in values.items()}
