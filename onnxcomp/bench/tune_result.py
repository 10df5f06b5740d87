"""What tuning found: each change and its gain, the winner beside ORT's defaults, and the settings file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxcomp.bench import statistics
from onnxcomp.bench.compare import Comparison
from onnxcomp.bench.paired import Paired
from onnxcomp.bench.trust import Trust
from onnxcomp.settings import SessionSettings, SettingsFile
from onnxcomp.settings.host import Host


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of ORT's default settings.

    Attributes:
        name: in words: 'without SkipLayerNormFusion'.
        settings: with it.
        refused: why it is no candidate; None where it was measured.
        gain: default's time by its, with the interval over rounds; None where it was not measured.
        rounds: how many it was measured in.
        kept: whether the winner holds it.
    """

    name: str
    settings: SessionSettings
    refused: str | None = None
    gain: statistics.Estimate | None = None
    rounds: int = 0
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """`{name, refused, gain: {value, low, high} or null, rounds, kept}`."""
        return {
            "name": self.name,
            "refused": self.refused,
            "gain": None if self.gain is None else self.gain.to_json(),
            "rounds": self.rounds,
            "kept": self.kept,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """The search for session settings of one model on this host.

    Attributes:
        model: {path (the name only), sha256, bytes}.
        host: where.
        default: ORT's own settings, at the first of the thread counts.
        winner: what the search chose; the default where nothing promised a gain.
        changes: what was tried, the largest gain first.
        comparison: the winner against the default; None where there was nothing to compare.
        max_difference: largest difference of the winner's outputs, by the largest value of the same output.
        clock: what the gains are ratios of: 'thread' (CPU time) or 'wall'.
        notes: what a reader should know.
    """

    model: Mapping[str, Any]
    host: Host
    default: SessionSettings
    winner: SessionSettings
    changes: tuple[Change, ...]
    comparison: Comparison | Paired | None
    max_difference: float
    clock: str
    notes: tuple[str, ...]

    @property
    def faster(self) -> bool:
        """Whether the winner was proven to be faster."""
        return self.comparison is not None and self.comparison.decisions[0].verdict == "faster"

    def doubted(self, trust: Trust) -> Tuning:
        """The same with a note where the machine was not quiet: settings that help then may not help otherwise."""
        if trust.grade == "good":
            return self
        note = (
            f"tuned on a busy machine (trust: {trust.grade}): tune again where it is as busy as it will be in service"
        )
        return dataclasses.replace(self, notes=(*self.notes, note))

    def file(self) -> SettingsFile:
        """The winner's settings with their proof; the default's where it was not proven."""
        return SettingsFile(
            settings=self.winner if self.faster else self.default,
            host=self.host,
            model=self.model,
            measured=self._measured(),
            notes=self.notes,
        )

    def to_json(self) -> dict[str, Any]:
        """The object under `tuning`."""
        return {
            "model": dict(self.model),
            "default": self.default.to_json(),
            "winner": self.winner.to_json(),
            "faster": self.faster,
            "changes": [change.to_json() for change in self.changes],
            "comparison": None if self.comparison is None else self.comparison.to_json()[0],
            "max_difference": self.max_difference,
            "clock": self.clock,
            "notes": list(self.notes),
        }

    def _measured(self) -> dict[str, Any] | None:
        if self.comparison is None:
            return None
        entry = self.comparison.to_json()[0]
        kept = ("speedup", "verdict", "aa", "delta", "clock", "rounds", "seed")
        return {
            **{key: entry[key] for key in kept},
            "against": "ORT's default settings",
            "changes": [change.name for change in self.changes if change.kept],
            "max_difference": self.max_difference,
        }
