"""An open loop: who serves what when, what counts as latency, verdicts, and the search for a rate."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time

import bench_models
import numpy as np
import pytest
from lines import Line, served

from onnxcomp import replicas
from onnxcomp.bench import bench, queueing, server, slo, statistics, traffic
from onnxcomp.errors import DataError, UsageError
from onnxcomp.replicas import Arrivals

MS = 1_000_000


@pytest.fixture
def model(tmp_path):
    return bench_models.linear(tmp_path / "m.onnx")


def serve(folder, due_ms, run, *, workers=1, patience_ms=60_000):
    """Threads that work through a line with this instead of a session."""
    line = replicas.Line.make(folder / "line")
    due = (np.asarray(due_ms, float) * MS).astype(np.int64)
    arrivals = Arrivals(due_ns=due, patience_ns=int(patience_ms * MS), line=line)
    feeds = [{"n": np.array(i)} for i in range(3)]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda _: replicas.serve(run, feeds, arrivals), range(workers)))
    return found, traffic.gather(found, rate=100.0, workers=workers, due_ns=due)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_request_is_served_once_in_the_order_of_arrival(tmp_path, workers):
    fed = []
    found, run = serve(tmp_path, np.linspace(0, 40, 60), lambda feed: fed.append(int(feed["n"])), workers=workers)
    numbers = np.concatenate([s.number for s in found])
    assert sorted(numbers) == list(range(60))
    assert sorted(fed) == sorted(i % 3 for i in range(60))
    assert run.served == 60
    assert (run.started_ns >= run.due_ns).all()  # never early
    assert (run.started_ns >= run.taken_ns).all()
    assert (np.diff(run.taken_ns) >= 0).all() or workers > 1
    assert (run.lateness_ms >= 0).all()
    assert run.abandoned == run.failed.sum() == 0


def test_a_stall_lengthens_what_waits_behind_it(tmp_path):
    stalls = iter([0.1])
    _, run = serve(tmp_path, [0, 1, 2, 3, 400], lambda _: time.sleep(next(stalls, 0)))
    latency = (run.ended_ns - run.due_ns) / MS
    assert (latency[:4] >= [100, 99, 98, 97]).all()  # a closed loop would have seen one long run
    assert (run.waiting[:4] >= [0, 0, 1, 2]).all()
    assert (run.lateness_ms[1:4] <= latency[1:4] - 90).all()  # waiting in line is not our delay


def test_a_line_that_only_grows_is_given_up(tmp_path):
    found, run = serve(tmp_path, np.arange(200), lambda _: time.sleep(0.02), patience_ms=100, workers=2)
    assert run.gave_up_ns > 100 * MS
    assert run.served < 200
    assert run.served + run.abandoned <= 200
    assert run.abandoned > 0
    assert sorted(np.concatenate([s.number for s in found])) == list(range(run.served))  # no gap
    prompt = dataclasses.replace(run, taken_ns=run.started_ns)  # how late a busy machine wakes us does not matter here
    assert slo.judge(prompt, 10.0).verdict == "missed"
    assert run.to_json()["abandoned"] == run.abandoned


def test_errors_are_counted(tmp_path):
    def run(feed):
        if feed["n"] == 1:
            raise DataError("no such index")

    _, found = serve(tmp_path, np.arange(9), run)
    out = found.to_json()
    assert out["errors"] == 3
    assert "no such index" in out["first_error"]
    assert len(found.latency_ms) == 6
    assert slo.judge(found, 1e6).verdict == "missed"


def test_what_a_run_says():
    due = np.array([0, 10, 20, 1000]) * MS
    run = served(due, np.full(4, 30 * MS), rate=5.0)
    assert list(run.latency_ms) == [30, 50, 70, 30]
    assert list(run.waiting) == [0, 0, 1, 0]
    assert list(run.lateness_ms) == [0, 0, 0, 0]
    assert run.seconds == pytest.approx(1.03)
    assert run.utilisation == pytest.approx(0.12 / 1.03)
    assert run.achieved_rate == pytest.approx(4 / 1.03)
    assert served(due, np.full(4, 30 * MS), workers=2).utilisation == pytest.approx(0.06 / 1.03)


def test_arrivals_are_poisson_and_the_same_pattern_at_every_rate():
    due = traffic.poisson(1000, 20, 1)
    gaps = np.diff(due) / MS
    assert len(due) == pytest.approx(20_000, rel=0.03)
    assert gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert gaps.std() == pytest.approx(1.0, rel=0.05)
    half = traffic.poisson(500, 20, 1)
    assert half[:100] / 2 == pytest.approx(due[:100], abs=2)
    assert list(traffic.poisson(1000, 20, 2)[:5]) != list(due[:5])
    assert len(traffic.poisson(0.001, 1, 1)) == 0


def test_verdicts():
    run = Line(1)(300, 30)  # M/M/1 at 30 %: p99 is 6.6 ms
    assert slo.judge(run, 9.0) == slo.Judgement("met")
    assert slo.judge(run, 4.0).verdict == "missed"
    close = slo.judge(run, run.percentile(0.99).value)
    assert close.verdict == "undecided"
    assert "measure longer" in close.reason
    early = slo.judge(Line(1)(300, 0.5), 0.3)  # too short for p99; half of the requests take longer
    assert early.verdict == "missed"
    assert early.reason.startswith("p50")
    short = slo.judge(Line(1)(300, 0.5), 1000.0)
    assert short.verdict == "undecided"
    assert "requests" in short.reason


def test_a_load_that_is_late_decides_nothing():
    run = Line(1)(300, 30)
    late = dataclasses.replace(run, started_ns=run.started_ns + 2 * MS)
    assert slo.judge(late, 1000.0).verdict == "met"
    found = slo.judge(late, 15.0)
    assert found.verdict == "undecided"
    assert "late by up to 2 ms" in found.reason


def test_a_stall_every_two_seconds_shows_in_an_open_loop_only():
    """The mistake of coordinated omission: half load, and a server that sleeps for 100 ms every 2 s."""
    step, stall, period = 2 * MS, 100 * MS, 2000 * MS
    clock, closed = 0, []
    while clock < 60_000 * MS:
        begun, clock = clock, clock + step
        if clock // period > begun // period:
            clock += stall
        closed.append((clock - begun) / MS)
    assert statistics.percentile(closed, 0.99).high == 2
    due = traffic.poisson(250, 60, 3)
    free, ends = 0, []
    for at in due:
        begun = max(int(at), free)
        free = begun + step
        if free // period > begun // period:
            free += stall
        ends.append(free)
    run = dataclasses.replace(served(due, np.full(len(due), step)), ended_ns=np.array(ends))
    assert run.percentile(0.99).low > 60


def test_the_search_finds_the_rate_of_m_m_1():
    line = Line(2, starting=0.5)
    first = slo.first_rate(line.services_ms(2000), 10.0, 45.0, seed=2)
    found = slo.search(line, slo_p99_ms=10.0, guess=first, seconds=180, clock=line.clock)
    best, judged = found.trials[found.best]
    assert judged.verdict == "met"
    truth = 1000 * (1 + np.log(0.01) / 10)  # p99 itself meets the objective here; its upper bound a little below
    assert 0.7 * truth < best.rate < 1.1 * truth
    assert best.rate < found.failed_rate
    assert all(t.rate < found.failed_rate or j.verdict != "met" for t, j in found.trials)
    assert line.now < 180 * 1.2
    out = json.loads(json.dumps(found.to_json()))
    assert [t["rate"] for t in out["trials"]] == line.rates


def test_the_search_repeats_itself():
    rates = []
    for seed in range(6):
        line = Line(seed, shape=25.0)
        first = slo.first_rate(line.services_ms(1000), 10.0, 45.0, seed=seed)
        found = slo.search(line, slo_p99_ms=10.0, guess=first, seconds=180, clock=line.clock)
        assert found.converged
        rates.append(found.trials[found.best][0].rate)
    assert max(rates) / min(rates) < 1.2
    assert 0.85 < np.median(rates) / queueing.highest_rate(line.services_ms(20_000), 10.0) < 1.02


@pytest.mark.parametrize(("guess", "direction"), [(5000.0, -1), (20.0, 1)])
def test_a_bad_first_guess_costs_runs_but_no_error(guess, direction):
    line = Line(3, shape=25.0, starting=0.0)
    found = slo.search(line, slo_p99_ms=10.0, guess=guess, seconds=400, clock=line.clock)
    steps = np.diff(line.rates)
    assert steps[0] * direction > 0
    if found.best is not None:
        assert found.trials[found.best][1].verdict == "met"
        assert found.trials[found.best][0].rate < 850
    assert found.best is not None or all(r > 600 for r in line.rates)


def test_nothing_meets_an_objective_below_the_service_itself():
    line = Line(4)
    assert slo.first_rate(line.services_ms(1000), 2.0, 10.0) is None
    found = slo.search(line, slo_p99_ms=2.0, guess=200.0, seconds=100, clock=line.clock)
    assert found.best is None
    assert not found.converged


def test_a_rate_is_measured_end_to_end(model):
    found = bench(model, scenario="server", rate=400, slo_p99_ms=60_000, workers=2, seconds=2, seed=5)
    (one,) = json.loads(json.dumps(found.to_json(), allow_nan=False))["results"]
    assert (one["scenario"], one["workers"], one["kind"], one["batch"]) == ("server", 2, "threads", 1)
    assert set(one["latency_ms"]) == {"p50", "p90", "p95", "p99"}
    assert one["rate"] == 400
    assert one["requests"] == len(traffic.poisson(400, 1.8, 5))
    assert 0 < one["utilisation"] < 1
    assert one["errors"] == one["abandoned"] == 0
    assert one["lateness_ms"]["p99"] >= 0
    assert one["slo"]["p99_ms"] == 60_000
    assert one["slo"]["verdict"] in ("met", "undecided")  # how long the runs must be depends on the machine
    assert one["memory"]["pss_bytes"] > 0
    assert one["placement"]["providers"]["cpu"]["share"] == 1.0
    assert one["search"] is None
    assert len(one["samples"]["wall_ns"]) == one["requests"] - one["warm_up_requests"]
    assert "samples" not in found.to_json(samples=False)["results"][0]


def test_a_search_end_to_end_with_processes(model):
    found = bench(model, scenario="server", slo_p99_ms=60_000, workers=2, processes=True, seconds=1, seed=6)
    (one,) = found.to_json()["results"]
    assert one["kind"] == "processes"
    assert one["search"]["trials"]
    assert one["slo"]["highest_rate"] is None or one["slo"]["highest_rate"] == one["rate"]
    assert one["preview_rate"] > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scenario": "server"}, "needs a rate, or an objective"),
        ({"scenario": "server", "rate": 0}, "rate must be a positive number"),
        ({"scenario": "server", "rate": float("nan")}, "rate must be a positive number"),
        ({"scenario": "server", "rate": 5, "slo_p99_ms": -1}, "slo_p99_ms must be a positive number"),
        ({"scenario": "server", "rate": float("inf")}, "rate must be a positive number"),
        ({"scenario": "server", "rate": 5, "workers": 0}, "at least one worker"),
        ({"scenario": "server", "rate": 5, "pack": True}, "packs are for the scenario 'workers'"),
        ({"rate": 5}, "for the scenario 'server'"),
        ({"slo_p99_ms": 5, "scenario": "throughput"}, "for the scenario 'server'"),
        ({"processes": True}, "processes are a choice"),
        ({"scenario": "cold", "workers": 2}, "workers are for the scenarios"),
    ],
)
def test_usage(model, options, text):
    with pytest.raises(UsageError, match=text):
        bench(model, **options)


@pytest.mark.parametrize(
    ("slo_ms", "seconds", "verdict", "reason"),
    [
        (10.0, 120, "met", ""),
        (2.0, 120, "missed", "p9"),  # the service alone takes longer
        (6.0, 8, "undecided", "no rate that was tried held"),  # the runs are too short to tell
    ],
)
def test_what_a_search_concludes(model, monkeypatch, slo_ms, seconds, verdict, reason):
    line = Line(7)
    monkeypatch.setattr(server._Server, "_probe", lambda self: line.services_ms(2000))
    monkeypatch.setattr(server._Server, "trial", lambda self, rate, seconds: line(rate, seconds))
    monkeypatch.setattr(slo.search, "__kwdefaults__", {"clock": line.clock})
    (one,) = bench(model, scenario="server", slo_p99_ms=slo_ms, workers=1, seconds=seconds, seed=7).to_json()["results"]
    assert one["slo"]["verdict"] == verdict
    assert one["slo"]["reason"].startswith(reason)
    assert one["slo"]["highest_rate"] == (one["rate"] if verdict == "met" else None)
    assert (one["preview_rate"] is None) == (verdict == "missed")
    if verdict == "undecided":
        assert one["rate"] == min(t["rate"] for t in one["search"]["trials"])


def test_a_rate_without_a_request_is_refused(model):
    with pytest.raises(UsageError, match="no request is due"):
        bench(model, scenario="server", rate=1e-6, workers=1, seconds=0.3)
