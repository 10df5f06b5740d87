"""Confirm what the preview promises: real workers, real open loops, for as long as the time lasts.

A run that the preview does not expect to show the objective met in the time there is, so near it lies,
is not begun: the next option of the configuration with more workers is taken.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from onnxcomp.bench import slo
from onnxcomp.plan.measure import Tell
from onnxcomp.plan.need import can_be_told, need, seconds_to_tell
from onnxcomp.plan.result import Option, Trial

#: seconds; shorter runs tell nothing
_SHORTEST = 0.5

#: options of more workers or machines that are looked at where one did not hold, or cannot be told
_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Clock:
    """When the time is over, and what starting workers takes of it."""

    until: float
    start_seconds: float
    now: Callable[[], float] = time.monotonic

    def part(self, parts: int) -> Clock:
        """The first of so many equal parts of what is left."""
        return dataclasses.replace(self, until=self.now() + max(self.until - self.now(), 0.0) / parts)

    @property
    def left(self) -> float:
        """Seconds that a run could take."""
        return self.until - self.now() - self.start_seconds


def confirm(option: Option, clock: Clock, *, seed: int, tell: Tell) -> tuple[Option, list[str]]:
    """Verify an option, and with more workers or machines where it does not hold; the last, and words on the others.

    The option comes back without a trial where there was no time for one.
    """
    notes: list[str] = []
    for _ in range(_STEPS):
        if clock.left < _SHORTEST:
            break
        chosen, skipped = _told(option, clock.left, seed)
        notes += skipped
        tried = trial(chosen, _seconds(chosen, clock.left), seed=seed, tell=tell)
        following = None if _in_vain(tried) else more(tried, seed=seed)
        if tried.verdict == "met" or following is None or clock.left < _SHORTEST:
            return tried, notes
        notes.append(_words(tried, f"{tried.verdict}: {tried.trial.judgement.reason}" if tried.trial else ""))
        option = following
    return option, notes


def best(options: Sequence[Option], clock: Clock, *, seed: int, tell: Tell) -> tuple[list[Option], list[str]]:
    """Verify the first by `rank`, and the next while none holds and time is left; the options, and words on the way."""
    found, notes = list(options), list[str]()
    for one in rank(options):
        tried, words = confirm(one, clock, seed=seed, tell=tell)
        found[found.index(one)] = tried
        notes += words
        if tried.verdict == "met" or clock.left < _SHORTEST or (tried.trial is not None and tried.trial.busy):
            break
    return found, notes


def others(options: Sequence[Option], clock: Clock, *, seed: int, tell: Tell) -> list[Option]:
    """Verify options of other kinds that take as few machines, as far as time is left to tell them."""
    found = list(options)
    met = [one for one in options if one.verdict == "met"]
    seen = {_way(one) for one in met}
    for one in rank(options):
        if not met or one.trial is not None or _machines(one) > _machines(met[0]) or _way(one) in seen:
            continue
        chosen, skipped = _told(one, clock.left, seed)
        if skipped or chosen is not one or chosen.need is None or clock.left < seconds_to_tell(chosen.need.preview):
            continue
        seen.add(_way(one))
        found[found.index(one)] = trial(one, _seconds(one, clock.left), seed=seed, tell=tell)
    return found


def judged(options: Sequence[Option]) -> slo.Judgement:
    """What all options of a model say: met where one is, undecided where one is or was not tried."""
    if any(one.verdict == "met" for one in options):
        return slo.Judgement("met")
    for one in options:
        if one.verdict == "undecided" and one.trial is not None:
            return slo.Judgement("undecided", _words(one, one.trial.judgement.reason))
    if any(one.verdict is None for one in options):
        return slo.Judgement("undecided", "what may hold was not verified; raise --seconds")
    tried = [_words(one, one.trial.judgement.reason) for one in options if one.trial is not None]
    if tried:
        return slo.Judgement("missed", tried[-1])
    quickest = min(options, key=lambda one: one.service_p99_ms)
    return slo.Judgement("missed", f"{quickest.serving.configuration.label()}: {quickest.refused}")


def _in_vain(option: Option) -> bool:
    """Whether more workers would say no more: other work held the cores, or a run takes too long alone."""
    if option.trial is None:
        return False
    services = option.trial.traffic.service_ms
    alone = float(np.quantile(services, 0.99)) if len(services) else 0.0
    return option.trial.busy or alone > option.objective.slo_p99_ms


def trial(option: Option, seconds: float, *, seed: int, tell: Tell) -> Option:
    """Run one machine's workers at its rate; where this host has fewer cores, its part of both."""
    if option.need is None:
        raise ValueError("an option that needs nothing cannot be tried")
    here = min(option.need.workers, option.serving.at_once)
    rate = option.need.preview.rate * here / option.need.workers
    requests = option.serving.configuration.requests
    tell(f"{option.serving.name}: {option.serving.configuration.label(here)}, {rate * requests:.4g} requests a second")
    objective = option.objective
    run = option.serving.open_loop(rate, seconds, workers=here, seed=seed, slo_p99_ms=objective.slo_p99_ms)
    judged = slo.judge(run, objective.slo_p99_ms)
    found = Trial(run, judged, one_thread=option.serving.settings.threads == 1)
    if judged.verdict == "missed" and found.busy:
        judged = slo.Judgement(
            "undecided",
            f"{judged.reason}; but a run took {found.contention:.1f} times its CPU time: other work held the cores",
        )
    if here < option.need.workers and judged.verdict != "met":
        judged = slo.Judgement(
            "undecided",
            f"{option.need.workers} workers behind one line are more than this host has cores for; {here} at their "
            f"part of the rate: {judged.reason}",
        )
    held = run.memory.pss_bytes
    if objective.memory_limit is not None and held is not None and held > objective.memory_limit:
        judged = slo.Judgement("missed", f"the workers hold {held} bytes, the limit is {objective.memory_limit}")
    return dataclasses.replace(option, trial=dataclasses.replace(found, judgement=judged))


