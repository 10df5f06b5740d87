"""Packs: real processes share their weights, outputs are bit-identical, and what does not fit falls back loudly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import warnings
from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from real_data import samples

import onnxcomp
from onnxcomp import model as models
from onnxcomp import pack, replicas, runtime
from onnxcomp.errors import (
    AccuracyGateError,
    DataError,
    GateError,
    InvalidModelError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from onnxcomp.pack import feeds, make, manifest, proof
from onnxcomp.settings import host

WIDE = 1024


def wide() -> onnx.ModelProto:
    """x (batch, 16) -> three matrix products with 12 MB of weights that the kernels pack -> y (batch, 16)."""
    shapes = {"w1": (16, WIDE), "w2": (WIDE, 3 * WIDE), "w3": (3 * WIDE, 16)}
    names = ["x", "a", "b", "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i + 1}"], [names[i + 1]]) for i in range(3)]
    weights = [builders.weight(name, *shape, scale=0.02) for name, shape in shapes.items()]
    return builders.model(nodes, [builders.value("x", "batch", 16)], [builders.value("y", "batch", 16)], weights)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return builders.save(wide(), tmp_path_factory.mktemp("source") / "wide.onnx")


@pytest.fixture(scope="module")
def whole(source) -> pack.Pack:
    return onnxcomp.pack(source, source.parent / "pack", workers=2)


@pytest.fixture(scope="module")
def ran(source, whole) -> tuple[replicas.Replicas, replicas.Replicas]:
    """Four workers on the model, and four on the pack."""
    return tuple(replicas.run(path, 4, feeds=[feed()]) for path in (source, Path(whole.path, "model.onnx")))


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy to be damaged; its times are those of the original."""
    target = tmp_path / "copy"
    for file in sorted(Path(whole.path).rglob("*")):
        if file.is_file():
            place = target / file.relative_to(whole.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
            os.utime(place, ns=(0, file.stat().st_mtime_ns))
    return target


@pytest.fixture
def unproven(monkeypatch) -> None:
    """Packs made without processes, where something else is tested."""
    sharing = proof.Sharing(
        workers=2,
        plain_pss_bytes=200 << 20,
        pack_pss_bytes=100 << 20,
        base_pss_bytes=50 << 20,
        plain_private_bytes=50 << 20,
        pack_private_bytes=1 << 20,
        least_private_bytes=1 << 20,
        packed_bytes=0,
    )
    found = proof.Proof(identical=True, runs=1, sharing=sharing, warnings=())
    monkeypatch.setattr(proof, "prove", lambda *args, **kwargs: found)


def data_of(folder: Path) -> Path:
    (found,) = folder.glob("model.*.data")
    return found


def feed(count: int = 3) -> dict[str, np.ndarray]:
    return {"x": builders.samples(count, 16)}


# what a pack is for


def test_four_processes_share_what_four_plain_ones_hold_each(source, whole, ran):
    plain, packed = ran
    assert packed.outputs_equal
    assert packed.outputs == plain.outputs
    weights = source.stat().st_size

    def added(found: replicas.Replicas, kind: str) -> list[int]:
        return [getattr(r.memory["loaded"], kind) - getattr(r.memory["imported"], kind) for r in found.replicas]

    assert min(added(plain, "anonymous_bytes")) > 0.8 * weights
    assert max(added(packed, "anonymous_bytes")) < 0.3 * weights
    mapped = data_of(Path(whole.path)).stat().st_size
    assert 0.3 * mapped < sum(added(packed, "file_bytes")) < 1.5 * mapped
    assert packed.memory("loaded").pss_bytes < plain.memory("loaded").pss_bytes - 2.5 * weights


def test_what_is_recorded(source, whole):
    found = json.loads(Path(whole.path, "pack.json").read_text())
    assert found["schema"] == "onnxcomp/pack/1"
    assert found["sharing_effective"] is True
    assert found["warnings"] == []
    assert found["verification"]["outputs"] == {"identical": True, "runs": 3, "data": "random:3"}
    assert found["verification"]["sharing"]["workers"] == 2
    assert found["verification"]["sharing"]["shared"] > 0.8
    assert found["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert found["source"]["path"] == "wide.onnx"
    assert found["host"] == host.current().to_json()
    assert {f["path"] for f in found["files"]} == {
        "model.onnx",
        data_of(Path(whole.path)).name,
        "portable/wide.onnx",
    }
    for file in found["files"]:
        assert hashlib.sha256(Path(whole.path, file["path"]).read_bytes()).hexdigest() == file["sha256"]
    assert found["files"][0]["sha256"][:16] in data_of(Path(whole.path)).name
    assert found["weights"]["packed_bytes"] >= found["weights"]["bytes"] * 0.9
    assert str(source.parent) not in json.dumps(found)
    assert manifest.read(Path(whole.path)).to_json() == found


def test_any_session_on_the_file_gives_the_same_bits(source, whole):
    wanted = runtime.open_session(source).run(feed())["y"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = pack.open(whole.path)
    assert opened.path == Path(whole.path, "model.onnx")
    plain = ort.InferenceSession(str(opened.path), providers=["CPUExecutionProvider"])
    assert np.array_equal(opened.run(feed())["y"], wanted)
    assert np.array_equal(plain.run(None, feed())[0], wanted)
    assert opened.signature == runtime.open_session(source).signature


def test_verify(whole):
    found = pack.verify(whole.path).to_json()
    assert found["ok"]
    assert found["checks"] == ["sha256", "host", "loads", "outputs", "sharing"]
    assert found["model"]["path"] == "model.onnx"


@pytest.mark.usefixtures("unproven")
def test_the_same_model_gives_the_same_files(shared, tmp_path):
    """ORT numbers the nodes it puts into yolox differently from run to run."""
    made = [
        onnxcomp.pack(shared / "models/yolox_nano.onnx", tmp_path / str(turn), portable=False).manifest
        for turn in range(2)
    ]
    assert made[0] == made[1]
    assert made[0].key == made[1].key


def test_a_real_transformer_on_real_data(shared, tmp_path):
    arrays, _ = samples("snips_transformer", shared)
    np.savez(tmp_path / "data.npz", ids=arrays["ids"][:64])
    made = onnxcomp.pack(
        shared / "models/snips_transformer.onnx", tmp_path / "p", workers=2, data=tmp_path / "data.npz"
    ).to_json()
    assert made["verification"]["outputs"]["identical"] is True
    assert made["verification"]["outputs"]["runs"] == 8
    assert made["sharing_effective"]


# where it does not fit


def _shorter(folder: Path) -> None:
    os.truncate(data_of(folder), data_of(folder).stat().st_size - 4096)


def _one_byte(folder: Path) -> None:
    with data_of(folder).open("r+b") as file:
        file.seek(5000)
        file.write(b"\x7f")


def _zeroed(folder: Path) -> None:
    """Packed weights zeroed, the file as old as before: only the runtime can see it."""
    data, before = data_of(folder), data_of(folder).stat().st_mtime_ns
    text = (folder / "model.onnx").read_bytes().decode("latin1")
    spans = [(int(a), int(b)) for a, b in re.findall(r"MatMul\+\d+\|(\d+);(\d+);", text)]
    assert spans
    with data.open("r+b") as file:
        for offset, length in spans:
            file.seek(offset)
            file.write(bytes(length))
    os.utime(data, ns=(0, before))


def _gone(folder: Path) -> None:
    data_of(folder).unlink()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_shorter, "bytes instead of"),
        (_one_byte, "is not what it was"),
        (_zeroed, "do not match the buffers"),
        (_gone, "is missing"),
    ],
)
def test_a_damaged_pack_falls_back_to_the_portable_model(damage, text, source, copy):
    damage(copy)
    with pytest.warns(pack.PackWarning, match=text):
        opened = pack.open(copy)
    assert opened.path == copy / "portable/wide.onnx"
    assert np.array_equal(opened.run(feed())["y"], runtime.open_session(source).run(feed())["y"])
    with pytest.raises(InvalidModelError):
        pack.verify(copy)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"onnxruntime": "1.99.0"}, "onnxruntime 1.99.0 here"),
        ({"flags": ("sve",)}, "CPU features only here: sve"),
        ({"machine": "riscv64"}, "a riscv64 here"),
    ],
)
def test_a_pack_of_another_host(changed, text, copy, monkeypatch):
    other = dataclasses.replace(host.current(), **changed)
    monkeypatch.setattr(host, "current", lambda: other)
    with pytest.warns(pack.PackWarning, match=text):
        assert pack.open(copy).path.parent.name == "portable"
    with pytest.raises(UnsupportedError, match=text):
        pack.verify(copy)
    _edit(copy, portable=None)
    with pytest.raises(InvalidModelError, match=text):
        pack.open(copy)


