"""What the user says about a module's inputs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.errors import UsageError
from onnxcomp.pytorch.specs import Input, like, parse_inputs, sizes_to_check, traced_sizes, with_dynamic

ARGUMENTS = ("x", "mask")


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["x:float32[1,3,224,224]"], [("x", "float32", (1, 3, 224, 224))]),
        (["mask:bool[2]", "x:int64[2, 5]"], [("x", "int64", (2, 5)), ("mask", "bool", (2,))]),
        (["float32[2]", "uint8[3]"], [("x", "float32", (2,)), ("mask", "uint8", (3,))]),
        ([" x : float16[] "], [("x", "float16", ())]),
    ],
)
def test_inputs_are_read_and_ordered_like_the_arguments(specs, expected):
    assert [(i.name, i.dtype, i.shape) for i in parse_inputs(specs, ARGUMENTS)] == expected


@pytest.mark.parametrize(
    ("spec", "text", "hint"),
    [
        ("x", "not of the form", "--dynamic"),
        ("x:float32", "not of the form", "--dynamic"),
        ("x:float32[1,,3]", "not of the form", "--dynamic"),
        ("x:float32[0,3]", "not of the form", "--dynamic"),
        ("x:float32[-1,3]", "not of the form", "--dynamic"),
        ("x:float32[batch,3]", "not of the form", "--dynamic"),
        ("x:float23[1]", "unknown type 'float23'", "did you mean 'float32'?"),
        ("x:complex[1]", "unknown type 'complex'", "one of float32"),
        ("masq:float32[1]", "no argument 'masq'", "did you mean 'mask'?"),
        ("image:float32[1]", "no argument 'image'", "its arguments are: x, mask"),
    ],
)
def test_wrong_input_specs(spec, text, hint):
    with pytest.raises(UsageError) as caught:
        parse_inputs([spec], ARGUMENTS)
    assert text in caught.value.message
    assert caught.value.where == f"--inputs {spec}"
    assert hint in caught.value.hint


def test_dynamic_axes_of_size_one_are_traced_at_two():
    inputs = [Input("x", "float32", (1, 9, 4)), Input("mask", "int64", (1, 9))]
    found = with_dynamic(inputs, ["x:0=batch", "x:1=seq", "mask:0=batch"])
    assert [one.shape for one in found] == [(2, 9, 4), (2, 9)]
    assert [dict(one.dims) for one in found] == [{0: "batch", 1: "seq"}, {0: "batch"}]
    assert traced_sizes(found) == {"batch": 2, "seq": 9}


@pytest.mark.parametrize(
    ("specs", "text", "hint"),
    [
        (["x:batch"], "not of the form", None),
        (["x:0=2"], "not of the form", None),
        (["y:0=batch"], "no input 'y'", "there are: x, mask"),
        (["maks:0=batch"], "no input 'maks'", "did you mean 'mask'?"),
        (["x:2=batch"], "2 axes only", None),
        (["x:0=batch", "x:0=rows"], "axis 0 has two names", None),
    ],
)
def test_wrong_dynamic_specs(specs, text, hint):
    with pytest.raises(UsageError) as caught:
        with_dynamic([Input("x", "float32", (2, 3)), Input("mask", "int64", (2,))], specs)
    assert text in caught.value.message
    assert caught.value.where == f"--dynamic {specs[-1]}"
    assert caught.value.hint == hint


def test_one_dimension_has_one_size():
    inputs = [Input("x", "float32", (2, 3)), Input("mask", "int64", (4,))]
    with pytest.raises(UsageError, match="two sizes") as caught:
        with_dynamic(inputs, ["x:0=batch", "mask:0=batch"])
    assert caught.value.where == "--inputs mask"


@pytest.mark.parametrize("traced", [1, 2, 3, 8])
def test_at_least_two_other_sizes_of_every_axis_are_compared(traced):
    inputs = with_dynamic([Input("x", "float32", (traced, traced, 4))], ["x:0=batch", "x:1=seq"])
    sizes = sizes_to_check(inputs, [])
    assert sizes[0] == traced_sizes(inputs)
    for dim in ("batch", "seq"):
        others = {s[dim] for s in sizes} - {sizes[0][dim]}
        assert len(others) >= 2
        assert all(size >= 1 for size in others)
    assert 1 in {s["batch"] for s in sizes}
    assert len({tuple(s.items()) for s in sizes}) == len(sizes)


def test_a_size_more_than_double_is_among_them():
    inputs = with_dynamic([Input("x", "float32", (2, 12, 4))], ["x:1=seq"])
    assert max(s["seq"] for s in sizes_to_check(inputs, [])) > 24


def test_static_inputs_have_one_case():
    assert sizes_to_check([Input("x", "float32", (2, 3))], []) == [{}]


def test_further_sizes_keep_the_traced_size_of_the_others():
    inputs = with_dynamic([Input("x", "float32", (2, 12))], ["x:0=batch", "x:1=seq"])
    assert sizes_to_check(inputs, ["seq=33", "batch=5, seq=6"])[-2:] == [
        {"batch": 2, "seq": 33},
        {"batch": 5, "seq": 6},
    ]


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("bacth=3", "did you mean 'batch'?"),
        ("width=3", "dynamic axes are: batch"),
        ("batch=0", "did you mean 'batch'?"),
        ("batch", "did you mean 'batch'?"),
        ("batch=-1", "did you mean 'batch'?"),
    ],
)
def test_wrong_sizes_to_check(spec, hint):
    inputs = with_dynamic([Input("x", "float32", (2, 12))], ["x:0=batch"])
    with pytest.raises(UsageError, match="batch=1,seq=7") as caught:
        sizes_to_check(inputs, [spec])
    assert caught.value.where == f"--check-sizes {spec}"
    assert caught.value.hint == hint


def test_arrays_have_the_sizes_asked_for_and_follow_the_seed():
    one = Input("x", "float32", (2, 12, 4), {0: "batch"})
    array = one.make({"batch": 5, "other": 9}, 0)
    assert (array.shape, array.dtype) == ((5, 12, 4), np.float32)
    np.testing.assert_array_equal(array, one.make({"batch": 5}, 0))
    assert not np.array_equal(array, one.make({"batch": 5}, 1))
    assert array.std() == pytest.approx(1, abs=0.3)


def test_integers_stay_within_the_values_of_the_example():
    ids = Input("ids", "int64", (2, 3), {0: "batch"}, np.array([[7, 9, 7], [9, 12, 7]]))
    assert set(np.unique(ids.make({"batch": 50}, 0))) == {7, 9, 12}
    plain = Input("ids", "int64", (2, 3), {0: "batch"})
    assert set(np.unique(plain.make({"batch": 50}, 0))) == {0, 1}
    assert Input("m", "bool", (4,)).make({}, 0).dtype == bool


IDS = Input("ids", "int64", (2, 3), {0: "batch"}, np.array([[7, 9, 7], [9, 300, 7]]))
MASK = Input("mask", "int64", (2, 3), {0: "batch"}, mask=True)


def test_inputs_take_the_values_of_known_ones_and_keep_their_own_sizes_and_types():
    given = parse_inputs(["ids:int32[5,40]", "mask:bool[5,40]", "other:float32[2]"], ("ids", "mask", "other"))
    ids, mask, other = like(given, [MASK, IDS])
    assert set(np.unique(ids.traced())) == {7, 9, 300}
    assert (ids.traced().shape, ids.traced().dtype) == ((5, 40), np.int32)
    lengths = mask.traced().sum(1)
    assert mask.traced().dtype == bool
    assert lengths.min() >= 1
    assert len(set(lengths)) > 1
    np.testing.assert_array_equal(mask.traced(), np.arange(40) < lengths[:, np.newaxis])
    assert other == given[2]
    assert not any(one.dims for one in (ids, mask, other))
    np.testing.assert_array_equal(like(parse_inputs(["ids:int64[2,3]"], ("ids",)), [IDS])[0].traced(), IDS.example)


@pytest.mark.parametrize("dtype", ["float32", "bool", "int8", "uint8"])
def test_types_that_cannot_hold_the_values_of_the_example(dtype):
    with pytest.raises(UsageError, match="'ids' holds int64 up to 300") as caught:
        like([Input("ids", dtype, (4, 5))], [IDS])
    assert caught.value.where == f"--inputs ids:{dtype}"
    assert caught.value.hint == "give ids:int64[4,5]"


def test_a_mask_needs_an_axis():
    (scalar,) = like([Input("mask", "int64", ())], [MASK])
    assert scalar.traced().shape == ()
