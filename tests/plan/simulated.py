"""Configurations whose run times are known, on a clock of their own: no process is started."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.bench import queueing, traffic
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.turn import Turn
from onnxcomp.memory import Memory
from onnxcomp.plan.configuration import Configuration
from onnxcomp.plan.measure import First
from onnxcomp.plan.options import options
from onnxcomp.plan.result import Objective
from onnxcomp.plan.serving import Lap, Measured, Serving
from onnxcomp.settings import SessionSettings

MB = 10**6


@pytest.fixture(autouse=True)
def short_lines(monkeypatch):
    """Smaller simulations, so that tests which import this are quick."""
    monkeypatch.setattr(queueing, "_LINES", 20)
    monkeypatch.setattr(queueing, "_REQUESTS", 2000)


class Clock:
    """Time that only runs advance."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Simulated(Serving):
    """Workers whose runs take exponential times of this mean, and so much of it on the CPU."""

    mean_ms: float = 10.0
    live_mean_ms: float | None = None
    cpu_share: float = 1.0
    pss: int = 100 * MB
    clock: Clock = dataclasses.field(default_factory=Clock)
    runs: list = dataclasses.field(default_factory=list)

    def closed_loop(self, seconds):
        return self.lap(len(self.runs))

    def lap(self, seed, count=2000):
        wall = np.random.default_rng(seed).exponential(self.mean_ms, count)
        memory = Memory(self.pss, 10 * MB * self.at_once, 90 * MB, 10 * MB, 120 * MB)
        return Lap(
            Turn(
                runs=count,
                runs_per_second=self.at_once * 1e3 / self.mean_ms,
                wall_ns=wall * 1e6,
                cpu_ns=float(np.median(wall)) * 1e6 * self.cpu_share,
                cpu_ns_per_run=self.mean_ms * 1e6 * self.cpu_share,
                load_seconds=0.1,
                start_seconds=0.5,
                memory={"imported": memory, "loaded": dataclasses.replace(memory, pss_bytes=90 * MB), "ran": memory},
                outputs=("a",),
                outputs_equal=True,
            ),
            wall * self.cpu_share,
        )

    def open_loop(self, rate, seconds, *, workers, seed, slo_p99_ms):
        self.runs.append((rate, seconds, workers))
        self.clock.seconds += seconds
        due = traffic.poisson(rate, seconds, seed)
        mean = self.mean_ms if self.live_mean_ms is None else self.live_mean_ms
        work = (np.random.default_rng(seed + 1).exponential(mean, len(due)) * 1e6).astype(np.int64)
        ends = due + queueing.sojourns(due, work, workers).astype(np.int64)
        return traffic.Traffic(
            rate=rate,
            workers=workers,
            due_ns=due,
            taken_ns=ends - work,
            started_ns=ends - work,
            ended_ns=ends,
            cpu_ns=(work * self.cpu_share).astype(np.int64),
            failed=np.zeros(len(due), bool),
            memory=Memory(self.pss, 10 * MB * self.at_once, 90 * MB, 10 * MB, 120 * MB),
        )


def serving(*, kind="threads", workers=1, threads=1, at_once=None, name="m.onnx", model=0, requests=1, **more):
    return Simulated(
        configuration=Configuration(
            model=model, kind=kind, workers=workers, threads=threads, batch=requests, requests=requests
        ),
        name=name,
        path=Path(name),
        feeds=Feeds(({"x": np.zeros((requests, 4), np.float32)},), requests, "noise", True),
        settings=SessionSettings(threads=threads),
        at_once=at_once or workers,
        **more,
    )


def measured(one, *, rounds=2, clock="wall"):
    return Measured(one, tuple(one.lap(seed) for seed in range(rounds)), clock)


def objective(**more):
    return Objective(**{"rate": 60.0, "slo_p99_ms": 60.0, "cores": 4, "price_per_hour": 0.36, **more})


def option(one, *, rounds=2, clock="wall", **more):
    """What the plan says of one configuration."""
    (found,) = options(First((one,), (), 0.01, 0.1), [measured(one, rounds=rounds, clock=clock)], objective(**more),
                       seed=1, tell=lambda _: None)  # fmt: skip
    return found