def _edit(folder: Path, **changes: object) -> None:
    found = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps({**found, **changes}))


def test_keys_that_fit_no_kernel_are_seen_by_verify(copy):
    """ORT then packs again in each session, without a word, and its outputs are right."""
    proto = onnx.load(copy / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key.startswith("prepacked"):
                entry.value = re.sub(r"\+(\d)", r"+9\1", entry.value)
    (copy / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModelError, match=r"model\.onnx has"):
        pack.verify(copy)
    _edit(copy, files=[{"path": p, "sha256": d, "bytes": b} for p, d, b in make._listed(copy) if p != "pack.json"])
    with pytest.raises(GateError, match="sharing is not effective any more"):
        pack.verify(copy)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema": "onnxcomp/bench/1"}, "not a pack's manifest"),
        ({"host": 3}, "damaged"),
        ({"model": "../../model.onnx"}, "damaged"),
        ({"files": [{"path": "/etc/passwd", "sha256": "", "bytes": 1}]}, "damaged"),
    ],
)
def test_a_manifest_that_is_none(changes, text, copy):
    _edit(copy, **changes)
    with pytest.raises(DataError, match=text):
        pack.open(copy)


def test_no_pack_at_all(tmp_path):
    with pytest.raises(OutputError):
        pack.open(tmp_path)
    assert not pack.is_pack(tmp_path)


