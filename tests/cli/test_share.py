"""`onnxcomp share`: methods, their options, what the table says."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from onnx import numpy_helper
from test_cli import fails, ok, run

from onnxcomp.model import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("share")
    twice = builders.encoder()
    turned = numpy_helper.to_array(twice.graph.initializer[1]).T
    twice.graph.initializer[4].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), "w2"))
    builders.save(twice, place / "twice.onnx")
    builders.save(builders.mlp(), place / "mlp.onnx")
    return place


def test_tie(folder, tmp_path):
    made = ok("share", folder / "twice.onnx", "-o", tmp_path / "a.onnx", "--method", "tie")
    assert made["schema"] == "onnxcomp/share/1"
    assert made["passes"][0]["effect"]["bytes_saved"] == 16 * 32 * 4
    assert made["size_ratio"] < 1
    assert "w2" not in load(tmp_path / "a.onnx").graph.initializers
    done = run("share", folder / "twice.onnx", "-o", tmp_path / "b.onnx", "--method", "tie")
    assert "1 stored tensors went, 1 of them as transposes: 2.05 kB saved" in " ".join(done.stdout.split())
    assert "a session takes as much memory as before" in done.stderr
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    fails(5, "share", tmp_path / "a.onnx", "-o", tmp_path / "c.onnx", "--method", "tie", text="changed nothing")
    assert not (tmp_path / "c.onnx").exists()


def test_cluster(folder, tmp_path):
    np.savez(tmp_path / "x.npz", x=builders.samples(40, 16))
    arguments = ("--method", "cluster", "--bits", "6", "--data", tmp_path / "x.npz")
    builders.save(builders.mlp(width=256), tmp_path / "m.onnx")
    made = ok("share", tmp_path / "m.onnx", "-o", tmp_path / "a.onnx", *arguments)
    assert made["passes"][0]["options"] == {"bits": 6, "group_size": None, "exclude": []}
    assert made["data"]["calibration"] == 32
    assert made["fidelity"] is not None
    assert made["speed"] is None
    done = run("share", tmp_path / "m.onnx", "-o", tmp_path / "b.onnx", *arguments)
    shown = " ".join(done.stdout.split())
    assert "2 of 2 weights in 6-bit codes" in shown
    assert "download size only" in shown
    assert "chosen on data: error of their outputs" in shown
    fails(5, "share", tmp_path / "a.onnx", "-o", tmp_path / "c.onnx", *arguments, text="no weight can be stored")


@pytest.mark.parametrize(
    ("code", "arguments", "text"),
    [
        (2, (), "Missing option '--method'"),
        (2, ("--method", "weave"), "weave"),
        (2, ("--method", "tie", "--bits", "4"), "--bits is not an option of --method tie"),
        (2, ("--method", "cluster", "--bits", "9"), "9"),
        (2, ("--method", "cluster", "--group-size", "0"), "a group of 0 outputs"),
        (2, ("--method", "cluster", "--exclude", "fc9"), "no node or module 'fc9'"),
        (3, ("--method", "cluster", "--data", "random:20"), "random"),
    ],
)
def test_what_cannot_be(code, arguments, text, folder, tmp_path):
    fails(code, "share", folder / "mlp.onnx", "-o", tmp_path / "a.onnx", *arguments, text=text)
    assert not list(tmp_path.iterdir())
