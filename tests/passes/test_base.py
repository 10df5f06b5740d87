"""What a user's name of a node means."""

from __future__ import annotations

import builders
import pytest

from onnxcomp import load
from onnxcomp.errors import UsageError
from onnxcomp.inspect import MODULE
from onnxcomp.passes.base import named


@pytest.fixture
def model(tmp_path):
    found = load(builders.save(builders.cnn(), tmp_path / "m.onnx"))
    paths = {"conv1": "body.0.conv", "norm1": "body.0.norm", "conv2": "body.10", "head": "head"}
    for node in found.graph:
        if node.name in paths:
            node.metadata_props[MODULE] = paths[node.name]
    return found


def test_a_node_a_module_and_all_below_it(model):
    assert named(model, ["conv1"]) == {"conv1": ["conv1"]}
    assert named(model, ["body.0"]) == {"body.0": ["conv1", "norm1"]}
    assert named(model, ["body"]) == {"body": ["conv1", "norm1", "conv2"]}


def test_a_module_is_not_a_prefix_of_letters(model):
    assert named(model, ["head"]) == {"head": ["head"]}
    with pytest.raises(UsageError, match=r"no node or module 'body\.1'") as caught:
        named(model, ["body.1"])
    assert "body.10" in caught.value.hint
