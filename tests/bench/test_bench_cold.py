"""Cold starts: the parts, the page cache, the order, the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import bench_models
import pytest

from onnxcomp.bench import bench, cold
from onnxcomp.bench.cold import ColdStart
from onnxcomp.bench.paired import Paired
from onnxcomp.memory import Memory


@pytest.fixture
def model(tmp_path):
    return bench_models.linear(tmp_path / "m.onnx")


def test_a_start_has_its_parts():
    one = ColdStart(start=1.0, load=0.5, first=0.25, second=0.01, memory=Memory())
    assert one.total == 1.75


def test_cold_starts_end_to_end(model, monkeypatch):
    monkeypatch.setattr(cold, "drop", lambda path: False)  # no file system is asked
    found = bench(model, scenario="cold", seconds=0.1, seed=1)
    (one,) = json.loads(json.dumps(found.to_json(), allow_nan=False))["results"]
    assert (one["scenario"], one["page_cache"], one["batch"], one["threads"]) == ("cold", "warm", 1, 1)
    assert one["processes"] == len(one["starts"]) == 3
    for start in one["starts"]:
        assert start["total"] == pytest.approx(start["start"] + start["load"] + start["first"])
        assert min(start.values()) > 0
    assert one["memory"]["peak_bytes"] > 0
    assert not one["latency_ms"]["p50"]["estimable"]  # of three
    assert one["latency_ms"] != one["cold_ms"]
    assert set(one["cold_ms"]) == {"total", "start", "load", "first", "second"}
    assert any("does not let" in note for note in one["notes"])
    assert found.comparisons == ()


def test_several_models_take_turns_with_a_clone(model, tmp_path, monkeypatch):
    other = bench_models.linear(tmp_path / "other.onnx", layers=3)
    order, warmed = [], []

    def one(job, feeds, index, prepare):
        order.append(index)
        prepare(job.paths[index])
        return ColdStart(start=1.0, load=0.1 + index + 0.001 * len(order), first=0.1, second=0.1, memory=Memory())

    monkeypatch.setattr(cold, "_one", one)
    monkeypatch.setattr(cold, "warm", lambda path: warmed.append(Path(path).name))
    monkeypatch.setattr(cold, "drop", lambda path: True)
    monkeypatch.setattr(cold, "_MOST", 8)
    found = bench([model, other], scenario="cold", seconds=100, seed=2)
    out = found.to_json()
    assert [(r["page_cache"], r["processes"]) for r in out["results"]] == [
        ("warm", 8), ("dropped", 8), ("warm", 8), ("dropped", 8),
    ]  # fmt: skip
    rounds = [order[start : start + 6] for start in range(0, 48, 6)]
    assert all(sorted(r) == [0, 0, 0, 0, 1, 1] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1  # in random order
    assert len(warmed) == 3 * 8
    warm, dropped = out["comparison"]
    assert (warm["verdict"], dropped["verdict"]) == ("slower", "slower")
    assert "warm page cache" in warm["candidate"]
    assert warm["what"] == "seconds to the first output"
    assert warm["rounds"] == 8
    assert out["results"][0]["latency_ms"]["p50"]["value"] == pytest.approx(1200, rel=0.1)


def test_pages_are_dropped_or_said_to_stay(model):
    gone = cold.drop(model)
    assert isinstance(gone, bool)
    cold.warm(model)
    if gone:
        assert model.read_bytes()  # dropping a cache loses nothing


def test_a_pair_is_judged_only_with_its_control():
    values = ((1.0, 1.01, 0.99, 1.0), (0.5, 0.505, 0.5, 0.495))
    good = Paired(names=("a", "b"), values=values, control=(1.0, 1.0, 1.0, 1.0), what="s", seed=0, delta=0.01)
    (out,) = good.to_json()
    assert out["verdict"] == "faster"
    assert out["speedup"]["value"] == pytest.approx(2.0, rel=0.02)
    assert out["aa"]["ok"]
    bad = Paired(names=("a", "b"), values=values, control=(1.2, 1.21, 1.19, 1.2), what="s", seed=0, delta=0.01)
    assert bad.to_json()[0]["verdict"] == "undecided"
    assert good.samples_json()["arms"] == ["a", "b"]
    assert good.contention() is None
