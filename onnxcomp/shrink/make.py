"""`shrink`: from any model and real samples to the best model for this machine, within a budget."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp import documents, worker
from onnxcomp.errors import UnsupportedError, UsageError, nearest
from onnxcomp.evaluate.intervals import Interval
from onnxcomp.evaluate.score import Score
from onnxcomp.passes import CATALOGUE
from onnxcomp.shrink import final, judging, words
from onnxcomp.shrink.attempt import Task
from onnxcomp.shrink.folder import keep, study_in, write
from onnxcomp.shrink.ground import able, prepare
from onnxcomp.shrink.ledger import Ledger
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.plan import choose, converse
from onnxcomp.shrink.result import Shrunk
from onnxcomp.shrink.search import Clock, Search
from onnxcomp.shrink.settle import Settled, settle
from onnxcomp.shrink.shares import Shares, tunable
from onnxcomp.shrink.wanted import Wanted

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
    tune: bool = True,
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
        tune: also look for session settings, of the winner and of the input, and compare both at their best.
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
    _known(passes)
    run(able, source, data, wish)  # what can never be compared leaves no folder behind
    given = [source, *(Path(one) for one in (data, eval) if one is not None)]
    study = study_in(folder, resume=resume, force=force, inputs=given)
    ground = prepare(source, data, eval, metric, study=study, wish=wish, run=run)
    splits = ground.splits
    about = {
        "model": ground.file["sha256"],
        "data": splits.sources,
        "metric": ground.own.metric,
        "wanted": wish.to_json(),
        "passes": None if passes is None else sorted(passes),
        "train": train,
    }
    ledger = Ledger(study / "journal.log", about, files=study / "candidates")
    shares = Shares.of(
        time_budget, wish, tune=tune, testing=final.FINALISTS * ground.per_sample * splits.samples["test"]
    )
    clock = Clock(start + shares.searching)
    choice = choose(ground.kind, smallest=wish.minimize == "size", provider=wish.provider, passes=passes)
    heard: dict[str, Outcome] = {}

    def listen(outcome: Outcome) -> None:
        heard[documents.to_text(outcome.candidate.to_json())] = outcome
        if on_outcome is not None:
            on_outcome(outcome, clock.left)

    def judge(path: Path, confidence: float) -> Score:
        part = splits.path("test")
        found: Score = run(judging.judge, path, source, part, ground.answers["test"], confidence=confidence)
        return found

    answers, store = ground.answers["selection"], study / "statistics"
    search = Search(
        Task(source, splits, answers, ground.own.metric, max_drop, wish.batch, store),
        ledger,
        study / "candidates",
        clock,
        limits=limits or worker.WorkerLimits(),
        on_progress=on_progress,
        on_outcome=listen,
    )
    epochs = ground.epochs(study, time_budget) if train and choice.cuts else 0
    feeds = splits.path("selection")
    timed: list[final.Timed] = []
    benchmark: dict[str, Any] | None = None
    settled: Settled | None = None
    own_cost: Interval | None = None
    with _best_so_far(folder, heard, wish, ground.kind.bytes):
        complete = search.run(converse(choice, better=wish.better, holds=wish.holds, epochs=epochs))
        outcomes = tuple(heard.values())
        chosen = final.finalists(outcomes, wish, ground.kind.bytes)
        if chosen:
            timed, benchmark = run(final.compare, source, chosen, wish, data=feeds, seconds=shares.comparing, seed=seed)
        if chosen and wish.minimize == "cost":
            own_cost, timed = run(final.price, source, timed, wish, data=feeds, seconds=shares.settling, seed=seed)
        tested = final.test(final.ranked(timed, wish, own_cost), wish, judge)
        best = tested[-1] if tested and tested[-1].met else None
        if best is not None and tunable(wish, tune=tune):
            settled = run(settle, source, Path(best.path), wish, data=feeds, seconds=shares.settling, seed=seed)
    result = Shrunk(
        baseline={
            **ground.file,
            "score": ground.tested.value.to_json(),
            "cost": None if own_cost is None else own_cost.to_json(),
        },
        wanted=wish,
        metric=ground.own.metric,
        samples=splits.samples,
        best=best,
        folder=folder,
        settled=settled,
        tested=tested,
        outcomes=outcomes,
        front=final.front(outcomes),
        left_out=choice.left_out,
        benchmark=benchmark,
        complete=complete,
        why_none="" if best else words.why(outcomes, chosen, timed, tested, wish),
        undecided=best is None and not tested and any(one.verdict == "undecided" for one in timed),
        needed=None if best else words.needed(tested, wish),
        seconds=time.monotonic() - start,
    )
    write(folder, result)
    return result


@contextlib.contextmanager
def _best_so_far(folder: Path, heard: Mapping[str, Outcome], wish: Wanted, size: int) -> Iterator[None]:
    """What an interruption leaves."""
    try:
        yield
    except KeyboardInterrupt:
        keep(folder, final.finalists(tuple(heard.values()), wish, size)[:1])
        raise


def _known(passes: Sequence[str] | None) -> None:
    """Raises UsageError for a pass that there is not."""
    names = [cls.name for cls in CATALOGUE]
    for name in passes or ():
        if name not in names:
            hint = nearest(name, names) or f"there are: {', '.join(names)}"
            raise UsageError(f"unknown pass '{name}'", where="--passes", hint=hint)
