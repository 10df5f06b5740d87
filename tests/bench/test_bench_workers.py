"""Workers as processes and as threads: figures, ratios and the limits of the machine."""

from __future__ import annotations

import json
import types

import builders
import numpy as np
import pytest

from onnxcomp.bench import bench, contest, packs, room, turn, workers
from onnxcomp.bench.contest import Contest
from onnxcomp.bench.feeds import Feeds
from onnxcomp.bench.turn import Turn, Variant
from onnxcomp.errors import GateError, LimitError, ProviderError, UsageError
from onnxcomp.memory import Memory
from onnxcomp.pack import make

MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """16 MB of weights."""
    return builders.save(builders.mlp(width=160_000), tmp_path_factory.mktemp("workers") / "wide.onnx")


@pytest.fixture(scope="module")
def packed(model):
    folder = model.parent / "pack"
    make.pack(model, folder, workers=2)
    return folder


@pytest.fixture(scope="module")
def found(model, packed):
    """Two rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_FEWEST", 2)
        patch.setattr(workers, "_SHORTEST", 0.1)
        return bench([model, packed], scenario="workers", workers=2, seconds=0.5, seed=3)


def made(cpu: float = 1.0, *, wall: float = 2.0, rate: float = 10.0, pss: int | None = 100) -> Turn:
    memory = Memory(pss, pss, pss, pss, pss)
    return Turn(
        runs=5,
        runs_per_second=rate,
        wall_ns=np.array([wall]),
        cpu_ns=cpu,
        cpu_ns_per_run=cpu,
        load_seconds=0.1,
        start_seconds=0.2,
        memory=dict.fromkeys(("imported", "loaded", "ran"), memory),
        outputs=("a",),
        outputs_equal=True,
    )


def test_every_way_has_the_contract_keys(found, model, packed):
    out = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [(r["kind"], r["workers"]) for r in out["results"]] == [
        ("processes", 1), ("processes", 2), ("threads", 2), ("pack", 2),
    ]  # fmt: skip
    assert [r["model"] for r in out["results"]] == [str(model)] * 3 + [str(packed)]
    for r in out["results"]:
        assert (r["provider"], r["scenario"], r["batch"], r["threads"]) == ("cpu", "workers", 1, 1)
        assert set(r["latency_ms"]) == {"p50", "p90", "p95", "p99"}
        assert r["throughput_interval"]["low"] <= r["throughput"] <= r["throughput_interval"]["high"]
        assert r["memory"]["pss_bytes"] >= r["memory"]["uss_bytes"] > 0
        assert r["memory"]["loaded"]["pss_bytes"] > r["memory"]["imported"]["pss_bytes"]
        assert r["outputs_equal"]
        assert r["same_outputs"]
        assert r["placement"]["providers"] == {"cpu": {"nodes": r["placement"]["nodes"], "share": 1.0}}
        assert len(r["rounds"]) == 2
        assert r["start_seconds"] > 0
        assert r["open_seconds"] > 0
    assert {"grade", "reasons"} <= set(out["trust"])
    assert out["seed"] == 3


def test_memory_is_held_against_one_and_against_as_many_processes(found):
    one, processes, threads, _ = found.to_json()["results"]
    assert set(one["against"]) == {"processes"}
    assert set(processes["against"]) == {"one"}
    assert set(threads["against"]) == {"one", "processes"}
    ratio = processes["against"]["one"]["uss"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert 1.6 < ratio["value"] < 2.3  # nothing is shared
    assert threads["against"]["one"]["uss"]["value"] < 1.4  # one session
    assert threads["against"]["processes"]["uss"]["value"] < 0.8
    direct = processes["memory"]["uss_bytes"] / one["memory"]["uss_bytes"]
    assert ratio["value"] == pytest.approx(direct, rel=0.1)


def test_ways_are_compared_with_processes_beside_a_control(found, model, packed):
    one, other = found.to_json()["comparison"]
    assert other["candidate"] == f"{packed} (2 on a pack)"
    assert (one["candidate"], one["reference"]) == (f"{model} (2 threads)", f"{model} (2 processes)")
    assert one["clock"] == "thread"
    assert one["rounds"] == len(one["round_ratios"]) == 2
    assert set(one["aa"]) >= {"ratio", "low", "high", "ok"}
    (samples,) = found.to_json()["comparison_samples"]
    assert len(samples["control_ratios"]) == 2
    assert "rounds" not in found.to_json(samples=False)["results"][0]


def test_what_takes_turns():
    assert workers.variants_of([0, 1, 0], 4) == [
        Variant(0, "processes", 1),
        Variant(0, "processes", 4),
        Variant(0, "threads", 4),
        Variant(0, "processes", 4, clone=True),
        Variant(1, "processes", 1),
        Variant(1, "processes", 4),
        Variant(1, "threads", 4),
        Variant(2, "pack", 4),
    ]
    assert workers.variants_of([0], 1) == [Variant(0, "processes", 1), Variant(0, "processes", 1, clone=True)]
    assert workers.variants_of([None], 4) == [Variant(0, "pack", 4)]


def test_large_feeds_are_few():
    small, large = ({"x": np.zeros(n, np.uint8)} for n in (MIB, 20 * MIB))
    assert len(Feeds((small,) * 20, 1, "random", random=True).few().arrays) == 8
    assert len(Feeds((large,) * 20, 1, "random", random=True).few().arrays) == 1
    assert len(Feeds((small,) * 3, 1, "random", random=True).few().arrays) == 3


def test_labels():
    variants = [Variant(0, "processes", 1), Variant(0, "threads", 3), Variant(0, "pack", 2)]
    assert [v.label("m") for v in variants] == ["m (1 process)", "m (3 threads)", "m (2 on a pack)"]


def test_ratios_are_this_by_that_with_their_interval():
    figures = contest.ratios(
        [made(2.0, rate=5.0), made(2.2, rate=5.0)], [made(), made(1.1)], model="m", variant=Variant(0, "processes", 4)
    ).to_json()
    assert figures["latency_cpu"] == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0})
    assert figures["throughput"]["value"] == pytest.approx(0.5)
    assert figures["pss"]["value"] == pytest.approx(1.0)
    assert (figures["model"], figures["kind"], figures["workers"]) == ("m", "processes", 4)
    spread = contest.ratios([made(2.0), made(3.0)], [made(), made()], model="m", variant=Variant(0, "processes", 4))
    assert spread.figures["latency_cpu"].low < 2.0 < 3.0 < spread.figures["latency_cpu"].high
    unread = contest.ratios([made(pss=None)] * 2, [made()] * 2, model="m", variant=Variant(0, "processes", 4))
    assert unread.to_json()["pss"] is None


@pytest.mark.parametrize(
    ("candidate", "control", "verdict"),
    [(0.5, 0.0, "faster"), (2.0, 0.0, "slower"), (1.0, 0.0, "equivalent"), (0.5, 0.1, "undecided")],
)
def test_a_contest_is_judged_once_and_only_with_its_control(candidate, control, verdict):
    noise = np.linspace(-0.001, 0.001, 8)
    reference = tuple(made(1.0) for _ in noise)
    turns = tuple(made(candidate * float(np.exp(n))) for n in noise)
    one = Contest(
        names=("plain", "threads"),
        turns=(reference, turns),
        control=tuple(control + n for n in noise),
        clock="thread",
        seed=0,
        delta=0.01,
    )
    (out,) = one.to_json()
    assert out["verdict"] == verdict
    assert out["speedup"]["value"] == pytest.approx(1 / candidate, rel=1e-3)
    assert out["aa"]["ok"] is (control == 0.0)


def test_the_wall_decides_where_several_threads_run():
    assert contest.deciding("thread")(made(1.0, wall=7.0)) == 1.0
    assert contest.deciding("wall")(made(1.0, wall=7.0)) == 7.0


def test_room_is_checked_before_copies_are_made():
    one = Memory(pss_bytes=90 * MIB, file_bytes=20 * MIB, peak_bytes=120 * MIB)
    assert room.predict(one, 4) == 420 * MIB
    assert room.predict(Memory(), 4) is None
    room.check(one, 4, name="m", free=600 * MIB)
    with pytest.raises(LimitError, match=r"4 workers would take about 420 MiB, of 500 MiB that are free") as caught:
        room.check(one, 4, name="m", free=500 * MIB)
    assert caught.value.where == "m"
    room.check(Memory(), 4, name="m", free=1)


def test_too_many_workers_are_refused(model, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda: 100 * MIB)
    with pytest.raises(LimitError, match="50 workers would take about"):
        bench(model, scenario="workers", workers=50, seconds=1.0)


def test_the_limit_of_a_container_counts(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    folder = tmp_path / "root/a/b"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("300000\n")
    (folder / "memory.current").write_text("100000\n")
    assert room.free_bytes(tmp_path / "root", own) == 200_000
    (folder / "memory.max").write_text("max\n")
    assert room.free_bytes(tmp_path / "root", own) > 1_000_000


def test_more_workers_than_cores_are_noted(found, monkeypatch):
    notes = found.to_json()["results"][0]["notes"]
    assert all("wait for each other" in note for note in notes)
    job = type("Job", (), {"settings": type("S", (), {"threads": 2}), "provider": "cuda"})
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    assert len(workers._notes(job, 2)) == 1
    crowded, device = workers._notes(job, 3)
    assert "3 workers of 2 threads share 4 cores" in crowded
    assert "'cuda'" in device


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scenario": "latency", "workers": 2}, "for the scenarios 'workers'"),
        ({"scenario": "latency", "pack": True}, "for the scenario 'workers'"),
        ({"scenario": "workers", "workers": ()}, "no workers given"),
        ({"scenario": "workers", "workers": 0}, "at least one worker"),
        ({"scenario": "worker"}, "unknown scenario"),
    ],
)
def test_usage(model, options, text):
    with pytest.raises(UsageError, match=text):
        bench(model, **options)


def test_a_provider_that_is_not_there(model):
    with pytest.raises(ProviderError):
        bench(model, scenario="workers", provider="openvino", workers=2)


def test_a_turn_keeps_a_thousand_runs():
    caller = types.SimpleNamespace(wall_ns=tuple(range(3000)), cpu_ns=(1, 2, 3), runs=3000)
    found = types.SimpleNamespace(
        callers=(caller, caller), runs_per_second=5.0, cpu_seconds_per_run=1e-3, load_seconds=1.0, start_seconds=2.0,
        memory=lambda point: Memory(), outputs=("a",), outputs_equal=True,
    )  # fmt: skip
    kept = turn.turn(found)
    assert len(kept.wall_ns) == 1000
    assert kept.runs == 6000
    assert kept.cpu_ns == 2
    assert kept.cpu_ns_per_run == 1e6


def test_a_pack_is_held_against_its_source(model, packed, tmp_path, monkeypatch):
    other = builders.save(builders.mlp(), tmp_path / "other.onnx")
    assert [(s.plain, s.path.name) for s in packs.served([other, packed, model])] == [
        (0, "other.onnx"), (2, "model.onnx"), (2, "wide.onnx"),
    ]  # fmt: skip
    assert [s.plain for s in packs.served([other, packed])] == [0, 0]
    assert [s.plain for s in packs.served([packed])] == [None]
    monkeypatch.setattr(packs.host, "current", lambda: packs.host.Host("0.0.0", "other", ()))
    (one,) = packs.served([packed])
    assert "does not fit this host" in one.notes[0]


def test_processes_on_a_pack_share(found, model, packed):
    out = found.to_json()
    row = out["results"][-1]
    assert (row["kind"], row["model"], row["same_outputs"]) == ("pack", str(packed), True)
    assert row["against"]["processes"]["anonymous"]["value"] < 0.8
    assert row["against"]["one"]["model"] == str(model)
    assert [m["path"] for m in out["models"]] == [str(model), str(packed / "model.onnx")]


def test_a_pack_can_be_made_for_the_occasion(model, packed):
    plain = packs.served([packed, model])
    with packs.made(plain, workers=2, sizes=None) as every:
        assert [s.plain for s in every] == [1, 1, 1]
        assert every[-1].name == str(model)
        place = every[-1].path
        assert place.is_file()
    assert not place.exists()


def test_a_model_whose_pack_does_not_pay_has_a_note(model, monkeypatch):
    def refuse(*_args, **_options):
        raise GateError("it shares nothing")

    monkeypatch.setattr(packs.make, "pack", refuse)
    with packs.made(packs.served([model]), workers=2, sizes=None) as every:
        assert [s.notes for s in every] == [(f"{model} has no pack: it shares nothing",)]


def test_a_pack_has_no_latency_alone(packed):
    with pytest.raises(UsageError, match="scenario 'workers', not 'latency'"):
        bench(packed)
    with pytest.raises(UsageError, match="for the provider 'cpu'"):
        bench(packed, scenario="workers", provider=("cpu", "cuda"))
