"""Factors taken in by stored numbers: the value comes divided by them, and all else stays what it was."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxcomp.model import load, write_to
from onnxcomp.passes.quantize import absorb
from onnxcomp.runtime import open_session

node, value, weight = helper.make_node, builders.value, builders.weight

WIDTH, HEADS = 32, 4
SIZE = WIDTH // HEADS


def ints(name, *numbers):
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def graph(nodes, held, *, also=(), opset=20):
    """x (batch, seq, 32) -> c, whose channels are to be divided, and further outputs (name, *shape)."""
    outputs = [value("c", "batch", "seq", WIDTH), *(value(*spec) for spec in also)]
    proto = builders.model(nodes, [value("x", "batch", "seq", WIDTH)], outputs, held, opset=opset)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def attend(queries, keys, values):
    """Attention of (batch, heads, seq, size) in parts -> c."""
    nodes = [
        node("Transpose", [keys], ["keys_turned"], perm=[0, 1, 3, 2]),
        node("MatMul", [queries, "keys_turned"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", values], ["mixed"]),
        node("Transpose", ["mixed"], ["behind"], perm=[0, 2, 1, 3]),
        node("Reshape", ["behind", "joined"], ["c"]),
    ]
    return nodes, [ints("joined", 0, 0, WIDTH)]


def projected(out=WIDTH, name="v"):
    """x times a matrix, and a bias -> `name`."""
    nodes = [
        node("MatMul", ["x", f"{name}.w"], [f"{name}.product"]),
        node("Add", [f"{name}.b", f"{name}.product"], [name]),
    ]
    return nodes, [weight(f"{name}.w", WIDTH, out), weight(f"{name}.b", out)]


def packed(pick, also=()):
    """Queries, keys and values from one product, each an entry of the first axis."""
    first, held = projected(3 * WIDTH, "qkv")
    nodes = [
        *first,
        node("Reshape", ["qkv", "split"], ["parts"]),
        node("Transpose", ["parts"], ["front"], perm=[2, 0, 3, 1, 4]),
    ]
    held = [*held, ints("split", 0, 0, 3, HEADS, SIZE), ints("zero", 0), *(ints(f"at{i}", i) for i in range(4))]
    for i, name in enumerate("qkv"):
        if pick == "Gather":
            held.append(numpy_helper.from_array(np.array(i), f"index{i}"))
            nodes.append(node("Gather", ["front", f"index{i}"], [name], axis=0))
        else:
            nodes += [
                node("Slice", ["front", f"at{i}", f"at{i + 1}", "zero"], [f"{name}.slice"]),
                node("Squeeze", [f"{name}.slice", "zero"], [name]),
            ]
    nodes += [node("Slice", ["front", "at1", "at3", "zero"], ["both"])] if also else []
    more, shapes = attend("q", "k", "v")
    return graph([*nodes, *more], [*held, *shapes], also=also)


def fused(*, biased=False, split=True, domain="com.microsoft", heads=HEADS, size=WIDTH):
    """Queries, keys and values from one product or from x, into an operator of attention."""
    out = 3 * WIDTH if split else size
    nodes, held = projected(out)
    names = ["x", "x", "v"]
    if size != WIDTH:
        more, also = projected(size, "k")
        nodes, held, names = nodes + more, held + also, ["x", "k", "v"]
    if split:
        names = ["q", "k", "values"]
        nodes.append(node("Split", ["v", "sizes"], names, axis=2))
        held.append(ints("sizes", WIDTH, WIDTH, WIDTH))
    if domain:
        held += [weight("bias", 3 * WIDTH)] if biased else []
        names += ["bias"] if biased else []
        nodes.append(node("MultiHeadAttention", names, ["mixed"], num_heads=HEADS, domain=domain))
    else:
        nodes.append(node("Attention", names, ["mixed"], q_num_heads=HEADS, kv_num_heads=heads))
    nodes.append(node("Reshape", ["mixed", "joined"], ["c"]))
    return graph(nodes, [*held, ints("joined", -1, 0, WIDTH)], opset=20 if domain else 23)


def standard_of_four_axes():
    """Heads split off before the standard operator, and joined behind it."""
    nodes, held = projected()
    nodes += [
        node("Reshape", ["x", "split"], ["x.split"]),
        node("Transpose", ["x.split"], ["q"], perm=[0, 2, 1, 3]),
        node("Reshape", ["v", "split"], ["v.split"]),
        node("Transpose", ["v.split"], ["v.heads"], perm=[0, 2, 1, 3]),
        node("Attention", ["q", "q", "v.heads"], ["mixed"]),
        node("Transpose", ["mixed"], ["behind"], perm=[0, 2, 1, 3]),
        node("Reshape", ["behind", "joined"], ["c"]),
    ]
    return graph(nodes, [*held, ints("split", 0, 0, HEADS, SIZE), ints("joined", 0, 0, WIDTH)], opset=23)


def behind(op, **attributes):
    nodes, held = projected()
    return graph([*nodes, node(op, ["v"], ["c"], **attributes)], held)


def gated():
    nodes, held = projected()
    more, also = projected(name="gate")
    tail = [node("Sigmoid", ["gate"], ["open"]), node("Mul", ["open", "v"], ["c"])]
    return graph([*nodes, *more, *tail], [*held, *also])


def norm(op, domain="", opset=20):
    names = ["x", "gamma", "beta"] if op == "LayerNormalization" else ["x", "gamma"]
    held = [weight(name, WIDTH) for name in names[1:]]
    return graph([node(op, names, ["c"], domain=domain)], held, opset=opset)


def in_parts(*, shared=False):
    """gamma * x + beta."""
    nodes = [node("Mul", ["gamma", "x"], ["scaled"]), node("Add", ["beta", "scaled"], ["c"])]
    also = ()
    if shared:
        nodes.append(node("Add", ["x", "beta"], ["other"]))
        also = (("other", "batch", "seq", WIDTH),)
    return graph(nodes, [weight("gamma", WIDTH), weight("beta", WIDTH)], also=also)


def sum_of_two():
    nodes, held = projected()
    more, also = projected(name="w")
    return graph([*nodes, *more, node("Sub", ["v", "w"], ["c"])], [*held, *also])


def divided(proto, tmp_path):
    """(what took the factors, outputs before and after, the model, the factors)."""
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    feeds = {"x": builders.samples(3, 5, WIDTH)}
    before = open_session(tmp_path / "m.onnx").run(feeds)
    factors = np.random.default_rng(0).uniform(0.2, 5, WIDTH)
    c = next(v for v in model.graph.outputs if v.name == "c")
    into = absorb.divide(c, factors)
    after = open_session(write_to(model, tmp_path, "after")).run(feeds)
    return into, before, after, model, factors


@pytest.mark.parametrize(
    ("make", "into"),
    [
        pytest.param(lambda: packed("Slice"), "MatMul", id="packed, slices"),
        pytest.param(lambda: packed("Gather"), "MatMul", id="packed, gathers"),
        pytest.param(fused, "MatMul", id="fused, split"),
        pytest.param(lambda: fused(split=False, biased=True), "MatMul", id="fused with biases"),
        pytest.param(lambda: fused(domain=""), "MatMul", id="standard attention, split"),
        pytest.param(standard_of_four_axes, "MatMul", id="standard attention of four axes"),
        pytest.param(lambda: behind("Relu"), "MatMul", id="relu"),
        pytest.param(lambda: behind("LeakyRelu", alpha=0.1), "MatMul", id="leaky relu"),
        pytest.param(gated, "MatMul", id="gated"),
        pytest.param(sum_of_two, "MatMul", id="sum"),
        pytest.param(in_parts, "Mul", id="norm in parts"),
        pytest.param(lambda: norm("LayerNormalization"), "LayerNormalization", id="layer norm"),
        pytest.param(lambda: norm("RMSNormalization", opset=23), "RMSNormalization", id="rms norm"),
    ],
)
def test_the_value_comes_divided(make, into, tmp_path):
    found, before, after, _, factors = divided(make(), tmp_path)
    assert found == into
    np.testing.assert_allclose(after["c"] * factors, before["c"], rtol=1e-4, atol=1e-4)
    assert np.abs(after["c"] - before["c"]).max() > 0.01


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: packed("Slice", also=[("both", 2, "batch", HEADS, "seq", SIZE)]), id="taken twice"),
        pytest.param(lambda: behind("Gelu"), id="gelu"),
        pytest.param(lambda: behind("Softmax"), id="softmax"),
        pytest.param(lambda: in_parts(shared=True), id="a vector of two nodes"),
        pytest.param(lambda: fused(domain="", split=False, heads=2, size=WIDTH // 2), id="heads that are repeated"),
    ],
)
def test_nothing_changes_where_it_would_be_wrong(make, tmp_path):
    proto = make()
    found, before, after, model, _ = divided(proto, tmp_path)
    assert found is None
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    for tensor in proto.graph.initializer:
        held = model.graph.initializers[tensor.name].const_value
        np.testing.assert_array_equal(held.numpy(), numpy_helper.to_array(tensor))


def test_a_large_matrix_is_divided_when_it_is_read(tmp_path):
    """1 MiB and more: the model in memory holds what it was made from, and the file the product."""
    nodes = [node("MatMul", ["x", "wide"], ["h"]), node("Relu", ["h"], ["c"])]
    held = [weight("wide", WIDTH, 1 << 13)]
    proto = builders.model(nodes, [value("x", "n", WIDTH)], [value("c", "n", 1 << 13)], held)
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    factors = np.random.default_rng(0).uniform(0.2, 5, 1 << 13)
    for _ in range(2):  # what was divided can be divided again
        assert absorb.divide(model.graph.outputs[0], factors) == "MatMul"
    assert isinstance(model.graph.initializers["wide"].const_value, ir.LazyTensor)
    written = load(write_to(model, tmp_path, "after")).graph.initializers["wide"].const_value
    np.testing.assert_allclose(written.numpy() * factors**2, numpy_helper.to_array(held[0]), rtol=1e-5)
