"""Ways to serve a model on one machine: what the workers are, how many, with how many threads each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from onnxcomp.bench.turn import Variant

#: threads on one session, processes of their own, processes on a pack
KINDS: tuple[str, ...] = ("threads", "processes", "pack")

#: intra-op threads that are tried: 2, 4, 8
_DOUBLINGS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to use a machine.

    Attributes:
        model: index among the models as given.
        kind: one of `KINDS`.
        workers: runs at the same time.
        threads: intra-op threads of a run.
        batch: samples of a run.
        requests: that a run answers: as many as samples where callers send batches, otherwise one.
        spinning: idle threads of a run spin before they sleep.
        whole: all cores of the machine are used.
    """

    model: int
    kind: str
    workers: int
    threads: int = 1
    batch: int = 1
    requests: int = 1
    spinning: bool = False
    whole: bool = True

    @property
    def unlikely(self) -> int:
        """The order in which configurations are left out where time is short: the highest first."""
        if self.threads > 1:
            return 6 if self.spinning else 4
        if self.workers == 1:
            return 1
        return {"threads": 0, "pack": 2, "processes": 3}[self.kind] if self.whole else 5

    def at_once(self, cores: int) -> int:
        """Workers that so many cores can run at once."""
        return max(min(self.workers, cores // self.threads), 1)

    def label(self, workers: int | None = None) -> str:
        """'2 threads on one session, batch 8'."""
        count = workers or self.workers
        if self.kind == "pack":
            words = f"{count} {'process' if count == 1 else 'processes'} on a pack"
        elif count == 1:
            words = "1 worker"
        else:
            words = f"{count} threads on one session" if self.kind == "threads" else f"{count} processes"
        if self.threads > 1:
            words += f", {self.threads} intra-op threads" + (", spinning" if self.spinning else "")
        return words + (f", batch {self.batch}" if self.batch > 1 else "")

    def to_json(self) -> dict[str, Any]:
        """The keys of `bench`, and `requests` and `spinning`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("model", "whole")}

    def variant(self, workers: int) -> Variant:
        """As `onnxcomp.bench` names it."""
        return Variant(self.model, self.kind, workers)


def candidates(
    model: int, *, cores: int, here: int, kinds: Sequence[str] = KINDS, batches: Sequence[tuple[int, int]] = ((1, 1),)
) -> list[Configuration]:
    """What is measured of a model.

    Args:
        model: index.
        cores: of the machine that is planned for.
        here: of this one: more intra-op threads than these cannot be measured.
        kinds: of `KINDS`; a single worker is the same by threads and as a process, and tried as the first.
        batches: (samples, requests) of a run.

    All cores, half of them, and one, with a thread each; then all cores by workers of 2, 4, 8 threads, on one
    session. Idle threads sleep: spinning takes cores from other workers. A single worker is tried with it, too.
    """
    shapes = [
        (kind, workers, 1, False)
        for kind in kinds
        for workers in sorted({cores, max(cores // 2, 1), 1}, reverse=True)
        if workers > 1 or kind == kinds[0]
    ]
    for threads in (2**power for power in range(1, _DOUBLINGS + 1)):
        if threads <= min(cores, here):
            workers = cores // threads
            shapes += [(kinds[0], workers, threads, spins) for spins in ((False, True) if workers == 1 else (False,))]
    return [
        Configuration(
            model=model,
            kind=kind,
            workers=workers,
            threads=threads,
            batch=batch,
            requests=requests,
            spinning=spins,
            whole=workers * threads == cores,
        )
        for batch, requests in batches
        for kind, workers, threads, spins in shapes
    ]
