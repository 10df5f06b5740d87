"""The quick look at speed: what it makes of a clock that the test holds. Nothing here is about real time."""

from __future__ import annotations

import itertools
import json
import math

import builders
import numpy as np
import pytest

from onnxcomp import check, speed
from onnxcomp.passes import QuantizeDynamic
from onnxcomp.pipeline import optimize_file
from onnxcomp.speed import Speed

X = {"x": builders.samples(1, 16)}


class Clock:
    """Stands for `time.process_time`; only a session's run lets it go on."""

    def __init__(self):
        self.now = 0.0
        self.runs = []

    def process_time(self):
        return self.now


class Session:
    def __init__(self, clock, name, seconds):
        self.clock, self.name, self.seconds = clock, name, iter(seconds)

    def run(self, feeds):
        assert feeds is X
        self.clock.runs.append(self.name)
        self.clock.now += next(self.seconds)


@pytest.fixture
def timed(monkeypatch):
    """Compare two models whose runs take these seconds, the first (a warm-up) included."""

    def compare(reference, candidate, samples=1):
        clock = Clock()
        seconds = {"reference": reference, "candidate": candidate}
        threads = []

        def open_session(path, *, settings):
            threads.append(settings.threads)
            return Session(clock, path, seconds[path])

        monkeypatch.setattr(speed.runtime, "open_session", open_session)
        monkeypatch.setattr(speed.time, "process_time", clock.process_time)
        found = speed.compare("reference", "candidate", X, samples)
        assert threads == [1, 1]
        return found, clock

    return compare


def test_steady_runs_have_no_interval(timed):
    found, _ = timed(itertools.repeat(0.03), itertools.repeat(0.01))
    assert (found.ratio, found.low, found.high) == pytest.approx((3, 3, 3))
    assert not found.slower


def test_the_candidate_is_slower_only_beyond_the_noise(timed):
    assert timed(itertools.repeat(0.01), itertools.repeat(0.03))[0].slower
    noisy = itertools.cycle([0.01, 0.04])
    found, _ = timed(itertools.repeat(0.02), noisy)
    assert found.low < 1 < found.high
    assert not found.slower


@pytest.mark.parametrize(("high", "slower"), [(0.99, True), (1.0, False), (1.2, False)])
def test_slower_looks_at_the_upper_end(high, slower):
    assert Speed(0.9, 0.8, high, 10, 1).slower is slower


def test_a_warm_up_does_not_count(timed):
    found, _ = timed(itertools.chain([9.0], itertools.repeat(0.01)), itertools.repeat(0.01))
    assert found.high == pytest.approx(1)


def test_they_run_in_turn(timed):
    _, clock = timed(itertools.repeat(0.5), itertools.repeat(0.5))
    pairs = list(zip(clock.runs[::2], clock.runs[1::2], strict=True))
    assert all(sorted(pair) == ["candidate", "reference"] for pair in pairs)
    assert set(pairs[1::2]) != set(pairs[2::2])  # each is the first in every other pair


@pytest.mark.parametrize(("seconds", "pairs"), [(100.0, 6), (0.05, 20), (1e-6, 400)])
def test_how_many_pairs_run(seconds, pairs, timed):
    """Two seconds of both, but 6 pairs at least and 400 at most."""
    found, clock = timed(itertools.repeat(seconds), itertools.repeat(seconds))
    assert found.pairs == pytest.approx(pairs, abs=1)
    assert len(clock.runs) == 2 * (found.pairs + 1)


def coverage(rank, count):
    """How often the median of a distribution lies between the ranks `rank` and count + 1 - rank."""
    return 1 - 2 * sum(math.comb(count, i) for i in range(rank)) / 2**count


@pytest.mark.parametrize("count", [6, 7, 8, 9, 12, 16, 25, 50, 99, 200, 399, 400])
def test_the_interval_holds_the_median_with_95_percent(count, timed, monkeypatch):
    monkeypatch.setattr(speed, "_FEWEST", count)
    monkeypatch.setattr(speed, "_MOST", count)
    monkeypatch.setattr(speed, "_SECONDS", 1e9)
    ratios = np.random.default_rng(count).permutation(count) + 1.0
    found, _ = timed([1.0, *ratios], itertools.repeat(1.0))
    assert found.pairs == count
    assert found.ratio == pytest.approx(np.median(ratios))
    rank = round(found.low)
    assert round(found.high) == count + 1 - rank
    assert coverage(rank, count) >= 0.95
    # no wider than need be, but for one rank of the approximation
    assert rank == 1 or coverage(rank + 2, count) < 0.95


@pytest.mark.parametrize(("reference", "candidate"), [(0.0, 0.0), (0.0, 1e-12), (1e-12, 0.0)])
def test_a_clock_that_does_not_tick_shows_no_difference(reference, candidate, timed):
    found, _ = timed(itertools.repeat(reference), itertools.repeat(candidate))
    assert found.ratio == 1
    assert not found.slower


def test_json():
    found = Speed(2.0, 1.5, 2.5, 40, 8).to_json()
    assert found == {
        "ratio": 2.0, "low": 1.5, "high": 2.5, "pairs": 40, "samples": 8, "threads": 1, "provider": "cpu",
    }  # fmt: skip


@pytest.fixture
def mlp(tmp_path):
    return builders.save(builders.mlp(width=256), tmp_path / "mlp.onnx")


def quantize(mlp, found, monkeypatch, **options):
    """The record, with a comparison that finds this."""
    calls = []

    def compare(reference, candidate, feeds, samples):
        calls.append({"reference": reference, "shape": feeds["x"].shape, "samples": samples})
        return found

    monkeypatch.setattr(check, "compare_speed", compare)
    out = mlp.parent / "o.onnx"
    record = optimize_file(mlp, out, [QuantizeDynamic()], **options)
    written = json.loads(out.with_name("o.onnx.record.json").read_text())
    assert written["speed"] == record.to_json()["speed"]
    return record, calls


SLOW, FAST = Speed(0.5, 0.4, 0.6, 9, 1), Speed(2.0, 0.9, 3.0, 9, 1)


@pytest.mark.parametrize("data", [None, {"x": builders.samples(40, 16)}])
def test_a_record_has_the_speed_of_one_sample(data, mlp, monkeypatch):
    record, (call,) = quantize(mlp, FAST, monkeypatch, data=data, measure=True)
    assert record.to_json()["speed"] == FAST.to_json()
    assert call == {"reference": mlp, "shape": (1, 16), "samples": 1}
    assert not any("slower" in warning for warning in record.warnings)


def test_a_slower_result_is_warned_of(mlp, monkeypatch):
    record, _ = quantize(mlp, SLOW, monkeypatch, measure=True)
    (warning,) = [w for w in record.warnings if "slower than the input" in w]
    assert "0.50x" in warning
    assert "onnxcomp bench" in warning


def test_no_speed_unless_asked_for(mlp, monkeypatch):
    record, calls = quantize(mlp, SLOW, monkeypatch)
    assert calls == []
    assert record.speed is None
    assert record.to_json()["speed"] is None
    assert not any("slower" in warning for warning in record.warnings)


def test_two_real_models_are_compared(mlp):
    """Structure only: what they take is the machine's affair."""
    found = speed.compare(mlp, mlp, X, 1)
    assert 0 < found.low <= found.ratio <= found.high
    assert 6 <= found.pairs <= 400
