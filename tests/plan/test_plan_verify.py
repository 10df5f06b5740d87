"""Which options are tried, for how long, and what their runs make of the preview; no process is started."""

from __future__ import annotations

import dataclasses

import pytest
import simulated
from simulated import short_lines  # noqa: F401 - a fixture

from onnxcomp.plan import choice, verify
from onnxcomp.plan.choice import ModelPlan
from onnxcomp.plan.need import seconds_to_tell


def confirm(found, seconds=600.0):
    clock = found.serving.clock
    return verify.confirm(found, verify.Clock(seconds, 0.0, clock), seed=3, tell=lambda _: None)


def test_what_holds_is_met_in_no_more_time_than_it_takes_to_tell():
    found = simulated.option(simulated.serving(workers=4, mean_ms=4.0), rate=100.0)
    tried, notes = confirm(found)
    assert (tried.verdict, notes) == ("met", [])
    ((rate, seconds, workers),) = tried.serving.runs
    assert (rate, workers) == (100.0, found.need.workers)
    assert seconds == pytest.approx(seconds_to_tell(found.need.preview))
    assert tried.to_json()["verified"]["p99_ms"]["high"] <= 60


def test_what_does_not_hold_gets_more_workers_then_machines():
    found = simulated.option(simulated.serving(workers=2, mean_ms=4.0, live_mean_ms=8.0), rate=100.0)
    tried, notes = confirm(found)
    assert tried.verdict == "met"
    assert tried.workers > found.workers
    assert "missed: " in notes[0]
    assert verify.rank([found, tried])[0] is found  # it would be chosen if it held


def test_what_takes_too_long_alone_is_missed_and_not_tried_again():
    one = simulated.serving(workers=2, mean_ms=4.0, live_mean_ms=20.0)
    tried, notes = confirm(simulated.option(one, rate=10.0))
    assert (tried.verdict, notes, len(one.runs)) == ("missed", [], 1)
    assert verify.judged([tried]).verdict == "missed"


def test_what_lies_too_near_to_be_told_is_not_tried():
    near = simulated.option(simulated.serving(workers=4, mean_ms=10.0), rate=50.0, slo_p99_ms=100.0)
    assert near.need.workers == 1
    tried, notes = confirm(near, seconds=60.0)
    assert tried.need.workers == 2
    assert tried.verdict == "met"
    assert "too near to be told in 60 s" in notes[0]
    assert len(tried.serving.runs) == 1


def test_too_few_requests_tell_nothing():
    tried, _ = confirm(simulated.option(simulated.serving(mean_ms=2.0), rate=2.0), seconds=20.0)
    assert tried.verdict == "undecided"
    assert "measure longer" in tried.trial.judgement.reason


def test_no_time_no_trial():
    tried, notes = confirm(simulated.option(simulated.serving()), seconds=0.1)
    assert (tried.trial, notes) == (None, [])
    assert verify.judged([tried]).verdict == "undecided"


def test_a_busy_machine_decides_nothing_against_a_model_and_is_not_tried_again():
    one = simulated.serving(workers=2, mean_ms=4.0, live_mean_ms=40.0, cpu_share=0.1)
    tried, _ = confirm(simulated.option(one, rate=100.0))
    assert tried.verdict == "undecided"
    assert "10.0 times its CPU time" in tried.trial.judgement.reason
    assert len(one.runs) == 1


def test_a_machine_that_is_not_here_is_tried_by_its_part():
    one = simulated.serving(workers=8, at_once=2, mean_ms=4.0)
    found = simulated.option(one, rate=1850.0, cores=8)
    assert found.need.workers == 8
    assert found.extrapolated
    tried = verify.trial(found, 30.0, seed=3, tell=lambda _: None)
    assert one.runs == [(pytest.approx(1850.0 / 4), 30.0, 2)]
    assert tried.pss_bytes == found.measured.pss_bytes(8)  # estimated still
    slow = dataclasses.replace(found, serving=dataclasses.replace(one, live_mean_ms=20.0))
    judged = verify.trial(slow, 30.0, seed=3, tell=lambda _: None).trial.judgement
    assert judged.verdict == "undecided"
    assert "more than this host has cores for" in judged.reason


def test_workers_that_hold_too_much_miss_the_limit():
    one = simulated.serving(mean_ms=2.0, pss=100)
    found = simulated.option(one, memory_limit=100)
    grown = dataclasses.replace(found, serving=dataclasses.replace(one, pss=101))
    tried = verify.trial(grown, 60.0, seed=1, tell=lambda _: None)
    assert tried.verdict == "missed"
    assert "101 bytes, the limit is 100" in tried.trial.judgement.reason


def planned(name, mean_ms, *, rate=300.0, **more):
    found = simulated.option(simulated.serving(name=name, workers=2, mean_ms=mean_ms, **more), rate=rate)
    options, notes = verify.best([found], verify.Clock(600.0, 0.0, lambda: 0.0), seed=3, tell=lambda _: None)
    return ModelPlan(
        name=name, options=tuple(options), notes=tuple(notes), judgement=verify.judged(options), nearest=None
    )


def test_models_are_compared_by_the_workers_that_they_need():
    slow, fast = planned("a/fp32.onnx", 12.0), planned("a/int8.onnx", 3.0)
    compared = choice.compared(slow, fast)
    assert compared["workers"] == {"candidate": fast.best.workers, "reference": slow.best.workers}
    assert fast.best.workers < slow.best.workers
    start = f"int8.onnx needs {fast.best.workers} workers where fp32.onnx needs {slow.best.workers}"
    assert compared["statement"].startswith(start)
    assert "assumed independent" in compared["statement"]
    hopeless = planned("b.onnx", 50.0)
    assert (hopeless.best, hopeless.judgement.verdict) == (None, "missed")
    assert choice.compared(slow, hopeless)["statement"] == "nothing that was measured of b.onnx holds the objective"


def test_of_models_on_as_many_cores_the_one_that_takes_least_of_them_is_started():
    slow, fast = planned("a/fp32.onnx", 4.0, rate=60.0), planned("a/int8.onnx", 2.0, rate=60.0, pss=500 * simulated.MB)
    assert slow.best.cores == fast.best.cores == 1
    both = choice.Plan(
        objective=slow.best.objective, environment=None, trust=None, models=(), plans=(slow, fast), notes=(), seed=1,
        seconds=1.0,
    )  # fmt: skip
    assert (both.verdict, both.best) == ("met", fast.best)


def test_other_kinds_are_verified_with_the_time_that_is_left():
    threads, processes = (
        simulated.option(simulated.serving(kind=kind, workers=2, mean_ms=4.0, pss=pss), rate=300.0)
        for kind, pss in (("threads", 100), ("processes", 200))
    )
    clock = verify.Clock(600.0, 0.0, lambda: 0.0)
    options, _ = verify.best([processes, threads], clock, seed=3, tell=lambda _: None)
    assert [one.verdict for one in options] == [None, "met"]  # the one that takes less memory
    options = verify.others(options, clock, seed=3, tell=lambda _: None)
    assert [one.verdict for one in options] == ["met", "met"]


def test_what_is_started_can_be_read_by_pack(tmp_path):
    from onnxcomp import documents
    from onnxcomp.pack import triton

    best = planned("a/int8.onnx", 3.0).best
    (tmp_path / "plan.json").write_text(documents.to_text({"best": choice.start(best)}))
    read = triton.read_plan(tmp_path / "plan.json", 7)
    assert (read.workers, read.threads, read.batch, read.queue_delay_ms) == (best.need.workers, 1, 1, 0.0)