def more(option: Option, *, seed: int) -> Option | None:
    """The same configuration with the next more workers, or machines; None where there is no such."""
    if option.need is None or option.measured is None or option.capacity is None:
        return None
    found = need(
        option.measured,
        option.capacity,
        rate=option.objective.rate,
        slo_p99_ms=option.objective.slo_p99_ms,
        workers=option.most,
        seed=seed,
        machines=option.need.machines,
        fewest=option.need.workers + 1,
    )
    return None if found is None else dataclasses.replace(option, need=found, trial=None)


def _told(option: Option, seconds: float, seed: int) -> tuple[Option, list[str]]:
    """The first of the option and those with more workers that a run is expected to confirm; otherwise itself."""
    notes: list[str] = []
    one: Option | None = option
    for _ in range(_STEPS):
        if one is None or one.need is None or one.measured is None or one.need.machines > _machines(option):
            break
        here = min(one.need.workers, one.serving.at_once)
        rate = one.need.preview.rate * here / one.need.workers
        length = _seconds(one, seconds)
        goal = option.objective.slo_p99_ms
        if can_be_told(one.measured, rate, workers=here, seconds=length, slo_p99_ms=goal, seed=seed):
            return one, notes
        expected = f"p99 {one.need.preview.p99_ms:.3g} ms in the preview, too near to be told in {seconds:.0f} s"
        notes.append(_words(one, f"not tried: {expected} (about {seconds_to_tell(one.need.preview):.0f} s would do)"))
        one = more(one, seed=seed)
    return option, []


def _seconds(option: Option, left: float) -> float:
    """As long as it takes to tell, within what is left."""
    return left if option.need is None else min(seconds_to_tell(option.need.preview), left)


def _way(option: Option) -> tuple[object, ...]:
    """What two options share that are the same to the machine."""
    configuration, need_ = option.serving.configuration, option.need
    workers = 0 if need_ is None else need_.workers
    kind = configuration.kind if workers > 1 or configuration.kind == "pack" else "one"
    return kind, workers, configuration.threads, configuration.batch


def _machines(option: Option) -> int:
    return 0 if option.need is None else option.need.machines


def _words(option: Option, text: str) -> str:
    if option.need is None:
        return text
    machines = f" on {option.need.machines} machines" if option.need.machines > 1 else ""
    label = option.serving.configuration.label(option.need.workers)
    return f"{option.serving.name}, {label}{machines}: {text}"


def rank(options: Sequence[Option]) -> list[Option]:
    """Fewest machines first, then fewest cores, then what was measured just so, then least memory and CPU time."""

    def key(option: Option) -> tuple[float, ...]:
        if option.need is None or option.measured is None:
            return (float("inf"),)
        return (
            option.need.machines,
            option.cores,
            option.need.workers != option.serving.configuration.workers,
            option.pss_bytes or 0,
            option.measured.cpu_seconds,
        )

    return sorted((one for one in options if one.need is not None and not one.refused), key=key)
