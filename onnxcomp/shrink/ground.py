"""What a search stands on: the model's kind, the parts of the samples, and what the input answers to them."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.bench.feeds import make_feeds
from onnxcomp.errors import DataError
from onnxcomp.evaluate.score import Score
from onnxcomp.shrink import judging
from onnxcomp.shrink.kind import Kind, kind_of
from onnxcomp.shrink.splits import Splits, divide
from onnxcomp.shrink.wanted import Wanted

#: share of the time that one training may take; a step costs about so many runs of the input per sample
_TRAINING = 0.3
_STEP = 2.0
_MOST_EPOCHS = 12


@dataclasses.dataclass(frozen=True)
class Ground:
    """Known before anything is tried.

    Attributes:
        source: the input.
        kind: what it is made of.
        file: {path, sha256, bytes}.
        splits: the parts.
        own, tested: what the input is worth on the samples that choose, and on those that judge.
        per_sample: seconds of a run of the input, by its samples.
        answers: part -> folder of what the input answers.
    """

    source: Path
    kind: Kind
    file: dict[str, Any]
    splits: Splits
    own: Score
    tested: Score
    per_sample: float
    answers: dict[str, Path]

    def epochs(self, study: Path, time_budget: float) -> int:
        """As many as a share of the time allows; kept, so that a resumed search asks for the same."""
        kept = study / "epochs"
        if not kept.exists():
            affordable = _TRAINING * time_budget / (self.splits.samples["calibration"] * self.per_sample * _STEP)
            kept.write_text(str(min(max(int(affordable), 1), _MOST_EPOCHS)))
        return int(kept.read_text())


def prepare(
    source: Path,
    data: Any,
    eval_data: Any,
    metric: str | None,
    *,
    study: Path,
    wish: Wanted,
    run: Callable[..., Any],
) -> Ground:
    """Look at the model, divide the samples, and let the input answer them; each in a worker.

    Args:
        source: the input.
        data: what calibrates, or all samples.
        eval_data: what chooses and judges; None: a part of `data`.
        metric: see `judging.record`.
        study: gets the parts and the answers.
        wish: the budget, which the samples must be able to show.
        run: calls a function in a worker.

    Raises DataError for too few samples.
    """
    kind, file = run(look, source)
    splits = run(divide, source, data, eval_data, study / "data")
    answers = {part: study / f"{part}-answers" for part in ("selection", "test")}
    began = time.monotonic()
    scores: dict[str, Score] = {}
    for part, folder in answers.items():
        shutil.rmtree(folder, ignore_errors=True)
        scores[part] = run(judging.record, source, splits.path(part), metric, folder)
        metric = scores[part].metric
        enough(scores[part], wish, part)
    runs = 2 * (splits.samples["selection"] + splits.samples["test"])
    per_sample = (time.monotonic() - began) / runs
    return Ground(source, kind, file, splits, scores["selection"], scores["test"], per_sample, answers)


def able(source: Path, data: Any, wish: Wanted) -> None:
    """Raises what the comparison at the end would raise, after all the work: a provider or a batch that cannot be."""
    session = runtime.open_session(source, provider=wish.provider)
    make_feeds(data, session.signature.inputs, batch=wish.batch)


def look(source: Path) -> tuple[Kind, dict[str, Any]]:
    """What the model is made of, and its file; that ORT loads it."""
    kind = kind_of(source)
    runtime.check_loads(source)
    file = models.fingerprint(source).to_json()
    return kind, {"path": str(source), "sha256": file["sha256"], "bytes": kind.bytes}


def enough(own: Score, wish: Wanted, what: str) -> None:
    """Raises DataError where not even the input itself would hold the budget."""
    assert own.drop is not None
    high = own.drop.high if own.higher_is_better else -own.drop.low
    if wish.within(0.0, high):
        return
    needed = f"about {math.ceil(own.samples * high / wish.max_drop):,} do" if wish.max_drop > 0 else "no number does"
    raise DataError(
        f"{own.samples:,} samples of the part '{what}' cannot show a drop of {own.metric} within {wish.max_drop:g}: "
        f"even without any difference up to {high:.3g} is possible; {needed}",
        where="--eval or --data",
        hint="give more samples, a larger --max-drop, or --gate mean",
    )
