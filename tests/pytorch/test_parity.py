"""The gate of an export, against files that are wrong on purpose."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from onnxcomp.errors import AccuracyGateError, GateError
from onnxcomp.pytorch.parity import check_axes, check_parity, output_shapes
from onnxcomp.pytorch.specs import Input

X = Input("x", "float32", (2, 4), {0: "n"})
SIZES = [{"n": 2}, {"n": 1}, {"n": 3}]


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def only(*sizes):
    """Relu that refuses all other sizes, as a reshape would."""

    def function(x):
        if len(x) not in sizes:
            raise RuntimeError(f"shape '[2]' is invalid for {len(x)}\nand more")
        return torch.relu(x)

    return Wrapped(function)


@pytest.fixture
def relu(tmp_path):
    return builders.save(builders.relu(), tmp_path / "m.onnx")


def test_equal_models_pass_at_every_size(relu):
    done = check_parity(Wrapped(torch.relu), relu, [X], SIZES, 1e-4)
    assert [(dict(p.sizes), p.max_rel_error) for p in done] == [(sizes, 0.0) for sizes in SIZES]


def test_a_difference_at_another_size_only_is_found(relu):
    module = Wrapped(lambda x: torch.relu(x) * (1 if len(x) < 3 else 2))
    with pytest.raises(AccuracyGateError, match="n=3") as caught:
        check_parity(module, relu, [X], SIZES, 1e-4)
    assert caught.value.where == "output y"
    assert "x.shape" in caught.value.hint


def test_a_difference_at_the_traced_size_is_put_down_to_the_module(relu):
    with pytest.raises(AccuracyGateError, match="n=2") as caught:
        check_parity(Wrapped(lambda x: torch.relu(x) + torch.rand(())), relu, [X], SIZES, 1e-4)
    assert "twice" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_differences(value, relu):
    module = Wrapped(lambda x: torch.relu(x).index_fill(1, torch.tensor(0), value))
    with pytest.raises(AccuracyGateError):
        check_parity(module, relu, [X], SIZES, 1e-4)


def test_a_shape_that_differs_is_found(relu):
    with pytest.raises(AccuracyGateError, match=r"\(2, 4\) instead of \(2, 1\)"):
        check_parity(Wrapped(lambda x: torch.relu(x)[:, :1]), relu, [X], SIZES, 1e-4)


def test_a_missing_output_is_found(relu):
    with pytest.raises(AccuracyGateError, match="2 outputs"):
        check_parity(Wrapped(lambda x: (torch.relu(x), x)), relu, [X], SIZES, 1e-4)


def test_sizes_that_torch_refuses_are_passed_over_when_others_remain(relu):
    done = check_parity(only(2, 1, 5), relu, [X], [*SIZES, {"n": 5}], 1e-4)
    assert [p.sizes["n"] for p in done] == [2, 1, 5]


def test_too_few_other_sizes_prove_nothing(relu):
    with pytest.raises(GateError, match="1 other sizes only") as caught:
        check_parity(only(2, 1), relu, [X], SIZES, 1e-4)
    assert "n=3: shape '[2]' is invalid for 3" in caught.value.message
    assert "and more" not in caught.value.message
    assert "--check-sizes" in caught.value.hint


def test_a_file_that_does_not_run_at_other_sizes_is_refused(tmp_path):
    fixed = builders.model(
        [helper.make_node("Relu", ["x"], ["y"])], [builders.value("x", 2, 4)], [builders.value("y", 2, 4)]
    )
    with pytest.raises(AccuracyGateError, match="does not run at n=1"):
        check_parity(Wrapped(torch.relu), builders.save(fixed, tmp_path / "m.onnx"), [X], SIZES, 1e-4)


def test_a_frozen_axis_is_named(tmp_path, relu):
    check_axes(relu, [X])
    fixed = builders.model(
        [helper.make_node("Relu", ["x"], ["y"])], [builders.value("x", "n", 4)], [builders.value("y", "n", 4)]
    )
    path = builders.save(fixed, tmp_path / "m.onnx")
    with pytest.raises(GateError, match=r"axis 1 \('width'\) was frozen to 4") as caught:
        check_axes(path, [Input("x", "float32", (2, 4), {0: "n", 1: "width"})])
    assert caught.value.where == "input x"


def test_a_static_model_is_tried_with_two_inputs(relu):
    seen = []

    def function(x):
        seen.append(x.numpy().copy())
        return torch.relu(x)

    static = Input("x", "float32", (2, 4))
    assert [dict(p.sizes) for p in check_parity(Wrapped(function), relu, [static], [{}], 1e-4)] == [{}, {}]
    assert not np.array_equal(*seen)


def test_output_shapes_leave_out_what_torch_refuses():
    assert output_shapes(only(2, 3), [X], SIZES) == [[(2, 4)], [(3, 4)]]
