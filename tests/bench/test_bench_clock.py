import gc
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
