"""Pruning to a share of the latency: the search, what it says, what it refuses. No clock: speeds are made up."""

from __future__ import annotations

import builders
import pytest

from onnxcomp import speed
from onnxcomp.errors import GateError, UsageError
from onnxcomp.inspect import measure
from onnxcomp.model import load
from onnxcomp.passes import PruneStructured
from onnxcomp.sensitivity import prune_to_latency
from onnxcomp.sensitivity.latency import Timed, search


def made_up(share, spread=0.0):
    """A speed that says: this share of the latency is left, give or take."""
    return speed.Speed(1 / share, 1 / (share + spread), 1 / max(share - spread, 0.01), 9, 1)


@pytest.mark.parametrize(("target", "least"), [(0.5, 0.05), (0.3, 0.05), (0.93, 0.05), (0.2, 0.15), (0.61, 0.6)])
def test_the_most_macs_that_fit_are_found(target, least):
    """Latency is 0.05 + 0.9 of the MACs."""

    def timed(macs):
        share = 0.05 + 0.9 * macs
        return Timed(macs, (round(1000 * macs),), made_up(share), share <= target)

    tried, best = search(timed, least, target, 12)
    if 0.05 + 0.9 * least > target:
        assert best is None
        assert tried[-1].target_macs == least  # nothing smaller is left to try
    else:
        assert best.target_macs == pytest.approx((target - 0.05) / 0.9, abs=0.011)
    assert len(tried) <= 12


@pytest.fixture
def by_macs(monkeypatch):
    """Latency goes with the MACs; the interval is as wide as `spread`."""
    spread = [0.0]

    def compare(reference, candidate, feeds, samples):
        whole, cut = (measure(load(path)).macs for path in (reference, candidate))
        return made_up(cut / whole, spread[0])

    monkeypatch.setattr(speed, "compare", compare)
    return spread


def test_the_target_is_reached_and_said(by_macs, tmp_path):
    path = builders.save(builders.mlp(width=64), tmp_path / "m.onnx")
    record = prune_to_latency(path, tmp_path / "o.onnx", PruneStructured(), target_latency=0.5)
    effect = record.passes[0].effect
    found = effect["latency_search"]
    assert found["target"] == 0.5
    assert found["latency"]["high"] <= 0.5
    assert 0.47 < effect["macs_ratio"] <= 0.5
    assert found["fits"]
    assert all({"target_macs", "latency", "pairs", "fits"} == set(entry) for entry in found["tried"])
    assert effect["equivalence_error"] <= 1e-5
    assert record.passes[0].options["target_latency"] == 0.5
    macs = [measure(load(p)).macs for p in (path, tmp_path / "o.onnx")]
    assert macs[1] / macs[0] == pytest.approx(effect["macs_ratio"], abs=1e-3)


def test_noise_costs_macs_and_is_said_when_it_hides_the_target(by_macs, tmp_path):
    path = builders.save(builders.mlp(width=64), tmp_path / "m.onnx")
    by_macs[0] = 0.1
    record = prune_to_latency(path, tmp_path / "o.onnx", PruneStructured(), target_latency=0.5)
    assert 0.36 < record.passes[0].effect["macs_ratio"] <= 0.4
    by_macs[0] = 0.5
    with pytest.raises(GateError, match=r"for certain: the nearest has 0\.\d+ \[0\.0\d+, 0\.\d+\]"):
        prune_to_latency(path, tmp_path / "p.onnx", PruneStructured(), target_latency=0.5)
    assert not (tmp_path / "p.onnx").exists()


def test_a_candidate_that_fits_once_is_timed_again(monkeypatch, tmp_path):
    """A lucky first measurement does not count."""
    path = builders.save(builders.mlp(width=64), tmp_path / "m.onnx")
    lucky = iter([0.4, 0.6] * 50)
    monkeypatch.setattr(speed, "compare", lambda *_: made_up(next(lucky)))
    with pytest.raises(GateError, match="no candidate is within"):
        prune_to_latency(path, tmp_path / "o.onnx", PruneStructured(), target_latency=0.5)


@pytest.mark.parametrize(
    ("step", "target", "text"),
    [
        (PruneStructured(), 0.0, "not between 0 and 1"),
        (PruneStructured(), 1.5, "not between 0 and 1"),
        (PruneStructured(), float("nan"), "not between 0 and 1"),
        (PruneStructured(sparsity=0.5), 0.5, "sparsity and target_latency do not go together"),
        (PruneStructured(target_macs=0.5), 0.5, "target_macs and target_latency do not go together"),
    ],
)
def test_what_cannot_be(step, target, text, tmp_path):
    path = builders.save(builders.mlp(width=64), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=text):
        prune_to_latency(path, tmp_path / "o.onnx", step, target_latency=target)


def test_open_sizes_need_data(tmp_path):
    path = builders.save(builders.encoder(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="sizes of the inputs are open"):
        prune_to_latency(path, tmp_path / "o.onnx", PruneStructured(), target_latency=0.5)
