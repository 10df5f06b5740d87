"""Lines in numbers, against formulas and against a line that is served one by one; percentiles of waiting."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from onnxcomp.bench import dependent, queueing, statistics


def one_by_one(arrivals, services, workers):
    free = [0.0] * workers
    found = []
    for arrival, service in zip(arrivals, services, strict=True):
        end = max(arrival, heapq.heappop(free)) + service
        heapq.heappush(free, end)
        found.append(end - arrival)
    return np.array(found)


def waiting(generator, *, load, lines, requests, fill=500):
    """M/M/1 with services of mean 1: `lines` runs in their steady state."""
    gaps, services = generator.standard_exponential((2, lines, requests + fill))
    return queueing.sojourns(np.cumsum(gaps / load, axis=1), services)[:, fill:]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_recursions_serve_the_line_as_one_by_one_does(workers):
    generator = np.random.default_rng(workers)
    arrivals = np.cumsum(generator.exponential(1 / workers, (3, 200)), axis=1)
    services = generator.gamma(2.0, 0.45, (3, 200))
    found = queueing.sojourns(arrivals, services, workers)
    for line in range(3):
        assert found[line] == pytest.approx(one_by_one(arrivals[line], services[line], workers))
    assert queueing.sojourns(arrivals[0], services[0], workers) == pytest.approx(found[0])


def test_the_preview_agrees_with_m_m_1():
    services = np.random.default_rng(0).exponential(1.0, 20_000)
    for load in (0.3, 0.6):
        found = queueing.preview(services, 1000 * load, seed=1)
        assert found.p99_ms == pytest.approx(-math.log(0.01) / (1 - load), rel=0.08)
        assert found.utilisation == pytest.approx(load, rel=0.03)
    assert queueing.preview(services, 600, seed=1) == queueing.preview(services, 600, seed=1)
    # the more a line is used, the more its requests have in common
    assert 2 < queueing.preview(services, 300).inflation < queueing.preview(services, 700).inflation


def test_several_workers_wait_as_erlang_says():
    generator, load, workers = np.random.default_rng(2), 0.7, 3
    gaps, services = generator.standard_exponential((2, 64, 4000))
    found = queueing.sojourns(np.cumsum(gaps / (load * workers), axis=1), services, workers)[:, 500:]
    offered = load * workers
    busy = offered**workers / math.factorial(workers) / (1 - load)
    late = busy / (sum(offered**k / math.factorial(k) for k in range(workers)) + busy)  # Erlang C
    assert float(found.mean()) == pytest.approx(1 + late / (workers * (1 - load)), rel=0.04)


def test_the_highest_rate_agrees_with_m_m_1():
    services = np.random.default_rng(3).exponential(1.0, 20_000)
    assert queueing.highest_rate(services, 10.0) == pytest.approx(1000 * (1 + math.log(0.01) / 10), rel=0.06)
    assert queueing.highest_rate(services, 3.0) is None  # p99 of the service alone is 4.6
    assert queueing.highest_rate([2.0], 2.5, workers=2) < queueing.capacity([2.0], workers=2) == 1000


def test_independent_samples_get_nearly_the_exact_interval():
    samples = np.random.default_rng(4).random(20_000)
    for share in (0.5, 0.9, 0.99):
        exact, found = statistics.percentile(samples, share), dependent.percentile(samples, share)
        assert found.value == exact.value
        assert found.low < found.value < found.high
        assert 0.7 < (found.high - found.low) / (exact.high - exact.low) < 2.0


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [300, 1000, 5000])
def test_the_ranks_are_those_of_the_binomial(share, count):
    low, high = dependent._ranks(float(count), share)
    exact_low, exact_high = statistics._ranks(count, share, 0.95)
    assert math.floor(low) in (exact_low - 1, exact_low)
    assert math.ceil(high) in (exact_high, exact_high + 1)


@pytest.mark.parametrize(("load", "requests"), [(0.3, 8000), (0.5, 16_000)])
def test_the_interval_covers_p99_of_a_line(load, requests):
    lines = 300
    found = waiting(np.random.default_rng(5), load=load, lines=lines, requests=requests)
    truth = -math.log(0.01) / (1 - load)
    mine = [dependent.percentile(line, 0.99) for line in found]
    assert sum(p.estimable for p in mine) > 0.95 * lines
    covered = np.mean([p.low <= truth <= p.high for p in mine if p.estimable])
    assert 0.91 <= covered <= 0.985  # 300 lines cannot tell 92 from 91, or 98 from 98.5
    exact = [statistics.percentile(line, 0.99) for line in found]
    assert np.mean([p.low <= truth <= p.high for p in exact]) < 0.85  # as if they were independent


def test_a_line_that_is_too_short_tells_no_p99():
    found = waiting(np.random.default_rng(6), load=0.5, lines=1, requests=400)[0]
    refused = dependent.percentile(found, 0.99)
    assert (refused.value, refused.low, refused.high, refused.estimable) == (None, None, None, False)
    assert refused.needed > 400
    assert refused.maximum == found.max()
    for count in (1, 10, 298):
        assert not dependent.percentile(np.arange(float(count)), 0.99).estimable
    with pytest.raises(ValueError, match="no samples"):
        dependent.percentile([], 0.99)


def test_samples_that_never_change_have_a_percentile():
    found = dependent.percentile(np.full(2000, 3.0), 0.99)
    assert (found.low, found.value, found.high) == (3.0, 3.0, 3.0)
