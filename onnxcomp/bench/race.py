"""A race of session settings against the default ones: the slower half drops out, what is left is joined."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp import worker
from onnxcomp.bench import statistics
from onnxcomp.bench.arms import Arm, Arrays, clock_of
from onnxcomp.bench.field import Block, Entry, Field
from onnxcomp.bench.tune_result import Change
from onnxcomp.settings import SessionSettings

#: share of the time for the race, and for joining its winners
RACE, JOIN = 0.45, 0.15

#: rounds of each stage; seconds of a block
_ROUNDS, _SHORTEST, _LONGEST = 4, 0.05, 0.5

#: changes that are joined at most
_JOINED = 5

#: one-sided error rate at which a change promises a gain; the proof comes later
_PROMISE = 0.1

#: a single change that gains less than this share of the practical threshold is not worth a setting
_LEAST = 0.5


class Race:
    """The default settings, and candidates that drop out or are joined."""

    def __init__(
        self,
        path: Path,
        feeds: Arrays,
        default: SessionSettings,
        candidates: Sequence[SessionSettings],
        seed: int,
        *,
        delta: float,
    ) -> None:
        self.path, self.feeds, self.default, self.seed = path, feeds, default, seed
        self.least = _LEAST * math.log1p(delta)
        arms = [Arm(name="", path=path, settings=one) for one in (default, *candidates)]
        self.clock = clock_of(arms)
        self.field = Field([Entry(arm, feeds) for arm in arms], seed=seed)
        self.length = _SHORTEST

    def run(self, changes: list[Change], begun: float, seconds: float) -> tuple[list[Change], list[Change]]:
        """All changes with what was measured, and those that promise a gain, the best first.

        Successive halving (Jamieson and Talwalkar 2016): all in four rounds (two where the time is short), the
        faster half in eight more (four).
        """
        racing = list(range(1, len(self.field.entries)))
        spent = time.monotonic()
        self._play(self.field, racing, "all single changes", fewest=1, rounds=1)
        opening = (time.monotonic() - spent) / len(self.field.entries)
        share = (RACE * seconds - (time.monotonic() - begun)) / (2 * _ROUNDS * len(self.field.entries))
        self.length = min(max(share - opening, _SHORTEST), _LONGEST)
        until = begun + RACE * seconds
        self._play(self.field, racing, "all single changes", fewest=1, rounds=_ROUNDS - 1, until=until)
        racing.sort(key=lambda index: -float(self._logs(self.field, index).mean()))
        better = [index for index in racing[: -(-len(racing) // 2)] if self._logs(self.field, index).mean() > 0]
        if better:
            self._play(self.field, better, "the faster half", fewest=_ROUNDS, rounds=2 * _ROUNDS, until=until)
        measured: list[Change] = []
        index = 0
        promising: list[tuple[float, Change]] = []
        for change in changes:
            if change.refused is not None:
                measured.append(change)
                continue
            index += 1
            logs = self._logs(self.field, index)
            one = dataclasses.replace(change, gain=statistics.ratio_interval(logs), rounds=len(logs))
            measured.append(one)
            # a one-sided bound at this rate is the lower end of a two-sided one at twice the rate
            sure = index in better and statistics.mean_interval(logs, 2 * _PROMISE).low > 0
            if sure and logs.mean() > self.least:
                promising.append((float(logs.mean()), one))
        promising.sort(key=lambda pair: -pair[0])
        return measured, [change for _, change in promising]

    def join(self, promising: Sequence[Change], until: float) -> tuple[SessionSettings, list[SessionSettings]]:
        """The best of: the best change alone, with the second, with the third; and the changes that it holds."""
        if not promising:
            return self.default, []
        stacks: list[tuple[SessionSettings, list[SessionSettings]]] = []
        joined = self.default
        held: list[SessionSettings] = []
        for change in promising[:_JOINED]:
            both = together(joined, change.settings, self.default)
            if both is None:
                continue
            joined, held = both, [*held, change.settings]
            stacks.append((joined, held))
        if len(stacks) == 1:
            return stacks[0]
        arms = [
            Arm(name="", path=self.path, settings=one) for one in (self.default, *(settings for settings, _ in stacks))
        ]
        field = Field([Entry(arm, self.feeds) for arm in arms], seed=self.seed + 2)
        self._play(field, range(1, len(arms)), "changes together", fewest=_ROUNDS, rounds=2 * _ROUNDS, until=until)
        return stacks[int(np.argmax([self._logs(field, index).mean() for index in range(1, len(arms))]))]

    def _play(
        self, field: Field, indices: Sequence[int], what: str, *, fewest: int, rounds: int, until: float | None = None
    ) -> None:
        field.play(
            [0, *indices],
            rounds=rounds,
            block_seconds=self.length,
            fewest=fewest,
            until=until,
            progress=lambda: worker.report(f"tuning: {what}, {len(indices)} candidates"),
        )

    def _logs(self, field: Field, index: int) -> np.ndarray:
        """log(default / candidate), one per round."""
        return field.logs(0, index, quartile if self.clock.per_process else cpu_median)


def quartile(block: Block) -> float:
    """What of a block is compared where there are several threads."""
    return block.quartile_ns


def cpu_median(block: Block) -> float:
    """What of a block is compared where the calling thread does all the work."""
    return block.cpu_median_ns


def together(first: SessionSettings, second: SessionSettings, default: SessionSettings) -> SessionSettings | None:
    """The changes of both; None where they change one thing in two ways, or leave out optimizers of another level."""
    fields: dict[str, object] = {}
    for field in dataclasses.fields(default):
        a, b, base = (getattr(one, field.name) for one in (first, second, default))
        if field.name == "disabled_optimizers":
            fields[field.name] = tuple(dict.fromkeys((*a, *b)))
        elif isinstance(base, Mapping):
            fields[field.name] = {**a, **b}
        elif base not in (a, b) and a != b:
            return None
        else:
            fields[field.name] = b if b != base else a
    joined = SessionSettings(**fields)  # type: ignore[arg-type]
    if joined.optimization != default.optimization and joined.disabled_optimizers:
        return None
    return joined
