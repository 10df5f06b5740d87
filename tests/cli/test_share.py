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


@pytest.mark.parametrize(
    ("code", "arguments", "text"),
    [
        (2, (), "Missing option '--method'"),
        (2, ("--method", "weave"), "weave"),
    ],
)
def test_what_cannot_be(code, arguments, text, folder, tmp_path):
    fails(code, "share", folder / "mlp.onnx", "-o", tmp_path / "a.onnx", *arguments, text=text)
    assert not list(tmp_path.iterdir())
