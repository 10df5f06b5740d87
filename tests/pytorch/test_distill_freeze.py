"""Weights that stay as they are while the others train."""

from __future__ import annotations

import distill_samples as things
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxcomp.errors import UsageError
from onnxcomp.pytorch import distill


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def learn(folder, student, **options):
    teacher = things.teacher(folder)
    data = {"x": things.samples(teacher, 60)["x"]}
    return distill(teacher, student, data, folder / "out.onnx", epochs=2, batch=10, lr=0.05, **options)


def test_an_initializer_keeps_its_bits_and_the_others_learn(tmp_path):
    student = things.student(tmp_path)
    done = learn(tmp_path, student, freeze=["w1"])
    before, after = weights(student), weights(tmp_path / "out.onnx")
    np.testing.assert_array_equal(after["w1"], before["w1"])
    assert all(not np.array_equal(after[name], before[name]) for name in before if name != "w1")
    step = done.to_json()["passes"][0]
    assert step["options"]["freeze"] == ["w1"]
    assert step["effect"]["trained_parameters"] == step["effect"]["parameters"] - before["w1"].size


def test_names_with_dots_and_parameters_of_a_module(tmp_path):
    student = things.student(tmp_path)
    proto = onnx.load(student)
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "layers.0.weight"
    onnx.save(proto, student)
    learn(tmp_path, student, freeze=["layers.0.weight"])
    name = "layers.0.weight"
    np.testing.assert_array_equal(weights(tmp_path / "out.onnx")[name], weights(student)[name])
    (tmp_path / "out.onnx").unlink()
    module = things.Small()
    kept = module.second.weight.detach().clone()
    learn(tmp_path, module, freeze=["second.weight"])
    assert any(
        np.array_equal(found, kept) or np.array_equal(found, kept.T)
        for found in weights(tmp_path / "out.onnx").values()
    )


def test_a_name_that_does_not_train_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="no weight that trains") as caught:
        learn(tmp_path, things.student(tmp_path), freeze=["w11"])
    assert "w1" in caught.value.hint


def test_something_must_be_left_to_train(tmp_path):
    student = things.student(tmp_path)
    with pytest.raises(UsageError, match="nothing is left"):
        learn(tmp_path, student, freeze=list(weights(student)))
