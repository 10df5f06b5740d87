"""The gate of an export, against files that are wrong on purpose."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from onnx import helper

from onnxcomp.errors import AccuracyGateError, DataError, GateError, UnsupportedError
from onnxcomp.pytorch.capture import Subject
from onnxcomp.pytorch.parity import cases_of, check_axes, check_parity
from onnxcomp.pytorch.specs import Input

X = Input("x", "float32", (2, 4), {0: "n"})
SIZES = [{"n": 2}, {"n": 1}, {"n": 3}, {"n": 5}]


def reference(function, captured=None, one=X):
    """What torch would compute, as functions of an array."""

    def call(wanted):
        def run(feeds):
            found = wanted(feeds["x"])
            return list(found) if isinstance(found, tuple) else [found]

        return run

    return Subject(None, (one,), ("",), call(function), call(captured or function))


def positive(x):
    return np.maximum(x, 0)


def only(*sizes):
    """Relu that refuses all other sizes, as a reshape would."""

    def function(x):
        if len(x) not in sizes:
            raise RuntimeError(f"shape '[2]' is invalid for {len(x)}\nand more")
        return positive(x)

    return function


def compared(function, path, sizes=SIZES):
    return check_parity(path, cases_of(reference(function), sizes), 1e-4)


@pytest.fixture
def relu(tmp_path):
    return builders.save(builders.relu(), tmp_path / "m.onnx")


def test_equal_models_pass_at_every_size(relu):
    done = compared(positive, relu)
    assert [(dict(p.sizes), p.max_rel_error, p.inputs) for p in done] == [(s, 0.0, "seeded") for s in SIZES]


def test_every_size_has_values_of_its_own():
    cases = cases_of(reference(positive), SIZES)
    assert [case.feeds["x"].shape for case in cases] == [(s["n"], 4) for s in SIZES]
    assert len({float(case.feeds["x"][0, 0]) for case in cases}) == len(cases)


def test_a_difference_at_another_size_only_is_found(relu):
    with pytest.raises(AccuracyGateError, match="n=3") as caught:
        compared(lambda x: positive(x) * (1 if len(x) < 3 else 2), relu)
    assert caught.value.where == "output y"
    assert "x.shape" in caught.value.hint


def test_a_difference_at_the_traced_size_is_put_down_to_the_module(relu):
    with pytest.raises(AccuracyGateError, match="n=2") as caught:
        compared(lambda x: positive(x) + np.float32(0.1), relu)
    assert "twice" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_differences(value, relu):
    with pytest.raises(AccuracyGateError):
        compared(lambda x: np.where(np.arange(4) == 0, np.float32(value), positive(x)), relu)


def test_a_shape_that_differs_is_found(relu):
    with pytest.raises(AccuracyGateError, match=r"\(2, 4\) instead of \(2, 1\)"):
        compared(lambda x: positive(x)[:, :1], relu)


def test_a_missing_output_is_found(relu):
    with pytest.raises(AccuracyGateError, match="2 outputs"):
        compared(lambda x: (positive(x), x), relu)


def test_sizes_that_torch_refuses_are_passed_over_when_three_others_remain(relu):
    done = compared(only(2, 1, 5, 7), relu, [*SIZES, {"n": 7}])
    assert [p.sizes["n"] for p in done] == [2, 1, 5, 7]


def test_too_few_other_sizes_prove_nothing():
    with pytest.raises(GateError, match="2 other sizes only") as caught:
        cases_of(reference(only(2, 1, 5)), SIZES)
    assert "n=3: shape '[2]' is invalid for 3" in caught.value.message
    assert "and more" not in caught.value.message
    assert "--check-sizes" in caught.value.hint


def test_a_module_that_refuses_the_traced_size_is_no_model():
    with pytest.raises(UnsupportedError, match="does not run at n=2: shape '\\[2\\]' is invalid for 2"):
        cases_of(reference(only(1, 3, 5)), SIZES)


@pytest.mark.parametrize("broken", [3, 5])
def test_a_size_that_only_the_captured_program_refuses_was_baked_in(broken):
    with pytest.raises(GateError, match=f"does not hold at n={broken}: shape '\\[2\\]' is invalid") as caught:
        cases_of(reference(positive, only(*{1, 2, 3, 5} - {broken})), SIZES)
    assert "x.shape" in caught.value.hint


def test_guards_against_one_are_convention():
    cases = cases_of(reference(positive, only(2, 3, 5)), SIZES)
    assert {"n": 1} in [case.sizes for case in cases]


def test_a_file_that_does_not_run_at_other_sizes_is_refused(tmp_path):
    fixed = builders.model(
        [helper.make_node("Relu", ["x"], ["y"])], [builders.value("x", 2, 4)], [builders.value("y", 2, 4)]
    )
    with pytest.raises(AccuracyGateError, match="does not run at n=1"):
        compared(positive, builders.save(fixed, tmp_path / "m.onnx"))


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
    cases = cases_of(reference(positive, one=Input("x", "float32", (2, 4))), [{}])
    assert [dict(p.sizes) for p in check_parity(relu, cases, 1e-4)] == [{}, {}]
    assert not np.array_equal(cases[0].feeds["x"], cases[1].feeds["x"])


def test_real_inputs_are_compared_after_the_seeded_ones(relu):
    real = [{"x": np.full((6, 4), -3, np.float32)}, {"x": np.full((4, 4), 3, np.float32)}]
    done = check_parity(relu, cases_of(reference(positive), SIZES, real), 1e-4)
    assert [(dict(p.sizes), p.inputs) for p in done[len(SIZES) :]] == [({"n": 6}, "real"), ({"n": 4}, "real")]


def test_a_difference_on_real_inputs_only_is_found(relu):
    cases = cases_of(
        reference(lambda x: np.where(x > 50, np.float32(50), positive(x))), SIZES, [{"x": np.full((2, 4), 99, "f4")}]
    )
    assert check_parity(relu, cases[:-1], 1e-4)
    with pytest.raises(AccuracyGateError, match="differs from torch"):
        check_parity(relu, cases, 1e-4)


def test_real_inputs_that_torch_refuses_are_bad_data():
    with pytest.raises(DataError, match="shape '\\[2\\]' is invalid for 9") as caught:
        cases_of(reference(only(1, 2, 3, 5)), SIZES, [{"x": np.ones((9, 4), np.float32)}])
    assert caught.value.where == "--data"
