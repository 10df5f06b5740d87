"""Make a plan: measure ways to serve each model, simulate the rate, and confirm the best by real runs."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import numpy as np

from onnxcomp import worker
from onnxcomp.bench import packs, trust
from onnxcomp.bench.environment import capture, usable_cores
from onnxcomp.errors import UsageError
from onnxcomp.model import fingerprint
from onnxcomp.plan import measure, prepare, verify
from onnxcomp.plan.choice import ModelPlan, Plan
from onnxcomp.plan.measure import Tell
from onnxcomp.plan.options import nearest, options
from onnxcomp.plan.prepare import ModelPath
from onnxcomp.plan.result import Objective, Option
from onnxcomp.settings import SessionSettings, taken

#: share of the time after which measuring ends and verifying begins
_MEASURING = 0.4


def plan(
    models: ModelPath | Sequence[ModelPath],
    *,
    rate: float,
    slo_p99_ms: float,
    price_per_hour: float | None = None,
    memory_limit: int | None = None,
    cores: int | None = None,
    data: ModelPath | None = None,
    sizes: Mapping[str, int] | None = None,
    batch: int | Sequence[int] | None = None,
    pack: bool = True,
    settings: SessionSettings | ModelPath | None = None,
    seconds: float = 60.0,
    seed: int | None = None,
) -> Plan:
    """Find how to serve models at a rate within a p99, what it takes of machines and memory, and what it costs.

    Args:
        models: paths of `.onnx` files with the same inputs, or of packs (`onnxcomp.pack`); the first is the
            reference.
        rate: requests per second, one sample each, arriving at random (Poisson).
        slo_p99_ms: 99 of 100 requests are to be answered within so many ms, waiting included.
        price_per_hour: of a machine; None: no cost is told.
        memory_limit: bytes that the workers of a machine may hold together (PSS).
        cores: of a machine; None: those of this one. Workers that have no core here are extrapolated.
        data: what is fed, see `onnxcomp.data.open_source`; None: seeded noise.
        sizes: sizes of symbolic axes, for noise.
        batch: samples that callers send together; several are compared, at the same samples per second.
            None: each request is a run of its own.
        pack: try processes on a pack, made for the occasion.
        settings: session options, or a settings file; `threads` and spinning are the plan's own choice.
        seconds: time budget of each model. Two rounds of all configurations are measured in any case.
        seed: of arrivals, noise and orders; None draws one, which the plan tells.

    Raises UsageError, and what `open_session`, `Batches` and `onnxcomp.bench.bench` raise. An objective that
    cannot be met is no error: see `Plan.verdict`.
    """
    paths = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    if not paths or not seconds > 0:
        raise UsageError("a plan takes a model, and a positive time", where=f"seconds={seconds:g}")
    objective = Objective(
        rate=rate,
        slo_p99_ms=slo_p99_ms,
        cores=usable_cores() if cores is None else cores,
        price_per_hour=price_per_hour,
        memory_limit=memory_limit,
    )
    seed = secrets.randbits(48) if seed is None else seed
    environment, before = capture(), trust.read_counters()
    begun, budget = time.monotonic(), seconds * len(paths)
    tell = _teller(begun, budget)
    given = packs.served(paths)
    files = tuple(fingerprint(one.path) for one in given)
    chosen, doubts = taken(settings, [one.sha256 for one in files])
    feeding = prepare.Feeding(data=data, sizes=sizes, batch=batch, seed=seed)
    with prepare.packed(given, sizes, wanted=pack and objective.cores > 1 and prepare.packable(chosen)) as served:
        servings = prepare.servings(served, len(given), objective.cores, chosen, feeding)
        first = measure.first(servings, tell)
        left = begun + _MEASURING * budget - time.monotonic()
        first, left_out = measure.affordable(first, left)
        measured = measure.rounds(first, seconds=left, seed=seed, tell=tell)
        found = options(first, measured, objective, seed=seed, tell=tell)
        until = verify.Clock(begun + budget, first.start_seconds)
        plans = _confirmed(found, [one.name for one in given], until, seed=seed, tell=tell)
    contention = max((m.contention for m in measured if m.contention is not None), default=None)
    notes = [*doubts, *(note for one in served for note in one.notes)]
    if any(one.clock == "cpu" for one in measured):
        notes.append(
            f"other work held the cores (a run took up to {contention:.1f} times its CPU time): rates and simulated "
            "p99 are those of CPU times, as if it were gone; only what was verified is known of this machine as it is"
        )
    if left_out:
        ways = {one.name: [it.configuration.label() for it in left_out if it.name == one.name] for one in left_out}
        words = "; ".join(f"{PurePath(name).name} by {', by '.join(labels)}" for name, labels in ways.items())
        notes.append(f"not measured for lack of time (raise --seconds): {words}")
    return Plan(
        objective=objective,
        environment=environment,
        trust=trust.judge(before, trust.read_counters(), environment, contention),
        models=files,
        plans=tuple(plans),
        notes=tuple(dict.fromkeys(notes)),
        seed=seed,
        seconds=seconds,
    )


def _confirmed(
    found: Sequence[Option], names: Sequence[str], clock: verify.Clock, *, seed: int, tell: Tell
) -> list[ModelPlan]:
    """Verify the best option of each model, in random order, and with the time that is left those of other kinds."""
    mine = {index: [one for one in found if one.serving.configuration.model == index] for index in range(len(names))}
    notes: dict[int, list[str]] = {index: [] for index in mine}
    order = [int(index) for index in np.random.default_rng(seed).permutation(len(names))]
    for place, index in enumerate(order):
        share = clock.part(len(order) - place)
        mine[index], notes[index] = verify.best(mine[index], share, seed=seed, tell=tell)
    for index in order:
        mine[index] = verify.others(mine[index], clock, seed=seed, tell=tell)
    return [
        ModelPlan(
            name=name,
            options=tuple(mine[index]),
            notes=tuple(notes[index]),
            judgement=verify.judged(mine[index]),
            nearest=nearest(mine[index], seed=seed),
        )
        for index, name in enumerate(names)
    ]


def _teller(begun: float, budget: float) -> Tell:
    """Report what is being done, and the share of the time that is over."""
    return lambda text: worker.report(text, min((time.monotonic() - begun) / budget, 1.0))
