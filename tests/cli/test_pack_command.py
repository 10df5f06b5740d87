"""`onnxcomp pack`, and `onnxcomp verify` of a pack."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from test_cli import fails, ok, run

from onnxcomp import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pack")
    builders.save(builders.mlp(width=60_000), place / "mlp.onnx")
    builders.save(builders.encoder(), place / "encoder.onnx")
    np.savez(place / "data.npz", x=builders.samples(20, 16))
    return place


def test_pack_and_verify(folder, tmp_path):
    made = ok("pack", folder / "mlp.onnx", "-o", tmp_path / "p", "--workers", 2, "--data", folder / "data.npz")
    assert made["schema"] == "onnxcomp/pack/1"
    assert made["output"] == str(tmp_path / "p")
    assert made["sharing_effective"] is True
    assert made["verification"]["outputs"] == {"identical": True, "runs": 3, "data": str(folder / "data.npz")}
    assert made["key"]
    done = run("verify", tmp_path / "p")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "verified sha256, host, loads, outputs, sharing" in text
    assert "sharing effective" in text
    fails(8, "pack", folder / "mlp.onnx", "-o", tmp_path / "p", text="exists")
    (data,) = (tmp_path / "p").glob("*.data")
    data.write_bytes(bytes(data.stat().st_size))
    fails(3, "verify", tmp_path / "p", text="is not what it was")
    with pytest.warns(pack.PackWarning):
        pack.open(tmp_path / "p")


def test_nothing_to_share_is_said(folder, tmp_path):
    done = run("pack", folder / "encoder.onnx", "-o", tmp_path / "p", "--workers", 2, "--no-portable")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "warning: there is next to nothing to share" in done.stderr
    assert "outputs bit-identical on 3 runs of random:3" in text
    assert "sharing not effective" in text
    assert "fallback none" in text


@pytest.mark.parametrize(
    ("code", "arguments", "text"),
    [
        (2, ("--layout", "tritn"), "tritn"),
        (2, ("--workers", 1), "1"),
        (2, ("--plan", "plan.json"), "--layout triton"),
        (2, ("--shape", "seq"), "NAME=N"),
        (8, ("--data", "none.npz"), "none.npz"),
    ],
)
def test_what_cannot_be(code, arguments, text, folder, tmp_path):
    fails(code, "pack", folder / "encoder.onnx", "-o", tmp_path / "p", *arguments, text=text)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_pack(tmp_path):
    fails(8, "verify", tmp_path, text="pack.json")
