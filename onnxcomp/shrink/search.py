"""Try candidates until nothing is left to try or the time is over; each in a worker of its own."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxcomp import worker
from onnxcomp.errors import LimitError, OnnxcompError, WorkerTimeoutError
from onnxcomp.shrink.attempt import Task, attempt
from onnxcomp.shrink.candidates import Candidate
from onnxcomp.shrink.ledger import Ledger
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.plan import Conversation

#: a candidate that has less time than this left is not begun, in seconds
_LEAST = 2.0


@dataclasses.dataclass
class Clock:
    """How much of the time is left.

    Attributes:
        end: when it is over, as `time.monotonic` counts.
    """

    end: float

    @classmethod
    def starting(cls, seconds: float | None) -> Clock:
        """That many seconds from now; None: no end."""
        return cls(float("inf") if seconds is None else time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


#: what is being tried, outcomes so far, progress of it
Listener = Callable[[str, float | None], None]


class Search:
    """Tries what the plan proposes.

    Args:
        task: where everything lies.
        ledger: what is known already.
        folder: gets a folder for each candidate that is made.
        clock: when to stop.
        limits: of each worker.
        better, allowed: what counts, and why one may not win: what is neither the best nor near is deleted.
        on_progress: called with (text, fraction or None) while a candidate is made.
        on_outcome: called with each outcome, known ones too.
    """

    def __init__(
        self,
        task: Task,
        ledger: Ledger,
        folder: Path,
        clock: Clock,
        *,
        limits: worker.WorkerLimits,
        on_progress: Listener | None,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self._task, self._ledger, self._folder, self._clock = task, ledger, folder, clock
        self._limits, self._on_progress, self._on_outcome = limits, on_progress, on_outcome

    def run(self, plan: Conversation) -> bool:
        """Follow the plan; whether it came to its end."""
        try:
            asked = next(plan)
            while True:
                told = self._round(asked)
                if told is None:
                    return False
                asked = plan.send(told)
        except StopIteration:
            return True

    def _round(self, asked: Sequence[Candidate]) -> list[Outcome] | None:
        """An outcome for each; None when the time is over before the last."""
        told = []
        for candidate in asked:
            outcome = self._ledger.known(candidate)
            if outcome is None:
                if self._clock.left < _LEAST:
                    return None
                outcome = self._try(candidate)
                if outcome is None:
                    return None
                self._ledger.write(candidate, outcome)
            told.append(outcome)
            self._on_outcome(outcome)
        return told

    def _try(self, candidate: Candidate) -> Outcome | None:
        """None where the time of the search ended it: it may go on in another run."""
        start, left = time.monotonic(), self._clock.left
        folder = self._folder / f"{len(self._ledger.outcomes) + 1:03d}"
        if not candidate.epochs:  # a training goes on from its checkpoint
            shutil.rmtree(folder, ignore_errors=True)
        mine = min(left, self._limits.seconds or float("inf"))
        limits = dataclasses.replace(self._limits, seconds=None if mine == float("inf") else mine)

        def heard(text: str, fraction: float | None) -> None:
            if self._on_progress is not None:
                self._on_progress(f"{candidate.name}: {text}", fraction)

        try:
            return worker.isolated(attempt, self._task, candidate, folder, limits=limits, on_progress=heard)
        except WorkerTimeoutError as error:
            if mine == left:
                return None
            reason = str(error)
        except (LimitError, OnnxcompError) as error:
            reason = f"{type(error).__name__}: {error.message}"
        except worker.RemoteError as error:
            reason = f"a bug: {str(error).strip().splitlines()[-1]}"
        shutil.rmtree(folder, ignore_errors=True)
        return Outcome(candidate, reason=reason, seconds=time.monotonic() - start)
