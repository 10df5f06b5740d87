"""The book of a search: an optuna study in a journal that survives a kill, and that several hosts may read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from onnxcomp.errors import DataError, UnsupportedError
from onnxcomp.shrink.candidates import Candidate
from onnxcomp.shrink.outcome import Outcome

_STUDY = "shrink"


class Ledger:
    """Outcomes by candidate; each is written when it is known, and never asked for again.

    A trial of the study is a candidate: its parameters are the candidate's fields, its values the drop, the bytes and
    the speed, so that optuna's own tools can show the study. What was running when a process died counts as failed,
    and is tried again.

    Args:
        path: the journal; made if missing. A line that a kill has cut short is taken off.
        files: the folder of the candidates' files, which may have moved with the journal.
        about: what the outcomes depend on: the input, the samples, the budget. A journal of others is refused.

    Raises UnsupportedError without optuna, DataError for a journal that is damaged or about something else.
    """

    def __init__(self, path: Path, about: dict[str, object], *, files: Path) -> None:
        self._files = files
        with _optuna():
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self._states = optuna.trial.TrialState
            self._create = optuna.trial.create_trial
            self._distribution = optuna.distributions.CategoricalDistribution
            try:
                _mend(path, JournalFileOpenLock(os.fspath(path)))
                storage = JournalStorage(JournalFileBackend(os.fspath(path)))
                self._study = optuna.create_study(
                    storage=storage,
                    study_name=_STUDY,
                    load_if_exists=True,
                    directions=["minimize", "minimize", "maximize"],
                    sampler=optuna.samplers.RandomSampler(seed=0),  # proposes nothing: the plan does
                )
            except (ValueError, KeyError, OSError) as error:
                raise DataError(f"the journal cannot be read: {error}", where=path) from error
        wanted = json.dumps(about, sort_keys=True)
        given = self._study.user_attrs.get("about")
        if given is not None and given != wanted:
            raise DataError(
                "the journal is about another model, other samples or another budget",
                where=path,
                hint="choose another folder, or start anew with --force",
            )
        self._study.set_user_attr("about", wanted)
        self._known = {self._key(one.candidate_asked): one.outcome for one in self._read()}

    def known(self, candidate: Candidate) -> Outcome | None:
        """How it went, where it was tried."""
        return self._known.get(self._key(candidate))

    def write(self, candidate: Candidate, outcome: Outcome) -> None:
        """Keep what became of it."""
        values = None
        if outcome.made and outcome.drop is not None and outcome.speed is not None:
            values = [outcome.drop.value, float(outcome.bytes), outcome.speed.value]
        self._known[self._key(candidate)] = outcome
        with _optuna():
            self._study.add_trial(
                self._create(
                    state=self._states.COMPLETE if values else self._states.FAIL,
                    values=values,
                    user_attrs={"asked": candidate.to_json(), "outcome": outcome.to_json()},
                )
            )

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """All of them, in the order of being known."""
        return tuple(self._known.values())

    def _read(self) -> Iterator[_Entry]:
        for trial in self._study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            outcome = Outcome.from_json(attributes["outcome"])
            if outcome.path is not None:
                made = Path(outcome.path)
                outcome = dataclasses.replace(outcome, path=str(self._files / made.parent.name / made.name))
            yield _Entry(Candidate.from_json(attributes["asked"]), outcome)

    @staticmethod
    def _key(candidate: Candidate) -> str:
        return json.dumps(candidate.to_json(), sort_keys=True)


@dataclasses.dataclass(frozen=True)
class _Entry:
    candidate_asked: Candidate
    outcome: Outcome


class _Lock(Protocol):
    def acquire(self) -> bool: ...

    def release(self) -> None: ...


def _mend(path: Path, lock: _Lock) -> None:
    """Take off what stands behind the last line break: optuna would write its next line to the end of it."""
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()


@contextlib.contextmanager
def _optuna() -> Iterator[None]:
    """Without the warnings of what it calls experimental."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        raise UnsupportedError("a search needs optuna", hint="pip install 'onnxcomp[search]'") from error
