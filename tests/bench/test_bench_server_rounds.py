"""Servers of several models in rounds: the same arrivals for all, the percentile that fits, previews of rates."""

import dataclasses
import json
from types import SimpleNamespace

import bench_models
import numpy as np
import pytest
from lines import Line, served

from onnxcomp.bench import bench, queueing, server_rounds, slo, traffic

NAMES = ("a.onnx", "b.onnx")


def servers(mean_ms, calls=None):
    """Perfect servers with random service times of these means."""
    generator = np.random.default_rng(0)

    def run(index, rate, seconds, seed):
        due = traffic.poisson(rate, seconds, seed)
        if calls is not None:
            calls.append((index, tuple(due[:3])))
        return served(due, (generator.gamma(25, mean_ms[index] / 25, len(due)) * 1e6).astype(np.int64), rate=rate)

    return run


def at_rate(mean_ms, *, rate=300.0, seconds=60.0, calls=None):
    return server_rounds.at_rate(NAMES, servers(mean_ms, calls), rate, seconds=seconds, seed=3, delta=0.01)


def test_the_slower_server_is_named_and_equal_ones_are_not():
    (slow,) = at_rate([1.0, 2.0]).to_json()
    assert slow["verdict"] == "slower"
    assert slow["speedup"]["high"] < 0.7  # waiting makes it worse than the run times alone
    assert slow["aa"]["ok"]
    assert slow["what"].startswith("p99 of the latency at 300")
    assert slow["rounds"] == server_rounds.MOST  # these servers take no time
    (same,) = at_rate([1.0, 1.0]).to_json()
    assert same["verdict"] in ("equivalent", "undecided")


def test_every_round_has_the_same_arrivals_for_all_in_an_order_of_its_own():
    calls = []
    at_rate([1.0, 1.0], calls=calls)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert all(sorted(index for index, _ in one) == [0, 0, 1] for one in rounds)
    assert all(len({due for _, due in one}) == 1 for one in rounds)
    assert len({one[0][1] for one in rounds}) == len(rounds)
    assert len({tuple(index for index, _ in one) for one in rounds}) > 1


@pytest.mark.parametrize(
    ("requests", "name"), [(314, "p95"), (315, "p99"), (70, "p95"), (40, "p90"), (20, "p50"), (2, "p50")]
)
def test_no_percentile_that_the_blocks_are_too_short_for(requests, name):
    assert server_rounds.percentile_for(requests)[0] == name


def closed(mean_ms):
    generator = np.random.default_rng(0)

    def run(index, seconds):
        walls = generator.gamma(25, mean_ms[index] / 25 * 1e6, int(1e3 * seconds / mean_ms[index]))
        return SimpleNamespace(callers=[SimpleNamespace(wall_ns=tuple(walls))])

    return run


def test_previewed_rates_are_compared_as_rates():
    found = server_rounds.previewed(NAMES, closed([2.0, 1.0]), 10.0, workers=1, seconds=60, seed=1, delta=0.01)
    (entry,) = found.to_json()
    limits = [queueing.highest_rate(np.random.default_rng(1).gamma(25, mean / 25, 20_000), 10.0) for mean in (2.0, 1.0)]
    assert entry["verdict"] == "faster"
    assert entry["speedup"]["value"] == pytest.approx(limits[1] / limits[0], rel=0.03)
    assert entry["aa"]["ok"]


def test_no_ratio_of_rates_where_a_service_alone_misses_the_objective():
    assert server_rounds.previewed(NAMES, closed([2.0, 30.0]), 10.0, workers=1, seconds=60, seed=1, delta=0.01) is None


def test_the_limit_knows_neither_the_luck_of_the_arrivals_nor_of_the_bounds():
    limits, truth = [], queueing.highest_rate(Line(1, shape=25.0).services_ms(20_000), 10.0)
    for seed in range(4):
        line = Line(seed, shape=25.0)
        search = slo.search(line, slo_p99_ms=10.0, guess=600.0, seconds=30, clock=line.clock)
        limits.append(slo.limit(search, 10.0, seed=seed))
        assert limits[-1].low <= limits[-1].value <= limits[-1].high
    assert [one.value for one in limits] == pytest.approx([truth] * 4, rel=0.04)


def test_no_limit_from_one_run_or_where_requests_failed():
    line = Line(1, shape=25.0)
    runs = [(line(rate, 5.0), slo.Judgement("met")) for rate in (300.0, 400.0)]
    assert slo.limit(slo.Search(tuple(runs), 0, None), 10.0) is not None
    assert slo.limit(slo.Search(tuple(runs[:1]), 0, None), 10.0) is None
    assert slo.limit(slo.Search(tuple(runs), None, None), 0.5) is None  # no run is that short
    far = [(line(rate, 5.0), slo.Judgement("met")) for rate in (100.0, 200.0)]
    assert slo.limit(slo.Search(tuple(far), 1, None), 10.0) is None  # it would be four times as high
    failed = dataclasses.replace(runs[0][0], failed=np.ones(runs[0][0].served, bool))
    assert slo.limit(slo.Search(((failed, slo.Judgement("missed")), *runs[1:]), None, None), 10.0) is None


def test_few_requests_have_no_p99_of_lateness_or_service():
    few, many = (Line(1)(100.0, seconds).to_json() for seconds in (1.0, 10.0))
    for key in ("lateness_ms", "service_ms"):
        assert few[key]["p99"] is None
        assert few[key]["p50"] is not None
        assert many[key]["p99"] is not None


def test_two_models_end_to_end(tmp_path):
    first, second = bench_models.linear(tmp_path / "a.onnx"), bench_models.linear(tmp_path / "b.onnx", layers=2)
    out = bench([first, second], scenario="server", rate=200, workers=1, seconds=1, seed=5).to_json()
    assert [r["model"] for r in out["results"]] == [str(first), str(second)]
    (entry,) = json.loads(json.dumps(out, allow_nan=False))["comparison"]
    assert (entry["candidate"], entry["reference"], entry["scenario"]) == (str(second), str(first), "server")
    assert entry["rounds"] == server_rounds.FEWEST
    assert entry["what"].startswith("p9")
    assert "aa" in entry
