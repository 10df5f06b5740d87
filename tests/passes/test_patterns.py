"""N:M sparsity: along the axis that is summed over, the largest of each group, and what has no such axis."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxcomp.errors import NoEffectError, UsageError
from onnxcomp.inspect import weights
from onnxcomp.model import load
from onnxcomp.passes import PruneMagnitude
from onnxcomp.passes.prune.zeros.patterns import Pattern
from onnxcomp.passes.prune.zeros.sums import uses
from onnxcomp.pipeline import optimize


def one(
    op: str, *shape: int, weight_first: bool = False, domain: str = "", rank: int = 2, **attributes
) -> onnx.ModelProto:
    """x and one stored weight through one node."""
    inputs = ["w", "x"] if weight_first else ["x", "w"]
    if op in ("LSTM", "GRU"):
        inputs.append("r")
    proto = builders.model(
        [helper.make_node(op, inputs, ["y"], name="node", domain=domain, **attributes)],
        [builders.value("x", *(["a", "b", "c", "d"][:rank]))],
        [builders.value("y", *(["e", "f", "g", "h"][:rank]))],
        [builders.weight("w", *shape), builders.weight("r", 1, 16, 4)][: len(inputs) - 1],
    )
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


AXES = {
    "Conv": (one("Conv", 6, 8, 3, 3, rank=4), 1),
    "ConvTranspose": (one("ConvTranspose", 8, 6, 2, 2, rank=4), 0),
    "MatMul": (one("MatMul", 8, 6), 0),
    "MatMul, weight first": (one("MatMul", 6, 8, weight_first=True), 1),
    "MatMul of three axes": (one("MatMul", 2, 8, 6, rank=3), 1),
    "Gemm": (one("Gemm", 8, 6), 0),
    "Gemm transB": (one("Gemm", 6, 8, transB=1), 1),
    "Gemm, weight first": (one("Gemm", 6, 8, weight_first=True), 1),
    "Gemm transA, weight first": (one("Gemm", 8, 6, weight_first=True, transA=1), 0),
    "LSTM": (one("LSTM", 1, 16, 8, rank=3, hidden_size=4), 2),
    "FusedMatMul transB": (one("FusedMatMul", 6, 8, domain="com.microsoft", transB=1), 1),
    "Attention": (one("Attention", 8, 24, domain="com.microsoft", num_heads=2, rank=3), 0),
}


@pytest.mark.parametrize("name", AXES)
def test_the_axis_that_is_summed_over(name, tmp_path):
    proto, axis = AXES[name]
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    found = {value.name: [use.axis for use in all_uses] for value, all_uses in uses(model).items()}
    assert found["w"] == [axis]


@pytest.mark.parametrize("name", ["Conv", "MatMul", "Gemm transB"])
def test_two_of_four_along_it(name, tmp_path):
    proto, axis = AXES[name]
    source = builders.save(proto, tmp_path / "m.onnx")
    before = load(source).graph.initializers["w"].const_value.numpy()
    done = optimize(source, [PruneMagnitude(pattern="2:4")])
    after = done.model.graph.initializers["w"].const_value.numpy()
    groups = np.moveaxis(after, axis, -1).reshape(-1, 4)
    old = np.moveaxis(before, axis, -1).reshape(-1, 4)
    np.testing.assert_array_equal(np.count_nonzero(groups, axis=1), 2)
    np.testing.assert_array_equal(np.sort(np.abs(groups))[:, 2:], np.sort(np.abs(old))[:, 2:])
    assert done.passes[0].effect["sparsity"] == 0.5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kept=st.integers(1, 4), more=st.integers(1, 4), size=st.integers(1, 19))
def test_any_pattern_and_remainder(seed, kept, more, size):
    pattern = Pattern(kept, kept + more)
    array = np.random.default_rng(seed).integers(1, 5, (3, size, 2)).astype(np.float32)
    found = pattern.zeroed(array, 1)
    for row, out in zip(
        np.moveaxis(array, 1, -1).reshape(-1, size), np.moveaxis(found, 1, -1).reshape(-1, size), strict=True
    ):
        for start in range(0, size, pattern.of):
            group = row[start : start + pattern.of].copy()
            group[np.argsort(group, kind="stable")[: max(len(group) - kept, 0)]] = 0
            np.testing.assert_array_equal(out[start : start + pattern.of], group)


def test_a_matrix_behind_a_transpose(tmp_path):
    proto = builders.model(
        [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])],
        [builders.value("x", "n", 8)],
        [builders.value("y", "n", 6)],
        [builders.weight("w", 6, 8)],
    )
    done = optimize(builders.save(proto, tmp_path / "m.onnx"), [PruneMagnitude(pattern="1:4")])
    after = done.model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(np.count_nonzero(after.reshape(6, 2, 4), axis=2), 1)


def test_tables_stay_whole(tmp_path):
    source = load(builders.save(builders.encoder(), tmp_path / "m.onnx"))
    table = source.graph.initializers["table"].const_value.numpy()
    done = optimize(source, [PruneMagnitude(pattern="2:4")])
    np.testing.assert_array_equal(done.model.graph.initializers["table"].const_value.numpy(), table)
    assert [n.node for n in done.passes[0].notes if "no axis" in n.reason] == ["embed"]


def test_a_tied_table_has_the_axis_of_the_product(tmp_path):
    ids = builders.value("ids", "batch", "seq", dtype=onnx.TensorProto.INT64)
    proto = builders.model(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Transpose", ["table"], ["back"], perm=[1, 0]),
            helper.make_node("MatMul", ["e", "back"], ["y"]),
        ],
        [ids],
        [builders.value("y", "batch", "seq", 50)],
        [builders.weight("table", 50, 16)],
    )
    done = optimize(builders.save(proto, tmp_path / "t.onnx"), [PruneMagnitude(pattern="2:4")])
    after = done.model.graph.initializers["table"].const_value.numpy()
    np.testing.assert_array_equal(np.count_nonzero(after.reshape(50, 4, 4), axis=2), 2)


def test_what_has_no_pattern_says_why(tmp_path):
    wide = one("ConvTranspose", 8, 3, 2, 2, rank=4, group=2)
    with pytest.raises(NoEffectError, match="no float weights"):
        optimize(builders.save(wide, tmp_path / "a.onnx"), [PruneMagnitude(pattern="2:4")])
    proto = builders.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
            helper.make_node("Gemm", ["a", "w"], ["b"], transB=1),
            helper.make_node("MatMul", ["b", "v"], ["y"], name="last"),
        ],
        [builders.value("x", "n", 8)],
        [builders.value("y", "n", 3)],
        [builders.weight("w", 8, 8), builders.weight("v", 8, 3)],
    )
    done = optimize(builders.save(proto, tmp_path / "b.onnx"), [PruneMagnitude(pattern="2:4")])
    assert [n.node for n in done.passes[0].notes if "different axes" in n.reason] == ["one"]
    assert done.passes[0].effect["parameters"] == 24


def test_remainders_are_said(tmp_path):
    proto = one("MatMul", 7, 6)
    done = optimize(builders.save(proto, tmp_path / "a.onnx"), [PruneMagnitude(pattern="2:4")])
    assert done.passes[0].effect["removed_parameters"] == 6 * (2 + 1)
    assert any("the last group has 3" in n.reason for n in done.passes[0].notes)
    deep = one("Conv", 8, 1, 3, 3, rank=4, group=8)
    with pytest.raises(NoEffectError, match="no float weights"):
        optimize(builders.save(deep, tmp_path / "b.onnx"), [PruneMagnitude(pattern="2:4")])


def test_options_that_do_not_go_together(tmp_path):
    source = builders.save(builders.mlp(), tmp_path / "m.onnx")
    for text in ("4:2", "2:2", "0:4", "2-4", "2:4:8", "-1:4", ""):
        with pytest.raises(UsageError, match="N:M"):
            optimize(source, [PruneMagnitude(pattern=text)])
    with pytest.raises(UsageError, match="go together"):
        optimize(source, [PruneMagnitude(pattern="2:4", sparsity=0.5)])
    with pytest.raises(UsageError, match="scope"):
        optimize(source, [PruneMagnitude(pattern="2:4", scope="per_tensor")])


def test_every_weight_of_the_builders_is_a_use(tmp_path):
    for number, make in enumerate((builders.mlp, builders.cnn, builders.encoder, builders.branch)):
        model = load(builders.save(make(), tmp_path / f"{number}.onnx"))
        assert {w.value for w in weights(model)} <= set(uses(model))
