"""How much faster a row of this run is than its counterpart in a stored one, from what both have stored.

The two were measured one after the other, perhaps days apart. The interval holds what differs
between fresh sessions, and an allowance for what differs between runs of the same bytes on a machine
of this grade of trust; what a machine does from one day to the next nobody knows. Hence 'indicative'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from onnxcomp.bench.statistics import ALPHA, Estimate

Json = Mapping[str, Any]

#: sessions, rounds or processes of either run, below which there is no interval worth the name
FEWEST = 3


#: standard deviation between runs, beyond that of sessions, by grade of trust: 'poor' as measured
#: (`scripts/baseline_check`, load 5 to 11 on two cores: 1.7 %), the others assumed
DRIFT: Mapping[str, float] = {"good": 0.005, "fair": 0.01, "poor": 0.02}


@dataclasses.dataclass(frozen=True)
class Found:
    """What two rows say.

    Attributes:
        what: that was compared, for people.
        speedup: stored time / time now, or rate now / stored rate; None where the rows do not allow one.
        counts: sessions, rounds or processes behind it, stored and now; None where it is no mean of such.
        reason: why there is no speedup.
    """

    what: str
    speedup: Estimate | None
    counts: tuple[int, int] | None = None
    reason: str = ""


def compare(baseline: Json, now: Json, *, drift: float = 0.0) -> Found:
    """The speedup of `now` against `baseline`: two rows of the same scenario and setting.

    `drift`: standard deviation of the difference that the runs as a whole have, in logarithms.
    """
    if _shapes(baseline) != _shapes(now):
        return Found("", None, reason=f"the inputs had the shapes {_shapes(baseline)}, now {_shapes(now)}")
    if now["scenario"] == "server":
        return _server(baseline, now)
    what, pick = _series(now)
    try:
        before, after = pick(baseline), pick(now)
    except KeyError as missing:
        return Found(what, None, reason=f"a run was stored without {missing.args[0]}")
    counts = (len(before), len(after))
    if min(counts) < FEWEST:
        return Found(
            what,
            None,
            counts,
            f"{counts[0]} sessions stored, {counts[1]} now: two sessions of the same bytes differ by two or three "
            "percent; store a run with bench -o, which opens many",
        )
    return Found(what, welch(before, after, drift=drift), counts)


def allowance(*grades: str) -> float:
    """The drift between two runs of these grades of trust."""
    return math.hypot(*(DRIFT[grade] for grade in grades))


def welch(before: np.ndarray, after: np.ndarray, *, drift: float = 0.0, alpha: float = ALPHA) -> Estimate:
    """Ratio of two geometric means of independent times with its interval (Welch 1947, on logarithms)."""
    first, second = np.log(before), np.log(after)
    parts = [one.var(ddof=1) / len(one) for one in (first, second)]
    value, variance = float(first.mean() - second.mean()), float(sum(parts))
    if variance == 0:
        return _around(value, float(stats.norm.isf(alpha / 2)) * drift)
    freedom = variance**2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (first, second), strict=True))
    return _around(value, float(stats.t.isf(alpha / 2, freedom)) * math.hypot(math.sqrt(variance), drift))


def _around(log: float, half: float) -> Estimate:
    return Estimate(math.exp(log), math.exp(log - half), math.exp(log + half))


def _series(row: Json) -> tuple[str, Callable[[Json], np.ndarray]]:
    """What is compared in a row of this scenario, and the numbers: one per session, less is better."""
    if row["scenario"] == "cold":
        return "time to the first output", lambda r: np.asarray([s["total"] for s in r["starts"]])
    if row["scenario"] in ("throughput", "workers"):
        return "samples per second", lambda r: 1 / np.asarray([t["runs_per_second"] for t in r["rounds"]])
    alone = row["provider"] == "cpu" and row["threads"] == 1
    clock = "cpu_ns" if alone else "wall_ns"
    what = f"lower quartile of the {'CPU' if alone else 'wall'} time of a run"
    return what, lambda r: _quartiles(r["samples"][clock], r["samples"]["per_session"])


def _quartiles(samples: list[int], counts: list[int]) -> np.ndarray:
    """One per session: of what a machine does to times that are not paired, the lower quartile sees least."""
    parts = np.split(np.asarray(samples, dtype=np.float64), np.cumsum(counts)[:-1])
    return np.asarray([_quartile(part) for part in parts])


def _quartile(samples: Sequence[int] | np.ndarray) -> float:
    return float(np.quantile(np.maximum(np.asarray(samples, dtype=np.float64), 1.0), 0.25))


def _server(baseline: Json, now: Json) -> Found:
    """The rate of the long run within the objective, else the highest that held and the one that did not; else p50."""
    if baseline["search"] is None or now["search"] is None:
        what = "p50 of the time from when a request was due"
        if baseline["rate"] != now["rate"]:
            return Found(what, None, reason=f"{baseline['rate']:g} requests a second, now {now['rate']:g}")
        one, other = baseline["latency_ms"]["p50"], now["latency_ms"]["p50"]
        if not (one["estimable"] and other["estimable"]):
            return Found(what, None, reason="too few requests for an interval")
        return Found(
            what, _widest((one["low"], one["value"], one["high"]), (other["low"], other["value"], other["high"]))
        )
    what = "highest rate within the objective"
    if baseline["slo"]["p99_ms"] != now["slo"]["p99_ms"]:
        return Found(what, None, reason=f"p99 within {baseline['slo']['p99_ms']:g} ms, now {now['slo']['p99_ms']:g} ms")
    limits = [row["slo"].get("limit_rate") for row in (baseline, now)]
    if None not in limits:
        one, other = ((limit["low"], limit["value"], limit["high"]) for limit in limits)
        return Found("rate of the long run within the objective", _widest(other, one))
    rates = [(row["slo"]["highest_rate"], row["search"]["failed_rate"]) for row in (baseline, now)]
    if any(None in pair for pair in rates):
        return Found(what, None, reason="a search ended without a rate that holds and one that does not")
    (low, high), (now_low, now_high) = rates
    return Found(what, _widest((now_low, now_low, now_high), (low, low, high)))


def _widest(above: tuple[float, float, float], below: tuple[float, float, float]) -> Estimate:
    """Of a ratio whose two sides lie each between a low and a high."""
    return Estimate(above[1] / below[1], above[0] / below[2], above[2] / below[0])


def _shapes(row: Json) -> Any:
    return row["feeds"]["shapes"]
