"""Graphs in which one node is known to be ruined by int8.

Feature 0 is zero everywhere, so a large number in row 0 of a matrix changes no output; but it makes the
scale of its columns so coarse that nothing else is left of them.
"""

from __future__ import annotations

import builders
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.inspect import MODULE

WIDTH = 32
NODES = ("first", "second", "third")


def rows(count: int = 96) -> np.ndarray:
    """float32, (count, WIDTH)."""
    x = builders.samples(count, WIDTH)
    x[:, 0] = 0
    return x


def _matrix(name: str, *, ruined: bool) -> onnx.TensorProto:
    values = np.random.default_rng([7, *name.encode()]).standard_normal((WIDTH, WIDTH)) * 0.3
    values[:, 0] = 0
    values[0, 1:] = 300 if ruined else 0
    return numpy_helper.from_array(values.astype(np.float32), f"{name}.weight")


def _layers(ruined: set[str], result: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes, held, value = [], [], "x"
    for name in NODES:
        node = helper.make_node("MatMul", [value, f"{name}.weight"], [name], name=name)
        node.metadata_props.add(key=MODULE, value=f"body.{name}")
        held.append(_matrix(name, ruined=name in ruined))
        value = result if name == NODES[-1] else f"{name}.relu"
        nodes += [node, helper.make_node("Relu", [name], [value], name=f"{name}.activation")]
    return nodes, held


def chain(*ruined: str) -> onnx.ModelProto:
    """x (batch, WIDTH) -> three times MatMul, Relu -> y; the matrices of `ruined` do not bear int8."""
    nodes, held = _layers(set(ruined), "y")
    return builders.model(nodes, [builders.value("x", "batch", WIDTH)], [builders.value("y", "batch", WIDTH)], held)


def in_a_branch(ruined: str) -> onnx.ModelProto:
    """The same chain in the branch of an If that is always taken, though nobody can know beforehand."""
    nodes, held = _layers({ruined}, "inner")
    out = builders.value("inner", "batch", WIDTH)
    taken = helper.make_graph(nodes, "taken", [], [out], held)
    other = helper.make_node("Identity", ["x"], ["other"], name="skip")
    left = helper.make_graph([other], "left", [], [builders.value("other", "batch", WIDTH)])
    return builders.model(
        [
            helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0, name="peak"),
            helper.make_node("Less", ["peak", "limit"], ["small"], name="less"),
            helper.make_node("If", ["small"], ["y"], then_branch=taken, else_branch=left, name="if"),
        ],
        [builders.value("x", "batch", WIDTH)],
        [builders.value("y", "batch", WIDTH)],
        [numpy_helper.from_array(np.array(1e9, np.float32), "limit")],
    )


def shifted() -> onnx.ModelProto:
    """MatMul, Relu, an Add that lifts one feature out of sight, a Slice that drops this feature, MatMul."""
    lift = np.zeros(WIDTH, np.float32)
    lift[0] = 1e4
    tail = builders.weight("tail.weight", WIDTH - 1, WIDTH)
    integers = {"starts": [1], "ends": [WIDTH], "axes": [1]}
    return builders.model(
        [
            helper.make_node("MatMul", ["x", "head.weight"], ["h"], name="head"),
            helper.make_node("Relu", ["h"], ["a"], name="activation"),
            helper.make_node("Add", ["a", "lift"], ["lifted"], name="lift"),
            helper.make_node("Slice", ["lifted", *integers], ["rest"], name="drop"),
            helper.make_node("MatMul", ["rest", "tail.weight"], ["y"], name="tail"),
        ],
        [builders.value("x", "batch", WIDTH)],
        [builders.value("y", "batch", WIDTH)],
        [
            _matrix("head", ruined=False),
            tail,
            numpy_helper.from_array(lift, "lift"),
            *(helper.make_tensor(name, TensorProto.INT64, [1], v) for name, v in integers.items()),
        ],
    )
