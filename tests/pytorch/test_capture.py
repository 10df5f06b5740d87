"""Modules as torch captures them: inputs, names of outputs, two ways to run, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_modules
from torch import nn

from onnxcomp.errors import UnsupportedError
from onnxcomp.pytorch.capture import TORCH_ERRORS, capture, refusal
from onnxcomp.pytorch.specs import Input

X = Input("x", "float32", (2, 4), {0: "batch"})


def captured(module, *inputs):
    return capture(module.eval(), inputs or [X])


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (torch_modules.Perceptron(), ("",)),
        (torch_modules.Nested(), ("last", "past_0", "past_1_0", "past_1_1")),
        (torch_modules.Through(), ("0", "2")),
        (torch_modules.GivesParameter(), ("0", "1")),
    ],
)
def test_outputs_are_named_by_their_place_in_the_structure(module, names):
    subject = captured(module)
    assert subject.outputs == names
    for call in (subject.eager, subject.captured):
        assert len(call({"x": ramp(3, 4)})) == len(names)


def test_both_ways_to_run_agree_at_other_sizes():
    subject = captured(torch_modules.Nested())
    x = ramp(5, 4)
    for call in (subject.eager, subject.captured):
        np.testing.assert_array_equal(call({"x": x}), [x + 1, x + 2, x + 3, x + 4])


def test_arguments_that_the_module_does_not_use_stay_inputs():
    other = Input("other", "float32", (2, 3), {0: "rows"})
    subject = captured(torch_modules.Unused(), X, other)
    assert [one.name for one in subject.inputs] == ["x", "other"]
    (got,) = subject.captured({"x": ramp(3, 4), "other": ramp(7, 3)})
    np.testing.assert_array_equal(got, ramp(3, 4) * 2)


def test_arguments_by_keyword_only_and_in_any_order():
    scale = Input("scale", "float32", (2, 4), {0: "batch"})
    subject = captured(torch_modules.ByKeyword(), scale, X)
    assert sorted(one.name for one in subject.inputs) == ["scale", "x"]
    feeds = {"x": ramp(3, 4), "scale": np.full((3, 4), 2, np.float32)}
    for call in (subject.eager, subject.captured):
        np.testing.assert_array_equal(call(feeds)[0], ramp(3, 4) * 2)


def test_an_argument_with_a_default_may_be_left_out_in_the_middle():
    y = Input("y", "float32", (2, 4), {0: "batch"})
    subject = captured(torch_modules.Defaults(), X, y)
    assert [one.name for one in subject.inputs] == ["x", "y"]
    for call in (subject.eager, subject.captured):
        np.testing.assert_array_equal(call({"x": ramp(3, 4), "y": ramp(3, 4)})[0], ramp(3, 4) * 2)


def test_one_example_for_two_inputs_does_not_make_them_one():
    example = ramp(2, 4)
    both = [Input(name, "float32", (2, 4), {0: "batch"}, example=example) for name in ("x", "y")]
    (got,) = captured(torch_modules.Bare(), *both).captured({"x": ramp(3, 4), "y": np.zeros((3, 4), np.float32)})
    np.testing.assert_array_equal(got, ramp(3, 4))


def test_booleans_and_integers_are_inputs():
    dims = {0: "batch"}
    keep, times = Input("keep", "bool", (2, 4), dims), Input("times", "int32", (2, 4), dims)
    subject = captured(torch_modules.Chosen(), keep, times, X)
    feeds = {"keep": ramp(3, 4) > 0, "times": np.full((3, 4), 2, np.int32), "x": ramp(3, 4)}
    for call in (subject.eager, subject.captured):
        np.testing.assert_array_equal(call(feeds)[0], np.abs(ramp(3, 4)) * 2)


def test_a_module_that_writes_into_its_inputs_leaves_the_callers_alone():
    subject = captured(torch_modules.WritesIntoInput())
    x = ramp(3, 4)
    x.flags.writeable = False
    for call in (subject.eager, subject.captured):
        np.testing.assert_array_equal(call({"x": x})[0], ramp(3, 4) + 1)
    np.testing.assert_array_equal(x, ramp(3, 4))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (torch_modules.Gives(3), "returns 3, which is not a tensor"),
        (torch_modules.Gives("name"), "returns 'name', which is not a tensor"),
        (torch_modules.Nothing(), "returns no tensor"),
        (torch_modules.Branch(), "data-dependent"),
    ],
)
def test_what_has_no_form_in_onnx_is_refused(module, text):
    with pytest.raises(UnsupportedError) as caught:
        captured(module)
    assert text in caught.value.message
    assert "\n" not in caught.value.message


def test_a_size_that_the_module_fixes_is_refused_with_the_axis():
    with pytest.raises(UnsupportedError, match=r"Constraints violated \(batch\).*to be a constant \(2\)\.$") as caught:
        captured(torch_modules.BakedReshape())
    assert "x.shape" in caught.value.hint


def test_a_loop_over_an_open_axis_is_guarded():
    loop = Input("x", "float32", (2, 12, 4), {0: "batch", 1: "seq"})
    subject = captured(torch_modules.Loop(), loop)
    feeds = {"x": ramp(2, 16, 4) / 100}
    assert subject.eager(feeds)[0].shape == (2, 16, 4)
    with pytest.raises(TORCH_ERRORS, match=r"Guard failed: x.size\(\)\[1\] // 4 == 3"):
        subject.captured(feeds)


@pytest.mark.parametrize("drop", [nn.Dropout(0.9), nn.BatchNorm1d(4)])
def test_modules_run_as_they_are_in_eval_mode(drop):
    subject = captured(nn.Sequential(drop), Input("input", "float32", (2, 4), {0: "batch"}))
    x = ramp(3, 4)
    for call in (subject.eager, subject.captured):
        np.testing.assert_allclose(call({"input": x})[0], x, rtol=1e-4)


def test_the_innermost_cause_is_told_in_one_line():
    inner = ValueError("the size\n  is wrong")
    outer = RuntimeError("a long story")
    outer.__cause__ = inner
    assert refusal(outer).message == "torch cannot export the module: the size is wrong"


def test_a_cause_without_words_is_told_by_its_class():
    assert refusal(NotImplementedError()).message.endswith("NotImplementedError")


def test_the_graph_holds_at_one_where_the_traced_size_was_two():
    (got,) = captured(torch_modules.Perceptron()).captured({"x": ramp(1, 4)})
    assert got.shape == (1, 3)
    assert isinstance(torch.from_numpy(got), torch.Tensor)
