"""What became of a candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxcomp.evaluate.intervals import Interval
from onnxcomp.shrink.candidates import Candidate


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A candidate that was made and judged, or why it was not.

    Attributes:
        candidate: what was tried.
        reason: why it is out; None where it is not.
        path: of its file.
        bytes: of the file and its external data.
        score, drop: on the samples that choose.
        speed: CPU time of the input by that of the candidate, a quick look.
        seconds: that it took.
        sha256: of the file.
    """

    candidate: Candidate
    reason: str | None = None
    path: str | None = None
    bytes: int = 0
    score: Interval | None = None
    drop: Interval | None = None
    speed: Interval | None = None
    seconds: float = 0.0
    sha256: str | None = None

    @property
    def made(self) -> bool:
        """Whether there is a file."""
        return self.reason is None

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and the candidate's name."""
        return {
            **dataclasses.asdict(self),
            "candidate": self.candidate.to_json(),
            "name": self.candidate.name,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Outcome:
        """What `to_json` gave."""
        given: dict[str, Any] = {k: v for k, v in values.items() if k != "name"}
        for name in ("score", "drop", "speed"):
            given[name] = None if given[name] is None else Interval(**given[name])
        return Outcome(**{**given, "candidate": Candidate.from_json(values["candidate"])})
