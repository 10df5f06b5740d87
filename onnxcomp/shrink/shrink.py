"""`shrink`: from any model and real samples to the best model for this machine, within a budget."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxcomp import documents, runtime, worker
from onnxcomp import model as models
from onnxcomp.errors import OutputError, UnsupportedError, UsageError, from_os_error
from onnxcomp.evaluate.score import Score
from onnxcomp.shrink import final, judging
from onnxcomp.shrink.attempt import Task
from onnxcomp.shrink.kind import Kind, kind_of
from onnxcomp.shrink.ledger import Ledger
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.plan import choose, converse
from onnxcomp.shrink.result import Shrunk
from onnxcomp.shrink.search import Clock, Search
from onnxcomp.shrink.splits import Splits, divide
from onnxcomp.shrink.wanted import Wanted

#: share of the time that the last comparison gets, and bounds, in seconds
_COMPARING = 0.15
_SHORTEST, _LONGEST = 8.0, 90.0

#: share of the time that one training may take; a step costs about so many runs of the input per sample
_TRAINING = 0.3
_STEP = 2.0
_MOST_EPOCHS = 12

Progress = Callable[[str, float | None], None]


def shrink(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_drop: float,
    eval: str | os.PathLike[str] | None = None,  # noqa: A002 - the option's name
    metric: str | None = None,
    passes: Sequence[str] | None = None,
    train: bool = False,
    time_budget: float = 600.0,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    limits: worker.WorkerLimits | None = None,
    on_progress: Progress | None = None,
    on_outcome: Callable[[Outcome, float], None] | None = None,
    **wanted: Any,
) -> Shrunk:
    """Find the model that is best on this machine, and whose drop is within the budget.

    Samples are divided: some calibrate and train, some choose, and some are looked at only in the end; the drop that
    is reported is theirs. Each candidate is made in a worker of its own: a crash is a row with its reason. What is
    known is kept in `output/study`, and `resume` goes on from there. An interruption leaves the best so far, which
    neither the comparison nor the test samples have seen, and no `shrink.json`.

    Args:
        model: path of an `.onnx` file.
        data: samples; where they have labels, they are judged by `metric`, else by how near the outputs are.
        output: a folder; gets `best.onnx` with its record, `recipe.toml`, which `onnxcomp run` makes it of again with
            `output/study/data/calibration`, and `shrink.json`.
        max_drop: what the metric may lose, in its unit.
        eval: samples that choose and judge; None: a part of `data`.
        metric: as `evaluate` takes it, 'agreement' or 'cosine'; None: 'accuracy' with labels, else one of the others.
        passes: names of the passes that may be used; None: all.
        train: also cut deeper and let the input teach what is left (needs torch; takes most of the time).
        time_budget: seconds for all of it.
        seed: of the random orders of the comparison.
        resume: go on with what the folder holds.
        force: replace what an earlier run has left in the folder.
        limits: of each worker.
        on_progress: called with (text, fraction or None).
        on_outcome: called with (outcome, seconds left) for each candidate.
        **wanted: see `Wanted`.

    Raises UsageError, DataError (samples that do not fit, too few), UnsupportedError (no optuna, no torch),
    OutputError, and what loading the model raises.
    """
    start = time.monotonic()
    wish = Wanted(max_drop=max_drop, **wanted)
    if not time_budget > 0:
        raise UsageError("the time budget must be positive", where=f"time_budget={time_budget}")
    if train and importlib.util.find_spec("torch") is None:
        raise UnsupportedError("training needs torch", where="--train", hint="pip install 'onnxcomp[torch]'")
    source, folder = Path(model), Path(output)
    run = functools.partial(worker.isolated, limits=limits, on_progress=on_progress)
    kind, before = run(_look, source)
    study = _folder(folder, resume=resume, force=force)
    splits = run(divide, source, data, eval, study / "data")
    began = time.monotonic()
    own: Score = run(judging.record, source, splits.path("selection"), metric, _anew(study / "answers"))
    per_sample = (time.monotonic() - began) / 2 / splits.samples["selection"]
    about = {"model": before["sha256"], "data": splits.sources, "metric": own.metric, "wanted": wish.to_json(),
             "passes": None if passes is None else sorted(passes), "train": train}  # fmt: skip
    ledger = Ledger(study / "journal.log", about)
    task = Task(
        source, splits.path("calibration"), splits.path("selection"), study / "answers", own.metric, max_drop,
        wish.batch, study / "statistics",
    )  # fmt: skip
    comparing = min(max(_COMPARING * time_budget, _SHORTEST), _LONGEST)
    testing = (1 + final.FINALISTS) * per_sample * splits.samples["test"]
    clock = Clock(start + time_budget - comparing - testing)
    choice = choose(kind, smallest=wish.minimize == "size", provider=wish.provider, passes=passes)
    heard: dict[str, Outcome] = {}

    def listen(outcome: Outcome) -> None:
        heard[documents.to_text(outcome.candidate.to_json())] = outcome
        if on_outcome is not None:
            on_outcome(outcome, clock.left)

    search = Search(
        task, ledger, study / "candidates", clock,
        limits=limits or worker.WorkerLimits(), on_progress=on_progress, on_outcome=listen,
    )  # fmt: skip
    epochs = _epochs(study, per_sample, splits, time_budget) if train and choice.cuts else 0
    plan = converse(choice, better=wish.better, holds=wish.holds, epochs=epochs)
    try:
        complete = search.run(plan)
    except KeyboardInterrupt:
        _keep(folder, final.finalists(tuple(heard.values()), wish, kind.bytes)[:1])
        raise
    outcomes = tuple(heard.values())
    chosen = final.finalists(outcomes, wish, kind.bytes)
    timed: list[final.Timed] = []
    benchmark: dict[str, Any] | None = None
    if chosen:
        timed, benchmark = run(
            final.compare, source, chosen, wish, data=splits.path("selection"), seconds=comparing, seed=seed
        )
    order = final.ranked(timed, wish)
    baseline: Score = run(judging.record, source, splits.path("test"), own.metric, _anew(study / "test-answers"))

    def judge(path: Path, confidence: float) -> Score:
        return run(
            judging.judge, path, source, splits.path("test"), study / "test-answers", confidence=confidence
        )  # fmt: skip

    tested = final.test(order, wish, judge)
    best = tested[-1] if tested and tested[-1].met else None
    result = Shrunk(
        baseline={**before, "score": baseline.value.to_json()},
        wanted=wish,
        metric=own.metric,
        samples=splits.samples,
        best=best,
        best_path=None if best is None else str(folder / "best.onnx"),
        recipe_path=None if best is None else str(folder / "recipe.toml"),
        tested=tested,
        outcomes=outcomes,
        front=final.front(outcomes),
        left_out=choice.left_out,
        benchmark=benchmark,
        complete=complete,
        why_none="" if best else _why(outcomes, chosen, timed, tested, wish),
        undecided=best is None and not tested and any(one.verdict == "undecided" for one in timed),
        needed=None if best else _needed(tested, wish),
        seconds=time.monotonic() - start,
    )
    _write(folder, result)
    return result


def _look(source: Path) -> tuple[Kind, dict[str, Any]]:
    """What the model is made of, and its file; that ORT loads it."""
    kind = kind_of(source)
    runtime.check_loads(source)
    file = models.fingerprint(source).to_json()
    return kind, {"path": str(source), "sha256": file["sha256"], "bytes": kind.bytes}


def _folder(folder: Path, *, resume: bool, force: bool) -> Path:
    """The study's folder; raises OutputError for a folder that holds something, unless it is wanted so."""
    study = folder / "study"
    if folder.exists() and any(folder.iterdir()) and not resume:
        if not force:
            raise OutputError(
                "the folder exists and is not empty",
                where=folder,
                hint="--resume goes on with it, --force starts anew",
            )
        if not study.exists() and not (folder / "shrink.json").exists():
            raise OutputError("the folder holds something else, which --force does not replace", where=folder)
        shutil.rmtree(folder)
    try:
        study.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error
    return study


