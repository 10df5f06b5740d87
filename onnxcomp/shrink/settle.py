"""Session settings: the winner's best, and how it then does against the input at the input's best."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from onnxcomp import model as models
from onnxcomp.bench.arms import Arm, compare_arms
from onnxcomp.bench.feeds import make_feeds
from onnxcomp.bench.tune import tune
from onnxcomp.evaluate.intervals import Interval
from onnxcomp.settings import SettingsFile
from onnxcomp.shrink.wanted import Wanted

#: shares of the time: tuning of each, and the comparison
_TUNING = 0.35


@dataclasses.dataclass(frozen=True)
class Settled:
    """The input and the winner, each under the settings that are best for it.

    Attributes:
        speedup, verdict: of the comparison; None where no settings beat ORT's defaults for either.
        winner, input: settings files.
        control: {ratio, ok} of the A/A control.
    """

    speedup: Interval | None
    verdict: str | None
    winner: SettingsFile
    input: SettingsFile
    control: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """`{speedup, verdict, aa, winner, input}`."""
        return {
            "speedup": None if self.speedup is None else self.speedup.to_json(),
            "verdict": self.verdict,
            "aa": self.control,
            "winner": self.winner.to_json(),
            "input": self.input.to_json(),
        }


def settle(source: Path, winner: Path, wanted: Wanted, *, data: Path, seconds: float, seed: int) -> Settled:
    """Tune both, each on its own, and compare what comes out.

    Args:
        source: the input.
        winner: its rival.
        wanted: for batch and threads.
        data: samples that are fed.
        seconds: time for all of it; what tuning does at least may take longer.
        seed: of the random orders.
    """
    feeds = make_feeds(data, models.signature(models.load(source)).inputs, batch=wanted.batch).few().arrays
    files = [
        tune(path, feeds, threads=(wanted.threads,), seconds=_TUNING * seconds, seed=seed + turn).file()
        for turn, path in enumerate((source, winner))
    ]
    if all(file.measured is None or file.measured["verdict"] != "faster" for file in files):
        return Settled(None, None, files[1], files[0], None)
    arms = [
        Arm(name=name, path=path, settings=file.settings)
        for name, path, file in zip(("input", "winner"), (source, winner), files, strict=True)
    ]
    (row,) = compare_arms(arms, feeds, seconds=(1 - 2 * _TUNING) * seconds, seed=seed + 2).to_json()
    speedup = Interval(**{name: row["speedup"][name] for name in ("value", "low", "high")})
    return Settled(speedup, row["verdict"], files[1], files[0], row["aa"])
