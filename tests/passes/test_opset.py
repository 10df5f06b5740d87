"""Raising the opset: every operator means afterwards what it meant before, or the model is refused."""

from __future__ import annotations

import logging

import builders
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxcomp.errors import NoEffectError, UnsupportedError, UsageError
from onnxcomp.model import load, write_to
from onnxcomp.passes import UpgradeOpset
from onnxcomp.passes.opset import upgrade
from onnxcomp.pipeline import optimize, optimize_file

X = builders.samples(2, 3, 4, 5)
RANK = 4 * [None]


def node(op, inputs, outputs="y", **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{op.lower()}-{outputs}", **attributes)


def proto(nodes, opset, stored=None, *, outputs="y", types=None, x=X, **inputs):
    """A model of x and `inputs`, arrays that say their shapes and types; its outputs have four axes."""
    given = {"x": x, **inputs}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()],
        [helper.make_tensor_value_info(n, (types or {}).get(n, builders.FLOAT), RANK) for n in outputs.split()],
        [numpy_helper.from_array(array, name) for name, array in (stored or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def run(path, feeds):
    """As the file stands: ORT's own rewrites off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def assert_equal_after(model, tmp_path, opset, **feeds):
    """The model that was made, whose outputs equal those of `model`."""
    feeds = {"x": X, **feeds}
    path = builders.save(model, tmp_path / "m.onnx")
    done = optimize(load(path), [UpgradeOpset(opset=opset)]).model
    made = write_to(done, tmp_path, "o")
    assert done.opset_imports[""] == opset
    onnx.checker.check_model(onnx.load(made))
    for want, got in zip(run(path, feeds), run(made, feeds), strict=True):
        assert want.dtype == got.dtype
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    return done


def assert_refused(model, opset, text, where):
    loaded = ir.from_proto(model)
    before = ir.to_proto(loaded).SerializeToString(deterministic=True)
    with pytest.raises(UnsupportedError, match=text) as caught:
        upgrade(loaded, opset)
    assert caught.value.where == where
    assert "re-export" in caught.value.hint
    assert ir.to_proto(loaded).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize(("before", "axis"), [(7, None), (7, 0), (9, 2), (11, 1), (11, -1), (12, -2), (12, 3)])
@pytest.mark.parametrize("op", ["Hardmax", "Softmax", "LogSoftmax"])
def test_axes_that_were_taken_as_one(op, before, axis, opset, tmp_path):
    attributes = {} if axis is None else {"axis": axis}
    assert_equal_after(proto([node(op, "x", **attributes)], before), tmp_path, opset)


def test_hardmax_keeps_its_name_inside_a_branch_and_between_nodes(tmp_path):
    def branch(name):
        value = helper.make_tensor_value_info(name, builders.FLOAT, RANK)
        return helper.make_graph([node("Hardmax", "h_flat", name, axis=1)], name, [], [value])

    nodes = [
        node("Sin", "x", "h_flat"),
        node("If", "c", then_branch=branch("t"), else_branch=branch("e")),
        node("Hardmax", "h_flat", "h", axis=0),
        node("Add", "h h_flat", "z"),
    ]
    model = proto(nodes, 11, outputs="y z", c=np.array(True))
    for condition in (True, False):
        done = assert_equal_after(model, tmp_path, 17, c=np.array(condition))
    assert {n.name for n in done.graph.all_nodes() if n.op_type == "Hardmax"} == {
        "hardmax-t", "hardmax-e", "hardmax-h",
    }  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 2.5, 1.7), (1, 1, 0.5, 0.4), (1, 1, 1, 0.6)])
def test_resize_keeps_its_coordinates(scales, mode, opset, tmp_path):
    stored = {"s": np.array(scales, np.float32)}
    assert_equal_after(proto([node("Resize", "x s", mode=mode)], 10, stored), tmp_path, opset)


@pytest.mark.parametrize("opset", [10, 11, 17])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("before", [7, 9])
def test_upsample_keeps_its_coordinates(before, mode, opset, tmp_path):
    scales = [1.0, 1.0, 2.5, 1.7]
    if before < 9:
        model = proto([node("Upsample", "x", mode=mode, scales=scales)], before)
    else:
        model = proto([node("Upsample", "x s", mode=mode)], before, {"s": np.array(scales, np.float32)})
    assert_equal_after(model, tmp_path, opset)


def test_computed_scales_enlarge_in_upsample_and_are_refused_in_resize(tmp_path):
    scales = np.array([1, 1, 2.5, 1.7], np.float32)
    assert_equal_after(proto([node("Upsample", "x s", mode="nearest")], 9, s=scales), tmp_path, 17, s=scales)
    assert_equal_after(proto([node("Resize", "x s", mode="linear")], 10, s=scales), tmp_path, 17, s=scales)
    assert_refused(
        proto([node("Resize", "x s", mode="nearest")], 10, s=scales), 17, "rounding is not known", "resize-y"
    )


def test_a_resize_in_both_directions_is_refused_where_it_rounds(tmp_path):
    stored = {"s": np.array([1, 1, 2, 0.5], np.float32)}
    assert_refused(proto([node("Resize", "x s")], 10, stored), 17, "enlarges one axis and reduces another", "resize-y")
    assert_equal_after(proto([node("Resize", "x s", mode="linear")], 10, stored), tmp_path, 17)


def test_a_resize_that_had_coordinates_keeps_them(tmp_path):
    stored = {"r": np.array([], np.float32), "s": np.array([1, 1, 2, 2], np.float32)}
    one = node("Resize", "x r s", mode="linear", coordinate_transformation_mode="align_corners")
    assert_equal_after(proto([one], 11, stored), tmp_path, 17)


@pytest.mark.parametrize(("before", "opset"), [(7, 10), (10, 12), (11, 17)])
def test_a_mask_of_dropout_that_is_used_is_refused(before, opset, tmp_path):
    kind = {"m": onnx.TensorProto.BOOL if before >= 10 else builders.FLOAT}
    model = proto([node("Dropout", "x", "y m")], before, outputs="y m", types=kind)
    assert_refused(model, opset, "mask is used", "dropout-y m")
    del model.graph.output[1]
    assert_equal_after(model, tmp_path, opset)


def test_a_mask_of_dropout_stays_where_it_means_the_same(tmp_path):
    model = proto([node("Dropout", "x", "y m")], 12, outputs="y m", types={"m": onnx.TensorProto.BOOL})
    assert_equal_after(model, tmp_path, 17)


def test_group_normalization_gets_a_scale_per_channel(tmp_path):
    stored = {"s": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}
    nodes = [node("Relu", "x", "r"), node("GroupNormalization", "r s b", num_groups=2)]
    x = builders.samples(2, 6, 4, 5)
    assert_equal_after(proto(nodes, 18, stored, x=x), tmp_path, 21, x=x)
    model = proto(nodes, 18, stored, x=x)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    assert_refused(model, 21, "channels is not known", "groupnormalization-y")
    assert upgrade(ir.from_proto(model), 20)


@pytest.mark.parametrize("opset", [8, 17, 21])
def test_maps_are_kept(opset, tmp_path):
    model = builders.zip_map()
    model.opset_import[0].version, model.ir_version = 7, 3
    path = builders.save(model, tmp_path / "m.onnx")
    made = write_to(optimize(load(path), [UpgradeOpset(opset=opset)]).model, tmp_path, "o")
    feeds = {"x": builders.samples(4, 3)}
    (want, plain), (got, copy) = run(path, feeds), run(made, feeds)
    assert got == want
    np.testing.assert_array_equal(copy, plain)
    before, after = onnx.load(path).graph, onnx.load(made).graph
    assert [(o.name, o.type) for o in after.output] == [(o.name, o.type) for o in before.output]
    assert [(n.op_type, n.name) for n in after.node if n.domain] == [
        (n.op_type, n.name) for n in before.node if n.domain
    ]


def test_a_map_that_is_computed_with_is_refused(tmp_path):
    model = builders.zip_map()
    model.opset_import[0].version = 13
    model.graph.node[0].output[0] = "map"
    model.graph.node.append(helper.make_node("Identity", ["map"], ["scores"]))
    loaded = load(builders.save(model, tmp_path / "m.onnx"))
    with pytest.raises(UnsupportedError, match="a map is computed with") as caught:
        upgrade(loaded, 17)
    assert caught.value.where == "scores"
    assert loaded.opset_imports[""] == 13


def test_the_format_is_raised_with_the_opset(tmp_path):
    model = builders.as_old(builders.cnn(opset=8))
    done = optimize_file(
        builders.save(model, tmp_path / "m.onnx"), tmp_path / "o.onnx", [UpgradeOpset()], allow_larger=True
    )
    assert done.passes[0].effect == {"opset": {"before": 8, "after": 17}}
    assert done.equivalence <= 1e-6
    assert onnx.load(tmp_path / "o.onnx").ir_version == 8
    newer = builders.relu()
    newer.ir_version = 10
    newer.opset_import[0].version = 13
    assert optimize(ir.from_proto(newer), [UpgradeOpset()]).model.ir_version == 10


def test_the_converters_reason_is_told_and_nothing_is_logged(caplog, capfd):
    stored = {name: np.abs(X[0]) for name in "sbmv"}
    model = proto([node("BatchNormalization", "x s b m v", spatial=0)], 7, stored)
    with caplog.at_level(logging.WARNING):
        assert_refused(model, 17, "opset 7 cannot be raised to 17: .*spatial", None)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("onnxscript").handlers


def test_it_is_never_lowered_and_bounds_are_kept():
    with pytest.raises(NoEffectError):
        optimize(ir.from_proto(builders.mlp(opset=18)), [UpgradeOpset(opset=17)])
    for opset in (6, 24):
        with pytest.raises(UsageError, match="7 to 23"):
            optimize(ir.from_proto(builders.mlp()), [UpgradeOpset(opset=opset)])