def _anew(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _epochs(study: Path, per_sample: float, splits: Splits, time_budget: float) -> int:
    """As many as a share of the time allows; kept, so that a resumed search asks for the same."""
    kept = study / "epochs"
    if not kept.exists():
        affordable = _TRAINING * time_budget / (splits.samples["calibration"] * per_sample * _STEP)
        kept.write_text(str(min(max(int(affordable), 1), _MOST_EPOCHS)))
    return int(kept.read_text())


def _why(
    outcomes: Sequence[Outcome],
    chosen: Sequence[Outcome],
    timed: Sequence[final.Timed],
    tested: Sequence[final.Tested],
    wish: Wanted,
) -> str:
    """Why nothing has won, in words."""
    if not outcomes:
        return "the time was over before the first candidate was made"
    if not any(one.made for one in outcomes):
        return "no candidate could be made; the reasons stand with the rejected ones"
    if not chosen:
        return "no candidate is smaller or faster than the input and within the budget on the samples that choose"
    if not tested:
        verdicts = ", ".join(f"{one.outcome.candidate.name}: {one.verdict}" for one in timed)
        return f"nothing is measurably faster than the input on this machine ({verdicts})"
    last = min(tested, key=lambda one: one.drop.high)
    return (
        f"none of {len(tested)} finalists holds the budget of {wish.max_drop:g} on the test samples; the nearest, "
        f"{last.timed.outcome.candidate.name}, loses {last.drop.value:.4g} [{last.drop.low:.4g}, {last.drop.high:.4g}]"
    )


def _needed(tested: Sequence[final.Tested], wish: Wanted) -> int | None:
    """Samples at which the nearest finalist's upper end, shrinking with the square root, would meet the budget."""
    near = [one for one in tested if one.drop.value < wish.max_drop]
    if not near:
        return None
    last = min(near, key=lambda one: one.drop.high)
    half = last.drop.high - last.drop.value
    return math.ceil(last.score.samples * (half / (wish.max_drop - last.drop.value)) ** 2)


def _write(folder: Path, result: Shrunk) -> None:
    """The winner with its record and recipe, and the result; the study stays."""
    _keep(folder, [] if result.best is None else [result.best.timed.outcome])
    document = {"schema": "onnxcomp/shrink/1", **result.to_json()}
    models.write_file(folder / "shrink.json", documents.to_text(document).encode(), force=True)


def _keep(folder: Path, best: Sequence[Outcome]) -> None:
    """Copy the files of the best, where there is one, in place of those of an earlier run."""
    for old in (*folder.glob("best.onnx*"), folder / "recipe.toml", folder / "shrink.json"):
        old.unlink(missing_ok=True)
    for one in best:
        assert one.path is not None
        made = Path(one.path).parent
        try:
            for file in (*made.glob("best.onnx*"), made / "recipe.toml"):
                shutil.copy2(file, folder / file.name)
        except OSError as error:
            raise from_os_error(error, folder) from error