# what is refused


@pytest.mark.parametrize(
    ("error", "options"),
    [(UsageError, {"layout": "tritn"}), (UsageError, {"workers": 1}), (UsageError, {"plan": "plan.json"})],
)
def test_options_that_make_no_sense(error, options, source, tmp_path):
    with pytest.raises(error):
        onnxcomp.pack(source, tmp_path / "p", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unproven")
def test_existing_outputs(source, tmp_path):
    onnxcomp.pack(source, tmp_path / "p")
    with pytest.raises(OutputError, match="exists"):
        onnxcomp.pack(source, tmp_path / "p")
    onnxcomp.pack(source, tmp_path / "p", portable=False, force=True)
    assert not (tmp_path / "p/portable").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(OutputError, match="not an earlier output"):
        onnxcomp.pack(source, tmp_path / "mine", force=True)
    with pytest.raises(UsageError, match="an input lies in"):
        onnxcomp.pack(source, source.parent, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "p"]


def prove(monkeypatch, *measured: replicas.Replicas) -> proof.Proof:
    """`proof.prove` on what was measured before: plain, packed, and (as packed) where all is mapped."""
    answers = iter([*measured, measured[1]])
    monkeypatch.setattr(replicas, "run", lambda *args, **kwargs: next(answers))
    monkeypatch.setattr(models, "total_bytes", lambda _: 1)
    monkeypatch.setattr(models, "packed_bytes", lambda _: (13_000_000, 13_000_000))
    return proof.prove(Path("plain.onnx"), Path("model.onnx"), [feed()], workers=4)


def test_outputs_that_differ_in_a_bit(ran, monkeypatch):
    plain, packed = ran
    assert prove(monkeypatch, plain, packed).identical
    callers = [dataclasses.replace(c, outputs=("00",)) for c in packed.callers]
    others = [dataclasses.replace(r, callers=(c,)) for r, c in zip(packed.replicas, callers, strict=True)]
    with pytest.raises(AccuracyGateError, match="not bit-identical"):
        prove(monkeypatch, plain, dataclasses.replace(packed, replicas=tuple(others)))
    chance = dataclasses.replace(plain, replicas=(others[0], *plain.replicas[1:]))
    found = prove(monkeypatch, chance, packed)
    assert found.identical is None
    assert "differ from run to run" in found.warnings[0]


def test_more_memory_than_before(ran, monkeypatch):
    plain, packed = ran
    with pytest.raises(GateError, match="workers need"):
        prove(monkeypatch, packed, plain)


def test_sharing_without_effect_is_warned_of(ran, monkeypatch):
    plain, packed = ran
    found = prove(monkeypatch, packed, packed)
    assert not found.sharing.effective
    assert "next to nothing to share" in found.warnings[0]
    most = dataclasses.replace(plain, replicas=(*plain.replicas[:3], packed.replicas[0]))
    found = prove(monkeypatch, plain, most, packed)
    assert 0.1 < found.sharing.shared < 0.4
    assert not found.to_json("d")["sharing_effective"]
    assert "sharing is not effective" in found.warnings[0]


@pytest.mark.parametrize("failure", [GateError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing(failure, source, tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(proof, "prove", fail)
    with pytest.raises((GateError, OutputError, KeyboardInterrupt)):
        onnxcomp.pack(source, tmp_path / "p", workers=2)
    assert not list(tmp_path.iterdir())


def test_when_sharing_is_effective():
    def sharing(plain: int, packed: int, least: int | None, pss: int = 100, weights: int = 0) -> proof.Sharing:
        return proof.Sharing(
            workers=2,
            plain_pss_bytes=100 << 20,
            pack_pss_bytes=pss << 20,
            base_pss_bytes=60 << 20,
            plain_private_bytes=plain << 20,
            pack_private_bytes=packed << 20,
            least_private_bytes=None if least is None else least << 20,
            packed_bytes=weights << 20,
        )

    assert sharing(100, 5, 4).effective
    assert not sharing(100, 60, 4).effective
    assert sharing(100, 45, 4, weights=90).effective  # buffers in which ORT packed to compare
    small = dataclasses.replace(sharing(7, 2, 1), packed_bytes=5120, pack_private_bytes=(1 << 20) + 300_000)
    assert small.effective  # a process varies by more than there is to pack
    assert not sharing(100, 45, 4, weights=42).effective  # all packed again; the rest was never packed
    assert sharing(100, 5, None).effective
    assert sharing(2, 2, 2).shared is None
    assert not sharing(2, 2, 2).effective
    assert not sharing(9, 9, 1, pss=101).larger
    assert sharing(9, 9, 1, pss=103).larger


def test_operators_that_ort_does_not_have(shared, tmp_path):
    with pytest.raises(UnsupportedError, match="DecodeImage"):
        onnxcomp.pack(shared / "models/superres_prepost_op18.onnx", tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_what_ort_writes_and_cannot_read(shared, tmp_path):
    with pytest.raises(UnsupportedError, match="cannot open the optimized model that it has written"):
        onnxcomp.pack(shared / "models/tract_qlstm_3-2-3_T3_S1.onnx", tmp_path / "p")
    assert not list(tmp_path.iterdir())


# models of all kinds: written, opened again and equal, without processes


def large_branch() -> onnx.ModelProto:
    proto = builders.branch()
    (body,) = [a.g for a in proto.graph.node[0].attribute if a.name == "else_branch"]
    body.initializer[0].CopyFrom(builders.weight("inner", 8, 512))
    body.node[0].CopyFrom(helper.make_node("MatMul", ["x", "inner"], ["m"]))
    body.initializer.append(builders.weight("back", 512, 8))
    body.node.append(helper.make_node("MatMul", ["m", "back"], ["o"]))
    return proto


def quantized() -> onnx.ModelProto:
    """x -> QuantizeLinear, DequantizeLinear, MatMul with an int8 weight -> y."""
    codes = np.random.default_rng(0).integers(-127, 128, (16, 256)).astype(np.int8)
    return builders.model(
        [
            helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "sw"], ["v"]),
            helper.make_node("MatMul", ["d", "v"], ["y"]),
        ],
        [builders.value("x", "batch", 16)],
        [builders.value("y", "batch", 256)],
        [
            onnx.numpy_helper.from_array(codes, "w"),
            onnx.numpy_helper.from_array(np.float32(0.02), "sx"),
            onnx.numpy_helper.from_array(np.uint8(128), "zx"),
            onnx.numpy_helper.from_array(np.float32(0.01), "sw"),
        ],
    )


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize(
    ("proto", "sizes"),
    [
        (builders.cnn(), {}),
        (builders.encoder(), {"seq": 5}),
        (builders.layer_norm_empty_bias(), {}),
        (large_branch(), {}),
        (quantized(), {}),
        (builders.zip_map(), {}),
        (builders.sparse(np.array([[0, 0], [1, 2], [2, 1]])), {}),
    ],
    ids=["cnn", "encoder", "empty input", "subgraph", "int8", "map", "sparse"],
)
def test_kinds_of_models(proto, sizes, tmp_path):
    path = builders.save(proto, tmp_path / "m.onnx")
    before = path.read_bytes()
    made = onnxcomp.pack(path, tmp_path / "p", sizes=sizes)
    assert path.read_bytes() == before
    fed, _ = feeds.make(path, None, sizes)
    reference, opened = runtime.open_session(path), pack.open(tmp_path / "p")
    assert opened.path.name == "model.onnx"
    for one in fed.runs:
        for want, got in zip(reference.run(one).values(), opened.run(one).values(), strict=True):
            assert np.array_equal(want, got) if isinstance(want, np.ndarray) else want == got
    assert manifest.read(tmp_path / "p") == made.manifest


@pytest.mark.usefixtures("unproven")
def test_external_data_goes_into_the_portable_copy(tmp_path):
    (tmp_path / "in").mkdir()
    path = builders.externalize(builders.mlp(width=512), tmp_path / "in")
    made = onnxcomp.pack(path, tmp_path / "p").manifest
    assert {p for p, _, _ in made.files} >= {f"portable/{path.name}", "portable/weights.data"}
    assert models.fingerprint(tmp_path / "p/portable" / path.name).sha256 == models.fingerprint(path).sha256
    _gone(tmp_path / "p")
    with pytest.warns(pack.PackWarning):
        opened = pack.open(tmp_path / "p")
    opened.run({"x": builders.samples(2, 16)})


def test_inputs_that_cannot_be_made_up(tmp_path):
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = onnx.numpy_helper.from_array(np.array([7, 11]), "shape")
    proto = builders.model([node], [builders.value("x", "a", "b")], [builders.value("y", 7, 11)], [shape])
    path = builders.save(proto, tmp_path / "m.onnx")
    with pytest.raises(DataError, match="no made-up input runs") as caught:
        onnxcomp.pack(path, tmp_path / "p")
    assert caught.value.hint == "give --data"
    fed, _ = feeds.make(path, _saved(tmp_path, x=np.zeros((1, 77, 1), np.float32)), {})
    assert len(fed.runs) == 1


def _saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def test_memory_that_allows_fewer_workers(monkeypatch):
    @dataclasses.dataclass
    class Free:
        available: int

    monkeypatch.setattr(proof.psutil, "virtual_memory", lambda: Free(12 << 30))
    assert proof._affordable(4, 100 << 20) == 4
    assert proof._affordable(8, 500 << 20) == 4
    assert proof._affordable(8, 5 << 30) == 2
