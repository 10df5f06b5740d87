"""Publishing, records, gates: the input is untouched, the output appears whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import builders
import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.errors import (
    AccuracyGateError,
    GateError,
    InvalidModelError,
    NoEffectError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from onnxcomp.passes import Effect, Pass, PruneMagnitude, QuantizeDynamic, Simplify
from onnxcomp.pipeline import optimize, optimize_file, save, verify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(Pass):
    """Claims to be exact and is not."""

    name: ClassVar[str] = "scale"
    exact: ClassVar[bool] = True

    def apply(self, model, context):
        stored = model.graph.initializers["b2"]
        stored.const_value = ir.tensor(stored.const_value.numpy() * np.float32(self.factor()))
        return Effect(True, {})

    def factor(self):
        return 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poison(Scale):
    """Makes NaN."""

    name: ClassVar[str] = "poison"
    exact: ClassVar[bool] = False

    def factor(self):
        return np.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rename(Pass):
    """Breaks the signature."""

    name: ClassVar[str] = "rename"

    def apply(self, model, context):
        model.graph.outputs[0].name = "other"
        return Effect(True, {})


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return builders.save(builders.mlp(width=256), folder / "m.onnx")


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_record_beside_the_output(path, tmp_path):
    out = tmp_path / "o.onnx"
    record = optimize_file(path, out, [QuantizeDynamic()], schema="onnxcomp/quantize/1")
    assert files(tmp_path) == ["in", "o.onnx", "o.onnx.record.json"]
    written = json.loads((tmp_path / "o.onnx.record.json").read_text())
    assert written == {"schema": "onnxcomp/quantize/1", **json.loads(json.dumps(record.to_json()))}
    assert written["output"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert written["output"]["bytes"] == out.stat().st_size
    assert written["size_ratio"] == pytest.approx(out.stat().st_size / path.stat().st_size)
    assert written["passes"][0]["peak_rss_bytes"] > 10 << 20
    assert set(written["versions"]) >= {"onnxcomp", "onnx", "onnxruntime", "numpy", "python", "cpu"}


def test_an_exact_pass_that_is_not_exact_is_stopped(path, tmp_path):
    with pytest.raises(AccuracyGateError, match="outputs differ"):
        optimize_file(path, tmp_path / "o.onnx", [Scale()])
    assert files(tmp_path) == ["in"]


def test_nan_is_stopped_when_there_is_data(path, tmp_path):
    with pytest.raises(AccuracyGateError, match="NaN"):
        optimize_file(path, tmp_path / "o.onnx", [Poison()], data={"x": builders.samples(8, 16)})
    assert files(tmp_path) == ["in"]


def test_a_changed_signature_is_stopped(path, tmp_path):
    with pytest.raises(GateError, match="inputs or outputs"):
        optimize_file(path, tmp_path / "o.onnx", [Rename()])


def test_no_effect_is_an_error_unless_allowed(path, tmp_path):
    with pytest.raises(NoEffectError, match="changed nothing"):
        optimize_file(path, tmp_path / "o.onnx", [Simplify()])
    record = optimize_file(path, tmp_path / "o.onnx", [Simplify()], allow_no_effect=True)
    assert record.equivalence == 0


def test_errors_carry_the_pass(path):
    with pytest.raises(UsageError) as error:
        optimize(path, [PruneMagnitude(sparsity=2)])
    assert error.value.where.startswith("prune-magnitude")


def test_in_and_out_must_differ(path, tmp_path):
    before = path.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    for out in (path, link):
        with pytest.raises(UsageError, match="same file"):
            optimize_file(path, out, [QuantizeDynamic()], force=True)
    assert path.read_bytes() == before


def test_existing_output_needs_force(path, tmp_path):
    out = tmp_path / "o.onnx"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        optimize_file(path, out, [QuantizeDynamic()])
    assert out.read_text() == "mine"
    optimize_file(path, out, [QuantizeDynamic()], force=True)
    assert verify(out).file.bytes == out.stat().st_size


def test_nothing_is_made_beside_the_input_nor_in_the_working_folder(path, tmp_path, monkeypatch):
    (path.parent / "m-inferred.onnx").write_text("precious")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.parent.iterdir()}
    optimize_file(path, tmp_path / "o.onnx", [QuantizeDynamic()], data={"x": builders.samples(40, 16)})
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.parent.iterdir()} == before
    assert files(work) == []


def test_a_read_only_input_folder_works(path, tmp_path):
    path.parent.chmod(0o500)
    try:
        optimize_file(path, tmp_path / "o.onnx", [QuantizeDynamic()])
    finally:
        path.parent.chmod(0o700)


def test_eight_jobs_on_one_input(path, tmp_path):
    outputs = [tmp_path / f"o{i}.onnx" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda out: optimize_file(path, out, [PruneMagnitude()]), outputs))
    assert len({out.read_bytes() for out in outputs}) == 1


def test_verify_finds_a_flipped_bit_in_model_and_record(path, tmp_path):
    out = tmp_path / "o.onnx"
    optimize_file(path, out, [QuantizeDynamic()])
    assert verify(out).checks
    good = out.read_bytes()
    for position in (10, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 1
        out.write_bytes(bytes(bad))
        with pytest.raises(InvalidModelError, match="not the one that was recorded"):
            verify(out)
    out.write_bytes(good)
    (tmp_path / "o.onnx.record.json").unlink()
    with pytest.raises(OutputError):
        verify(out)


def test_what_ort_cannot_load_is_refused_before_any_work(tmp_path):
    from onnx import helper

    proto = builders.relu()
    proto.graph.node[0].CopyFrom(helper.make_node("Mystery", ["x"], ["y"], domain="com.example"))
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    path = builders.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="Mystery") as error:
        optimize_file(path, tmp_path / "o.onnx", [Simplify()])
    assert str(path) in error.value.where


def test_save_publishes_only_what_loads(path, tmp_path):
    from onnxcomp import load

    model = load(path)
    made = save(model, tmp_path / "copy.onnx")
    assert made.bytes == (tmp_path / "copy.onnx").stat().st_size
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises((InvalidModelError, UnsupportedError)):
        save(model, tmp_path / "bad.onnx")
    assert files(tmp_path) == ["copy.onnx", "in"]


def test_the_killer_model_is_optimized(tmp_path):
    """`LayerNormalization(x, scale, "")` kills ORT 1.32; nothing here may die of it."""
    path = builders.save(builders.layer_norm_empty_bias(), tmp_path / "m.onnx")
    with pytest.raises(NoEffectError):
        optimize_file(path, tmp_path / "o.onnx", [Simplify()])
