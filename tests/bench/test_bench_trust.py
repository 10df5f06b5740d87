import dataclasses
import resource
from types import SimpleNamespace

import pytest

from onnxcomp.bench import trust
from onnxcomp.bench.environment import capture

CALM = trust.Counters(seconds=0.0, steal_seconds=0.0, involuntary_switches=0, throttled_ns=0)


@pytest.fixture(scope="module")
def quiet_host():
    ort = {"distributions": ["onnxruntime 1.32.0"]}
    return dataclasses.replace(capture(), cores=2, governor="performance", load_average=(0.1, 0.1, 0.1), ort=ort)


def judge(host, contention=1.0, **after):
    return trust.judge(CALM, dataclasses.replace(CALM, seconds=10.0, **after), host, contention)


def test_nothing_wrong_is_good(quiet_host):
    assert judge(quiet_host) == trust.Trust("good", ())
    assert judge(quiet_host, contention=None).grade == "good"


@pytest.mark.parametrize(
    ("name", "fair", "poor"),
    [
        ("contended", {"contention": 1.2}, {"contention": 3.0}),
        ("switches", {"involuntary_switches": 400}, {"involuntary_switches": 5000}),
        ("steal", {"steal_seconds": 0.4}, {"steal_seconds": 4.0}),
        ("throttled", {"throttled_ns": 10**8}, {"throttled_ns": 2 * 10**9}),
    ],
)
def test_each_disturbance_is_named(quiet_host, name, fair, poor):
    for grade, after in (("fair", fair), ("poor", poor)):
        found = judge(quiet_host, **after)
        assert found.grade == grade
        assert [r.name for r in found.reasons] == [name]
        reason = found.to_json()["reasons"][0]
        assert reason["text"]
        assert reason["hint"]
        assert reason["grade"] == grade


def test_what_the_host_is(quiet_host):
    noisy = dataclasses.replace(
        quiet_host,
        governor="powersave",
        load_average=(9.0, 1.0, 1.0),
        ort={"distributions": ["onnxruntime 1.32.0", "onnxruntime-gpu 1.31.1"]},
    )
    found = judge(noisy)
    assert found.grade == "poor"
    assert {r.name for r in found.reasons} == {"governor", "load", "ort"}


def test_unreadable_counters_are_no_reason(quiet_host):
    before = dataclasses.replace(CALM, steal_seconds=None, throttled_ns=None)
    assert trust.judge(before, dataclasses.replace(before, seconds=1.0), quiet_host, 1.0).grade == "good"


def test_counters_of_this_process():
    first, second = trust.read_counters(), trust.read_counters()
    assert second.seconds >= first.seconds
    assert second.involuntary_switches >= first.involuntary_switches


def test_children_that_were_put_aside_count(monkeypatch):
    switches = {resource.RUSAGE_SELF: 3, resource.RUSAGE_CHILDREN: 40}
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_nivcsw=switches[who]))
    assert trust.read_counters().involuntary_switches == 43
