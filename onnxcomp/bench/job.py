"""One combination of provider, batch and threads: what every scenario needs to measure it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path

from onnxcomp import worker
from onnxcomp.bench import ids
from onnxcomp.bench.feeds import Feeds, check_same_inputs, make_feeds
from onnxcomp.bench.result import Setting
from onnxcomp.runtime import Session, SessionSettings, open_session

#: share of the time for trying the feeds; what is not tried is not fed
_TRIAL_SHARE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One combination of provider, batch and threads.

    Attributes:
        paths: the model files.
        names: the models as given.
        provider: short name.
        scenario: name.
        data, batch, sizes: see `make_feeds`.
        settings: session options.
        seconds: time budget.
        seed: of all random orders.
        delta: a smaller relative difference is none.
        max_runs: at most so many runs of a single model count.
        sessions: fresh sessions that share these runs.
        bind: use IO binding; None: on every provider but the CPU.
        done, share: where this job stands in the whole benchmark, for the progress.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    provider: str
    scenario: str
    data: str | os.PathLike[str] | None
    batch: int
    sizes: Mapping[str, int] | None
    settings: SessionSettings
    seconds: float
    seed: int
    delta: float
    max_runs: int
    bind: bool | None
    done: float
    share: float
    sessions: int = 1

    def setting(self, feeds: Feeds) -> Setting:
        """What the results ran under."""
        return Setting(self.provider, self.scenario, feeds.samples, self.settings.threads)

    def feeds(self) -> Feeds:
        """Feeds that every model has run on once, so that nothing is refused while the clock runs."""
        self.tell(f"loading {self.names[0]}", 0.0)
        first = self.open(0)
        inputs = first.signature.inputs
        noise = self.data is None or os.fspath(self.data).startswith("random:")
        whole = ids.whole_numbers(self.paths, inputs) if noise else None
        feeds = make_feeds(self.data, inputs, batch=self.batch, sizes=self.sizes, whole=whole)
        deadline = time.monotonic() + _TRIAL_SHARE * self.seconds / len(self.paths)
        tried = 0
        for arrays in feeds.arrays:
            first.run(arrays)
            tried += 1
            if time.monotonic() > deadline:
                break
        feeds = dataclasses.replace(feeds, arrays=feeds.arrays[:tried])
        for index in range(1, len(self.paths)):
            other = self.open(index)
            check_same_inputs(first.signature, other.signature, names=(self.names[0], self.names[index]))
            for arrays in feeds.arrays:
                other.run(arrays)
        return feeds

    def open(self, index: int) -> Session:
        """A fresh session of one of the models."""
        return open_session(self.paths[index], provider=self.provider, settings=self.settings)

    def tell(self, text: str, fraction: float) -> None:
        """Report the share of this job that is done."""
        where = f"{self.provider}, batch {self.batch}, {self.settings.threads} threads"
        worker.report(f"{text} ({where})", self.done + self.share * min(fraction, 1.0))
