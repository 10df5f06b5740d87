"""How many machines and workers a rate takes, what they hold and cost: against formulas, without a process."""

from __future__ import annotations

import dataclasses
import math

import pytest
import simulated
from simulated import MB, short_lines  # noqa: F401 - a fixture

from onnxcomp.bench import queueing
from onnxcomp.bench.statistics import Estimate
from onnxcomp.errors import UsageError
from onnxcomp.plan.configuration import KINDS, candidates
from onnxcomp.plan.measure import First, affordable, rounds
from onnxcomp.plan.options import nearest
from onnxcomp.plan.result import per_million


def test_the_highest_rate_of_one_worker_is_that_of_the_formula():
    """M/M/1: p99 of the time in the system is ln(100) / (service rate - arrival rate)."""
    found = simulated.option(simulated.serving(mean_ms=10.0), rate=5.0)
    expected = 100 - math.log(100) / 0.060
    assert found.capacity.value == pytest.approx(expected, rel=0.2)
    assert found.capacity.low < found.capacity.value < found.capacity.high
    assert (found.need.machines, found.need.workers) == (1, 1)


def test_no_fewer_workers_hold_the_objective_and_no_fewer_machines():
    found = simulated.option(simulated.serving(workers=4), rate=200.0)
    services = found.measured.services_ms
    assert found.need.machines == 1
    assert found.need.workers in (3, 4)
    assert found.need.preview.p99_ms <= 60
    if found.need.workers == 4:  # two could not even keep up
        assert queueing.preview(services, 200.0, workers=3, seed=1).p99_ms > 60
    beyond = simulated.option(simulated.serving(workers=4), rate=1000.0)
    assert beyond.need.machines == math.ceil(1000 / beyond.capacity.value)
    assert beyond.extrapolated
    assert not found.extrapolated


def test_a_slower_model_needs_more_workers():
    fast, slow = (simulated.option(simulated.serving(workers=2, mean_ms=m), rate=400.0) for m in (3.0, 9.0))
    assert slow.workers >= 3 * fast.workers


def test_what_takes_longer_than_the_objective_is_refused_and_the_nearest_is_told():
    found = simulated.option(simulated.serving(mean_ms=50.0))
    assert (found.capacity, found.need, found.verdict) == (None, None, "missed")
    assert "a run alone takes" in found.refused
    assert nearest([found], seed=1)["slo_p99_ms"] == pytest.approx(1.5 * found.service_p99_ms)


def test_a_memory_limit_takes_workers_away_and_refuses_what_does_not_fit():
    one = simulated.serving(kind="processes", workers=4)  # 100 MB of four, 10 MB of each for itself
    assert simulated.option(one).measured.pss_bytes(2) == 80 * MB
    assert simulated.option(one, memory_limit=100 * MB).most == 4
    assert simulated.option(one, memory_limit=85 * MB).most == 2
    held = simulated.option(one, memory_limit=85 * MB, rate=200.0)
    assert held.need.machines == 2  # two workers do not hold it
    refused = simulated.option(one, memory_limit=60 * MB)
    assert "70000000 bytes, the limit is 60000000" in refused.refused
    assert nearest([refused], seed=1) == {"memory_limit": 70 * MB, "configuration": "1 worker"}


def test_threads_add_what_their_runs_take():
    found = simulated.measured(simulated.serving(kind="threads", workers=2))
    assert found.pss_bytes(2) == 100 * MB
    assert found.pss_bytes(4) == 110 * MB  # 10 MB since the model was opened, by two


def test_cost_is_that_of_whole_machines_and_of_full_use():
    assert per_million(0.36, 2, 100.0) == pytest.approx(2.0)
    assert per_million(1.0, 1, 0.0) == math.inf
    found = simulated.option(simulated.serving(workers=4), rate=100.0)
    need = dataclasses.replace(found.need, machines=2)
    found = dataclasses.replace(found, capacity=Estimate(60.0, 40.0, 110.0), need=need)
    assert found.cost.to_json() == pytest.approx({"value": 2.0, "low": 1.0, "high": 3.0})
    full = {"value": 0.36e6 / (60 * 3600), "low": 0.36e6 / (110 * 3600), "high": 0.36e6 / (40 * 3600)}
    assert found.cost_at_full_use.to_json() == pytest.approx(full)
    assert simulated.option(simulated.serving(), price_per_hour=None).cost is None


def test_requests_that_come_together_are_counted_one_by_one():
    single, eight = (simulated.option(simulated.serving(requests=n), rate=40.0) for n in (1, 8))
    assert eight.capacity.value == pytest.approx(8 * single.capacity.value)
    assert eight.need.preview.rate == pytest.approx(5.0)  # runs
    assert eight.measured.cpu_seconds == pytest.approx(0.010 / 8)


def test_where_other_work_holds_the_cores_cpu_times_count():
    ours = simulated.serving(mean_ms=30.0, cpu_share=0.2)
    two_threads = simulated.serving(threads=2, mean_ms=30.0, cpu_share=0.2)
    found = rounds(First((ours, two_threads), (), 0.01, 0.1), seconds=1.0, seed=1, tell=lambda _: None, clock=float)
    assert [one.clock for one in found] == ["cpu", "wall"]
    assert found[0].services_ms.mean() == pytest.approx(6.0, rel=0.1)
    quiet = simulated.serving(mean_ms=30.0)
    (found,) = rounds(First((quiet,), (), 0.01, 0.1), seconds=1.0, seed=1, tell=lambda _: None, clock=float)
    assert found.clock == "wall"
    assert len(found.laps) == 16  # the clock stands still


def test_what_there_is_no_time_for_is_left_out_the_least_likely_first():
    every = tuple(
        simulated.serving(kind=way.kind, workers=way.workers, threads=way.threads, model=model)
        for model in (0, 1)
        for way in candidates(model, cores=2, here=2)
    )
    first = First(every, (), 0.01, 0.7)
    assert affordable(first, 100.0) == (dataclasses.replace(first), ())
    kept, left_out = affordable(first, 10.5)  # five, of 0.7 + 0.3 seconds twice
    assert [one.configuration.label() for one in kept.fitting] == ["2 threads on one session", "1 worker"] * 2
    assert len(left_out) == len(every) - 4
    kept, _ = affordable(first, 0.1)  # one of each model in any case
    assert [one.configuration.model for one in kept.fitting] == [0, 1]


def test_candidates_use_all_cores_half_of_them_and_one():
    labels = [way.label() for way in candidates(0, cores=8, here=4, kinds=KINDS)]
    assert labels == [
        *("8 threads on one session", "4 threads on one session", "1 worker"),
        *("8 processes", "4 processes", "8 processes on a pack", "4 processes on a pack"),
        *("4 threads on one session, 2 intra-op threads", "2 threads on one session, 4 intra-op threads"),
    ]
    assert [way.at_once(4) for way in candidates(0, cores=8, here=4)][:3] == [4, 4, 1]
    assert [way.spinning for way in candidates(0, cores=2, here=2, kinds=("threads",))] == [False, False, False, True]


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"slo_p99_ms": -1}, {"price_per_hour": math.nan}, {"memory_limit": 0}])
def test_an_objective_is_positive(wrong):
    with pytest.raises(UsageError, match="must be a positive number"):
        simulated.objective(**wrong)
