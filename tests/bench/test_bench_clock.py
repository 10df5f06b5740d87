import gc
import itertools
import sys
import time

from onnxcomp.bench import clock as clocks


def test_a_sleep_costs_wall_but_no_cpu():
    tick = clocks.Clock().time(lambda: time.sleep(0.05))
    assert isinstance(tick.wall_ns, int)
    assert isinstance(tick.cpu_ns, int)
    assert tick.wall_ns > 10 * tick.cpu_ns > 0


def test_every_call_is_made_once():
    calls = []
    clocks.Clock().time(lambda: calls.append(1))
    assert calls == [1]


def test_a_series_adds_one_entry_per_call_until_the_time_or_the_count():
    clock, seen, wall, cpu = clocks.Clock(), [], [7], [7]
    turns = itertools.cycle([lambda: seen.append("a"), lambda: time.sleep(0.02)])
    clock.series(turns, wall, cpu, until=sys.maxsize, most=5)
    assert len(wall) == len(cpu) == 5
    assert seen == ["a", "a"]
    assert wall[2] > 10 * cpu[2] > 0  # the sleep
    clock.series(turns, wall, cpu, until=0, most=100)  # goes on where it was, and makes one call at least
    assert len(wall) == len(cpu) == 6
    assert len(seen) == 3
    clock.series(turns, wall, cpu, until=time.perf_counter_ns() + 30_000_000, most=10**6)
    assert sum(ns > 10_000_000 for ns in wall[6:]) in (1, 2)


def test_the_clock_follows_provider_and_threads():
    assert clocks.clock_for("cpu", 1).cpu_name == "thread"
    for provider, threads in (("cpu", 2), ("cpu", 0), ("cuda", 1)):
        assert clocks.clock_for(provider, threads).cpu_name == "process"


def test_quiet_stops_the_collector_and_restores_it():
    assert gc.isenabled()
    with clocks.quiet():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with clocks.quiet():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_overhead_is_measured_once():
    assert clocks.Clock().overhead() is clocks.Clock().overhead()
    assert clocks.Clock().overhead().wall_ns >= 0
