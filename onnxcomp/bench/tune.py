"""Which session settings make one model faster on this host than ORT's defaults, with the same outputs.

Single changes race in rounds of fresh sessions, and those that promise a gain are joined. What wins has been chosen
for winning, so its gain is measured anew: interleaved, against the defaults, beside an A/A control.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxcomp import worker
from onnxcomp.bench import runner, statistics
from onnxcomp.bench.arms import Arm, Arrays, clock_of, compare_arms
from onnxcomp.bench.compare import Comparison
from onnxcomp.bench.field import Entry, Field
from onnxcomp.bench.optimizers import effective
from onnxcomp.bench.paired import Paired
from onnxcomp.bench.race import JOIN, RACE, Race, quartile
from onnxcomp.bench.tune_result import Change, Tuning
from onnxcomp.errors import OnnxcompError
from onnxcomp.model import fingerprint
from onnxcomp.settings import SessionSettings, host

#: outputs may differ by this much of the largest value of the same output
TOLERANCE = 1e-5

#: sets of feeds whose outputs are compared
_CHECKED = 4

#: rounds of the proof with several threads
_FEWEST, _MOST, _PROOF_SECONDS = 8, 20, 0.3


def tune(
    path: Path,
    feeds: Arrays,
    *,
    threads: Sequence[int] = (1,),
    seconds: float = 60.0,
    seed: int = 0,
    delta: float = statistics.DELTA,
) -> Tuning:
    """Search the settings of one model on the CPU.

    Args:
        path: an `.onnx` file.
        feeds: arrays by input name, one dictionary per run.
        threads: intra-op threads to choose from; the default settings have the first.
        seconds: time budget; two rounds of every change, four more of the better half and eight of the
            comparison are made in any case.
        seed: of all random orders.
        delta: a smaller relative gain is none.

    Raises what `open_session` raises.
    """
    begun = time.monotonic()
    default = SessionSettings(threads=threads[0])
    worker.report("tuning: which optimizers change the graph")
    wanted = _outputs(path, default, feeds)
    changes = _checked(path, feeds, wanted, _changes(path, default, threads))
    race = Race(path, feeds, default, [c.settings for c in changes if c.refused is None], seed, delta=delta)
    changes, promising = race.run(changes, begun, seconds)
    winner, kept = race.join(promising, begun + (RACE + JOIN) * seconds)
    difference = _difference(path, feeds, wanted, winner)
    notes: list[str] = []
    if difference > TOLERANCE:
        notes.append(f"the changes together alter the outputs by {difference:.1e}: they are refused")
        winner, kept, difference = default, [], 0.0
    changes = [dataclasses.replace(c, kept=c.settings in kept) for c in changes]
    comparison = None
    if winner != default:
        worker.report("tuning: the winner against the default settings")
        arms = [_arm(path, default, "default settings"), _arm(path, winner, "tuned settings")]
        left = max(begun + seconds - time.monotonic(), seconds * (1 - RACE - JOIN))
        comparison = _proof(arms, feeds, left, seed + 1, delta)
    if comparison is None or comparison.decisions[0].verdict != "faster":
        notes.append("nothing was proven to be faster than ORT's default settings: these are the defaults")
    return Tuning(
        model={key: value for key, value in fingerprint(path).to_json().items() if key in ("sha256", "bytes")}
        | {"path": path.name},
        host=host.current(),
        default=default,
        winner=winner,
        changes=tuple(sorted(changes, key=lambda c: -c.gain.value if c.gain else np.inf)),
        comparison=comparison,
        max_difference=difference,
        clock="wall" if race.clock.per_process else "thread",
        notes=tuple(notes),
    )


def _changes(path: Path, default: SessionSettings, threads: Sequence[int]) -> list[Change]:
    """Every single change of the default settings."""

    def change(name: str, **fields: object) -> Change:
        return Change(name, dataclasses.replace(default, **fields))  # type: ignore[arg-type]

    found = [change(f"without {name}", disabled_optimizers=(name,)) for name in effective(path, default)]
    found += [change(f"optimization {level}", optimization=level) for level in ("extended", "basic", "disable")]
    found += [change("no memory arena", arena=False), change("no memory pattern", mem_pattern=False)]
    if default.threads != 1:
        found.append(Change("no spinning", default.with_spinning(False)))
    for count in dict.fromkeys(threads[1:]):
        more = change(f"{count} threads", threads=count)
        found.append(more)
        if count != 1:
            found.append(Change(f"{count} threads, no spinning", more.settings.with_spinning(False)))
    return found


def _checked(path: Path, feeds: Arrays, wanted: Sequence[object], changes: Sequence[Change]) -> list[Change]:
    """The changes, those refused whose outputs are not the default's."""
    out = []
    for change in changes:
        try:
            difference = _difference(path, feeds, wanted, change.settings)
        except OnnxcompError as error:
            out.append(dataclasses.replace(change, refused=error.message))
            continue
        text = None if difference <= TOLERANCE else f"its outputs differ by {difference:.1e} of the largest value"
        out.append(dataclasses.replace(change, refused=text))
    return out


def _difference(path: Path, feeds: Arrays, wanted: Sequence[object], settings: SessionSettings) -> float:
    """Largest difference of any output, by the largest value of that output under the default settings."""
    found = _outputs(path, settings, feeds)
    return max((_apart(a, b) for a, b in zip(wanted, found, strict=True)), default=0.0)


def _outputs(path: Path, settings: SessionSettings, feeds: Arrays) -> list[object]:
    calls = _arm(path, settings, "").calls(feeds)
    return [value for call in calls[:_CHECKED] for value in runner.outputs(call())]


def _apart(first: object, second: object) -> float:
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape:
        return float("inf")
    if not np.issubdtype(a.dtype, np.floating):
        return 0.0 if a.tolist() == b.tolist() else float("inf")
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    known = np.isfinite(a)
    if not known.any():
        return 0.0
    a, b = a[known].astype(np.float64), b[known].astype(np.float64)
    largest = float(np.abs(a).max())
    return float(np.abs(a - b).max()) / largest if largest else float(np.abs(b).max() > 0)


def _proof(arms: Sequence[Arm], feeds: Arrays, seconds: float, seed: int, delta: float) -> Comparison | Paired:
    """The second arm against the first: run by run, or with several threads, which may spin on, block by block."""
    if not clock_of(arms).per_process:
        return compare_arms(arms, feeds, seconds=seconds, seed=seed, delta=delta)
    field = Field([Entry(arm, feeds) for arm in (*arms, arms[0])], seed=seed)
    until = time.monotonic() + seconds
    field.play(range(3), rounds=_MOST, block_seconds=_PROOF_SECONDS, fewest=_FEWEST, until=until)
    first, second, control = ([quartile(b) / 1e6 for b in field.blocks(index)] for index in range(3))
    return Paired(
        names=tuple(arm.name for arm in arms),
        values=(tuple(first), tuple(second)),
        control=tuple(control),
        what="lower quartile of the wall time of a run, ms",
        seed=seed,
        delta=delta,
    )


def _arm(path: Path, settings: SessionSettings, name: str) -> Arm:
    return Arm(name=name, path=path, settings=settings)
