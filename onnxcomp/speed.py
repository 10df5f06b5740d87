"""A quick look at the speed of two models, in a second or two; `onnxcomp.bench` measures properly."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import runtime

#: seconds of CPU time for both, fewest and most pairs of runs
_SECONDS = 2.0
_FEWEST, _MOST = 6, 400

#: seconds; what a clock shows that did not tick
_TINY = 1e-9


@dataclasses.dataclass(frozen=True)
class Speed:
    """How many times as fast the candidate is as the reference.

    Attributes:
        ratio: median over pairs of runs of (CPU time of the reference / CPU time of the candidate).
        low, high: interval of 95 % for the median.
        pairs: of runs.
        samples: in one run.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    samples: int

    @property
    def slower(self) -> bool:
        """Whether the candidate is slower, beyond the noise."""
        return self.high < 1

    def to_json(self) -> dict[str, Any]:
        """The record's `speed`."""
        return {**dataclasses.asdict(self), "threads": 1, "provider": "cpu"}


def compare(reference: Path, candidate: Path, feeds: Mapping[str, np.ndarray], samples: int) -> Speed:
    """Run both in turn on the same feeds with one thread, and compare CPU time pair by pair.

    Pairs cancel what slows down both. The interval is that of order statistics: nothing is assumed of the noise.
    """
    one = runtime.SessionSettings(threads=1)
    sessions = [runtime.open_session(path, settings=one) for path in (reference, candidate)]
    for session in sessions:
        session.run(feeds)
    ratios: list[float] = []
    end = time.process_time() + _SECONDS
    while len(ratios) < _FEWEST or (time.process_time() < end and len(ratios) < _MOST):
        turn = (0, 1) if len(ratios) % 2 else (1, 0)
        spent = [0.0, 0.0]
        for i in turn:
            start = time.process_time()
            sessions[i].run(feeds)
            spent[i] = time.process_time() - start
        ratios.append(max(spent[0], _TINY) / max(spent[1], _TINY))
    ratios.sort()
    count = len(ratios)
    # ranks k and n + 1 - k hold the median with 95 %: a binomial count, close to normal
    rank = max(int(count / 2 - 0.98 * math.sqrt(count)), 1)
    return Speed(float(np.median(ratios)), ratios[rank - 1], ratios[count - rank], count, samples)
