import itertools
import json
import time

import pytest

from onnxcomp.bench import latency
from onnxcomp.bench.clock import Clock, Tick


class ScriptedClock(Clock):
    """Gives the durations of a script; the last one for ever."""

    def __init__(self, *nanoseconds, per_process=False):
        super().__init__(per_process)
        object.__setattr__(self, "script", list(nanoseconds))

    def time(self, call):
        call()
        value = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return Tick(value * 2, value)

    def series(self, calls, wall_ns, cpu_ns, *, until, most):
        for call in itertools.islice(calls, most - len(wall_ns)):
            tick = self.time(call)
            wall_ns.append(tick.wall_ns)
            cpu_ns.append(tick.cpu_ns)
            if time.perf_counter_ns() >= until:
                return


def nothing():
    return None


def test_warm_up_ends_when_two_windows_agree():
    falling = [1000 - 30 * i for i in range(20)]
    warm = latency.warm_up([nothing], ScriptedClock(*falling, 400))
    assert warm.stable
    assert 25 <= warm.runs <= 35
    assert latency.warm_up([nothing], ScriptedClock(400)).runs == 11


def test_warm_up_gives_up_after_fifty_runs():
    alternating = [100 * 2**i for i in range(60)]
    warm = latency.warm_up([nothing], ScriptedClock(*alternating))
    assert (warm.runs, warm.stable) == (51, False)


class ClockOfLengths(Clock):
    """What is called returns how long it takes; each first run takes ten times as long."""

    def __init__(self):
        super().__init__(False)
        object.__setattr__(self, "seen", set())

    def time(self, call):
        value = call() * (1 if call in self.seen else 10)
        self.seen.add(call)
        return Tick(value, value)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 60])
def test_feeds_of_other_lengths_take_other_times_and_are_stable_all_the_same(count):
    calls = [lambda i=i: 1000 * (i + 1) for i in range(count)]
    warm = latency.warm_up(calls, ClockOfLengths(), seconds=60)
    apart = -(-5 // count) * count
    assert (warm.runs, warm.stable) == (count + apart + 5, True)


def test_warm_up_of_a_slow_model_makes_three_runs():
    assert latency.warm_up([nothing], ScriptedClock(1), seconds=0) == latency.WarmUp(3, False)


def test_warm_up_runs_every_feed():
    seen = []
    latency.warm_up([lambda i=i: seen.append(i) for i in range(7)], ScriptedClock(1), seconds=0)
    assert set(seen) == set(range(7))


def test_the_loop_cycles_the_feeds_and_counts():
    seen = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    found = latency.measure(calls, ScriptedClock(1_000_000), samples_per_run=4, max_runs=30, seconds=60)
    assert len(found.wall_ns) == len(found.cpu_ns) == 30
    assert seen[-30:] == [i % 3 for i in range(30)]
    assert found.throughput().value == pytest.approx(4 / 0.002)
    assert found.contention == 2


def test_no_time_still_gives_three_runs_and_no_tail():
    found = latency.measure([nothing], ScriptedClock(5), seconds=1e-9)
    assert len(found.wall_ns) == 3
    p99 = found.percentiles()["p99"]
    assert p99["value"] is None
    assert p99["needed"] == 299
    assert not p99["estimable"]


def test_outliers_are_kept():
    found = latency.measure([nothing], ScriptedClock(*[10] * 60, 5000, 10), max_runs=100, seconds=60)
    out = found.to_json()
    assert out["outliers"] == 1
    assert max(out["samples"]["wall_ns"]) == 10_000
    assert out["runs"] == 100
    json.dumps(out, allow_nan=False)
    assert "samples" not in found.to_json(samples=False)


def test_progress_rises(monkeypatch):
    monkeypatch.setattr(latency, "_REPORT_EVERY", 0.0)
    heard = []
    latency.measure([nothing], ScriptedClock(5), max_runs=20, seconds=60, progress=heard.append)
    assert heard == sorted(heard)
    assert 0 <= heard[0] <= heard[-1] <= 1
