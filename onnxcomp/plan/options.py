"""From what was measured to options: what each configuration can do, and whether it may be chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.bench import queueing
from onnxcomp.plan.measure import First, Tell
from onnxcomp.plan.need import highest_rate, need
from onnxcomp.plan.result import Objective, Option
from onnxcomp.plan.serving import Measured

#: what is proposed where no rate holds: the shortest p99, and so much time to wait
_SLACK = 1.5


def options(first: First, measured: Sequence[Measured], objective: Objective, *, seed: int, tell: Tell) -> list[Option]:
    """One per configuration, those that do not fit into memory at the end."""
    found = []
    for one in measured:
        tell(f"simulating {one.serving.name}: {one.serving.configuration.label()}")
        found.append(_option(one, objective, seed))
    return found + [
        Option(objective=objective, serving=serving, most=0, refused=reason) for serving, reason in first.refused
    ]


def _option(found: Measured, objective: Objective, seed: int) -> Option:
    serving, limit = found.serving, objective.memory_limit
    most = serving.configuration.workers
    while most and limit is not None and (found.pss_bytes(most) or 0) > limit:
        most -= 1
    workers = most or serving.configuration.workers  # what it could do is told in any case
    capacity = highest_rate(found, objective.slo_p99_ms, workers=workers, seed=seed)
    refused, needed = "", None
    if not most:
        least = found.pss_bytes(1)
        refused = f"one worker holds {least} bytes, the limit is {limit}"
    elif capacity is None:
        p99 = np.quantile(found.services_ms, 0.99)
        refused = f"a run alone takes {p99:.3g} ms (p99), and the objective is {objective.slo_p99_ms:g}"
    else:
        needed = need(found, capacity, rate=objective.rate, slo_p99_ms=objective.slo_p99_ms, workers=most, seed=seed)
        refused = "" if needed else "no number of machines holds the objective in the preview"
    return Option(
        objective=objective, serving=serving, most=most, measured=found, capacity=capacity, need=needed,
        refused=refused,
    )  # fmt: skip


def nearest(options: Sequence[Option], *, seed: int) -> dict[str, object] | None:
    """What would be possible where nothing is: another objective, or more memory. None where nothing was measured."""
    tried = [one for one in options if one.trial is not None]
    if tried and tried[-1].trial is not None:
        last, p99 = tried[-1], tried[-1].trial.traffic.percentile(0.99)
        return {
            "slo_p99_ms": p99.high,
            "rate": last.objective.rate,
            "configuration": last.serving.configuration.label(),
        }
    known = [(one, one.measured) for one in options if one.measured is not None]
    if not known:
        return None
    if not any(one.most for one, _ in known):
        needed, label = min((found.pss_bytes(1) or 0, one.serving.configuration.label(1)) for one, found in known)
        return {"memory_limit": needed, "configuration": label}
    option, quickest = min(known, key=lambda pair: pair[0].service_p99_ms)
    goal, configuration = _SLACK * option.service_p99_ms, option.serving.configuration
    rate = queueing.highest_rate(quickest.services_ms, goal, workers=configuration.workers, seed=seed)
    return {
        "slo_p99_ms": goal,
        "rate": None if rate is None else rate * configuration.requests,
        "configuration": configuration.label(),
    }
