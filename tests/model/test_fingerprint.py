"""SHA-256 and size of a model, its external data included."""

from __future__ import annotations

import hashlib
import os

import builders
import pytest

from onnxcomp.errors import InvalidModelError, OutputError, UnsafeModelError
from onnxcomp.model import fingerprint, sha256_of


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_file(tmp_path):
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    found = fingerprint(path)
    assert found.to_json() == {"path": str(path), "sha256": sha(path), "bytes": path.stat().st_size}
    assert found.external == ()


def test_external_data_is_hashed_once_per_file(tmp_path):
    path = builders.externalize(builders.mlp(), tmp_path)
    data = tmp_path / "weights.data"
    found = fingerprint(str(path))
    assert found.external == (("weights.data", sha(data), data.stat().st_size),)
    assert found.sha256 == sha(path)
    assert found.bytes == path.stat().st_size + data.stat().st_size
    assert found.to_json()["external"] == [
        {"path": "weights.data", "sha256": sha(data), "bytes": data.stat().st_size},
    ]


def test_data_files_come_in_order_of_name(tmp_path):
    proto = builders.mlp()
    for tensor, name in zip(proto.graph.initializer, "dbca", strict=True):
        (tmp_path / name).write_bytes(tensor.raw_data)
        builders.point_outside(tensor, name, 0, len(tensor.raw_data))
    found = fingerprint(builders.save(proto, tmp_path / "m.onnx"))
    assert [name for name, _, _ in found.external] == ["a", "b", "c", "d"]


def test_a_flipped_bit_changes_it(tmp_path):
    path = builders.externalize(builders.mlp(), tmp_path)
    data, before = tmp_path / "weights.data", fingerprint(path)
    changed = bytearray(data.read_bytes())
    changed[len(changed) // 2] ^= 1
    data.write_bytes(changed)
    after = fingerprint(path)
    assert (after.sha256, after.bytes) == (before.sha256, before.bytes)
    assert after.external != before.external


def test_the_path_is_kept_as_given(tmp_path, monkeypatch):
    builders.save(builders.mlp(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert fingerprint("m.onnx").path == "m.onnx"


def test_what_load_refuses_has_no_fingerprint(tmp_path):
    with pytest.raises(OutputError):
        fingerprint(tmp_path / "none.onnx")
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 20)
    with pytest.raises(InvalidModelError):
        fingerprint(tmp_path / "m.onnx")
    path = builders.externalize(builders.mlp(), tmp_path)
    os.link(tmp_path / "weights.data", tmp_path / "second")
    with pytest.raises(UnsafeModelError):
        fingerprint(path)


def test_large_files_are_hashed_in_pieces(tmp_path):
    path = tmp_path / "large"
    content = os.urandom(1 << 10) * 2500
    path.write_bytes(content)
    assert sha256_of(path) == (hashlib.sha256(content).hexdigest(), len(content))
    path.write_bytes(b"")
    assert sha256_of(path) == (hashlib.sha256().hexdigest(), 0)


def test_unreadable_files_are_typed(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OutputError) as error:
            sha256_of(path)
        assert error.value.where == str(path)
