"""Which settings nobody beats: the front among blocks whose speed is known, and real sweeps."""

from __future__ import annotations

import json

import bench_models
import numpy as np
import pytest

from onnxcomp.bench import bench, field
from onnxcomp.bench.baseline import gate
from onnxcomp.bench.field import Block
from onnxcomp.errors import UsageError
from onnxcomp.report import tables


@pytest.fixture
def model(tmp_path):
    return bench_models.linear(tmp_path / "m.onnx")


@pytest.fixture
def known(monkeypatch):
    """Blocks of known speed: twice the threads take 0.6 of the time, and spinning twice the CPU time of that."""
    order, generator = [], np.random.default_rng(0)

    def block(entry, seconds, offset):
        settings = entry.arm.settings
        wall = 1e6 * entry.samples**0.8 * 0.6 ** (settings.threads - 1)
        wall *= {"all": 1.0, "basic": 1.3}[settings.optimization]
        cpu = wall * settings.threads * (2.0 if settings.threads > 1 and settings.spinning else 1.0)
        order.append((settings.threads, settings.spinning, entry.samples, settings.optimization))
        noise = generator.normal(1, 0.001, (2, 100))
        return Block(tuple((wall * noise[0]).astype(int)), tuple((cpu * noise[1]).astype(int)), entry.samples)

    monkeypatch.setattr(field, "block", block)
    return order


def test_the_front_is_what_nobody_beats(model, known):
    out = bench(
        model, scenario="sweep", batch=[1, 4], threads=[1, 2], optimization=["all", "basic"], seconds=1, seed=1
    ).to_json()
    front = {(r["batch"], r["threads"], r["spinning"], r["optimization"]) for r in out["results"] if r["front"]}
    # spinning costs CPU time and gives nothing here; a larger batch takes longer and costs less
    assert front == {(1, 1, True, "all"), (1, 2, False, "all"), (4, 1, True, "all"), (4, 2, False, "all")}
    assert len(out["results"]) == 12
    beaten = next(r for r in out["results"] if r["optimization"] == "basic" and r["threads"] == 1 and r["batch"] == 1)
    assert beaten["dominated_by"].endswith(("batch 1, threads 1, all", "threads 2, no spinning, all"))
    assert not beaten["refined"]
    assert beaten["rounds"] < max(r["rounds"] for r in out["results"])
    assert all(r["refined"] for r in out["results"] if r["front"])
    assert {r["front_p99"] for r in out["results"]} == {True, False}
    assert out["results"][0]["aa"]["ok"]
    one = next(r for r in out["results"] if (r["batch"], r["threads"], r["optimization"]) == (4, 1, "all"))
    assert one["latency_ms"]["p50"]["value"] == pytest.approx(4**0.8, rel=0.01)
    assert one["samples_per_core_second"]["value"] == pytest.approx(4e3 / 4**0.8, rel=0.01)


def test_rounds_are_in_random_order_with_a_clone_of_the_first(model, known):
    bench(model, scenario="sweep", batch=[1, 4], threads=[1, 2], seconds=1, seed=1)
    rounds = [known[start : start + 7] for start in range(0, 21, 7)]
    assert all(one.count((1, True, 1, "all")) == 2 and len(set(one)) == 6 for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_nobody_is_beaten_within_the_noise(model, monkeypatch):
    generator = np.random.default_rng(0)

    def block(entry, seconds, offset):
        times = (1e6 * generator.lognormal(0, 0.3)) * np.ones(10)
        return Block(tuple(times.astype(int)), tuple(times.astype(int)), 1)

    monkeypatch.setattr(field, "block", block)
    out = bench(model, scenario="sweep", threads=[1, 2], seconds=1, seed=1).to_json()
    assert [r["front"] for r in out["results"]] == [True, True, True]
    assert {r["front_p99"] for r in out["results"]} == {True, False, None} & {r["front_p99"] for r in out["results"]}


def test_a_real_sweep_over_shapes(tmp_path, capsys):
    model = bench_models.linear(tmp_path / "m.onnx", batch="N", width=4)
    benchmark = bench(model, scenario="sweep", batch=[1, 2], threads=[1, 2], spinning="off", seconds=0.2, seed=1)
    out = json.loads(json.dumps({"schema": "onnxcomp/bench/1", **benchmark.to_json()}, allow_nan=False))
    assert [(r["batch"], r["threads"], r["spinning"]) for r in out["results"]] == [
        (1, 1, True),
        (1, 2, False),
        (2, 1, True),
        (2, 2, False),
    ]
    assert any(r["front"] for r in out["results"])
    assert all(len(r["samples"]["per_session"]) == r["rounds"] >= 3 for r in out["results"])
    assert all(sum(r["samples"]["per_session"]) == len(r["samples"]["wall_ns"]) for r in out["results"])
    assert "samples" not in benchmark.to_json(samples=False)["results"][0]
    tables.benchmark(out)
    shown = capsys.readouterr().out
    assert "m.onnx" in shown
    assert "A/A control" in shown


def test_shapes_have_fronts_of_their_own(tmp_path, known):
    path = tmp_path / "wide.onnx"
    bench_models.linear(path, width=4)
    out = bench(path, scenario="sweep", sizes={"N": [1, 3]}, seconds=1, seed=1).to_json()
    assert [r["shape"] for r in out["results"]] == [{"N": 1}, {"N": 3}]
    assert all(r["front"] for r in out["results"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scenario": "latency", "spinning": "on"}, "are for the scenario 'sweep'"),
        ({"scenario": "latency", "optimization": "basic"}, "are for the scenario 'sweep'"),
        ({"scenario": "latency", "sizes": {"N": [1, 2]}}, "several sizes of an axis"),
        ({"scenario": "latency", "tune": True}, "a part of the scenario 'sweep'"),
        ({"scenario": "sweep", "spinning": "some"}, "unknown spinning 'some'"),
        ({"scenario": "sweep", "optimization": "full"}, "unknown optimization 'full'"),
        ({"scenario": "sweep", "optimization": []}, "no optimization given"),
    ],
)
def test_what_does_not_fit_together(model, options, text):
    with pytest.raises(UsageError, match=text):
        bench(model, seconds=0.1, **options)


def test_a_stored_sweep_is_a_baseline(model, tmp_path):
    stored = tmp_path / "run.json"
    options = {"scenario": "sweep", "batch": [1, 2], "threads": [1, 2], "seed": 1}
    document = {"schema": "onnxcomp/bench/1", **bench(model, seconds=0.2, **options).to_json()}
    stored.write_text(json.dumps(document))
    out = gate(model, stored, seconds=0.2, **options).to_json()
    rows = out["baseline"]["rows"]
    assert len(rows) == len({row["configuration"] for row in rows}) == 6
    assert all(row["speedup"]["value"] > 0 for row in rows)
