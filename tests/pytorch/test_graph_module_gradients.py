"""Gradients against finite differences, of every operator that has some; straight-through ones by their definition."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import onnx_ir as ir
import pytest
import test_graph_module_composed
import test_graph_module_operators
import torch
from builders import value, weight
from onnx import TensorProto, helper, numpy_helper
from operator_cases import floats

from onnxcomp.pytorch import GraphModule
from onnxcomp.pytorch.graph_module.registry import HOST

#: piecewise constant, or straight through
FLAT = {"Ceil", "Floor", "Round", "Sign", "CastLike", "QuantizeLinear", "DynamicQuantizeLinear"}

#: operator -> float inputs that have no gradient: exponents of negative bases
NO_GRADIENT = {"Pow": (1,)}


def learns(one, position):
    """Whether the input is a float that the output depends on smoothly."""
    array = one.inputs[position]
    excluded = (*HOST.get(one.op, ()), *NO_GRADIENT.get(one.op, ()))
    return array is not None and array.dtype.kind == "f" and array.size > 0 and position not in excluded


def smooth():
    for one in [*test_graph_module_operators.CASES, *test_graph_module_composed.CASES]:
        found = {at for at in range(len(one.inputs)) if learns(one, at)}
        if found and one.op not in FLAT and not one.op.startswith("QLinear"):
            yield dataclasses.replace(one, constant=tuple(set(one.constant) - found))


CASES = list(smooth())


@pytest.mark.parametrize("one", CASES, ids=[f"{n}-{c.op}-{c.opset}" for n, c in enumerate(CASES)])
def test_gradients_equal_finite_differences(one):
    model = GraphModule(ir.from_proto(one.model())).double()
    feeds = {name: torch.from_numpy(array) for name, array in one.feeds().items()}
    names = [name for name in feeds if learns(one, int(name[1:]))]
    learnt = [feeds[name].double().requires_grad_() for name in names]

    def function(*tensors):
        found = model({**feeds, **dict(zip(names, tensors, strict=True))})
        return tuple(tensor for tensor in found.values() if tensor.requires_grad)

    if not function(*learnt):
        assert one.op in {"And", "ArgMax", "ArgMin", "Cast", "Equal", "EyeLike", "Greater", "GreaterOrEqual", "IsInf",
                          "IsNaN", "Less", "LessOrEqual", "NonZero", "Shape", "Size"}  # fmt: skip
        return
    assert torch.autograd.gradcheck(function, learnt, fast_mode=True)


@pytest.mark.parametrize("proto", [builders.mlp(), builders.cnn()], ids=["mlp", "cnn"])
def test_gradients_of_all_weights_of_a_network(proto):
    model = GraphModule(ir.from_proto(proto)).double()
    feeds = {"x": floats(2, 16)} if "w1" in model.weights else {"image": floats(2, 3, 8, 8)}
    feeds = {name: torch.from_numpy(array).double() for name, array in feeds.items()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(*tensors):
        weights = dict(zip(trained, tensors, strict=True))
        (found,) = torch.func.functional_call(model, weights, (feeds,)).values()
        return found.square().sum()

    assert torch.autograd.gradcheck(loss, list(trained.values()), fast_mode=True)


# straight through


def quantized(zero_point, *, shape=(2, 3), scale=0.1, **attributes):
    """x -> QuantizeLinear -> DequantizeLinear -> y."""
    zero, step = np.asarray(zero_point), np.asarray(scale, np.float32)
    names = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    constants = [numpy_helper.from_array(step, "s"), numpy_helper.from_array(zero, "z")]
    proto = builders.model(names, [value("x", *shape)], [value("y", *shape)], constants)
    return GraphModule(ir.from_proto(proto))


def test_the_gradient_is_one_within_the_range_and_zero_outside():
    model = quantized(np.int8(10))
    # int8 with zero point 10 and step 0.1 holds -13.8 to 11.7
    x = torch.tensor([[-20.0, -13.8, -0.04], [0.06, 11.69, 11.9]], requires_grad=True)
    y = model(x=x)["y"]
    torch.testing.assert_close(y, torch.tensor([[-13.8, -13.8, 0.0], [0.1, 11.7, 11.7]]))
    y.backward(torch.full((2, 3), 3.0))
    assert x.grad.tolist() == [[0, 3, 3], [3, 3, 0]]


def test_each_channel_has_its_own_range():
    model = quantized(np.array([0, 128], np.uint8), shape=(2, 2), scale=[0.01, 1.0], axis=1)
    x = torch.tensor([[2.0, 2.0], [3.0, -200.0]], requires_grad=True)
    y = model(x=x)["y"]
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([[2.0, 2.0], [2.55, -128.0]]))
    assert x.grad.tolist() == [[1, 1], [0, 0]]


def test_a_step_that_trains_has_the_gradient_of_learned_step_sizes():
    """Esser et al. 2020, eq. 3: round(x / s) - x / s within the range, its end outside."""
    model = quantized(np.int8(0), shape=(1, 3))
    step = model.weights["s"].requires_grad_()
    x = torch.tensor([[0.26, -0.33, 50.0]])
    model(x=x)["y"].sum().backward()
    expected = (3 - 2.6) + (-3 + 3.3) + 127
    assert float(step.grad) == pytest.approx(expected, rel=1e-5)


def test_weights_behind_quantization_learn():
    """Weights in float, quantized in the graph, as training with quantization in the loop has them."""
    proto = builders.model(
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("MatMul", ["x", "d"], ["y"]),
        ],
        [value("x", "n", 4)],
        [value("y", "n", 3)],
        [
            weight("w", 4, 3),
            numpy_helper.from_array(np.array(0.01, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
        ],
    )
    model = GraphModule(ir.from_proto(proto))
    x = torch.from_numpy(floats(5, 4))
    model(x=x)["y"].sum().backward()
    torch.testing.assert_close(model.weights["w"].grad, x.sum(0).unsqueeze(1).expand(4, 3))
    assert model.weights["s"].grad is None


@pytest.mark.parametrize("op", ["QLinearMatMul", "DynamicQuantizeLinear"])
def test_gradients_pass_through_integer_products(op):
    """As the float product's, which they stand for; nothing is cut here."""
    if op == "QLinearMatMul":
        made = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            helper.make_node(op, ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["p"]),
            helper.make_node("DequantizeLinear", ["p", "ys", "yz"], ["y"]),
        ]
    else:
        made = [
            helper.make_node(op, ["x"], ["q", "qs", "qz"]),
            helper.make_node("MatMulInteger", ["q", "w", "qz", "wz"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "qs"], ["g"]),
            helper.make_node("Mul", ["g", "ws"], ["y"]),
        ]
    codes = np.random.default_rng(0).integers(-127, 128, (4, 3)).astype(np.int8)
    numbers = {"xs": np.float32(0.02), "ws": np.float32(0.01), "ys": np.float32(0.05)}
    numbers |= {"xz": np.uint8(128), "wz": np.int8(0), "yz": np.uint8(128)}
    stored = [numpy_helper.from_array(np.asarray(number), name) for name, number in numbers.items()]
    proto = builders.model(made, [value("x", 2, 4)], [value("y", 2, 3)], [numpy_helper.from_array(codes, "w"), *stored])
    x = torch.from_numpy(np.tanh(floats(2, 4))).requires_grad_()
    GraphModule(ir.from_proto(proto))(x=x)["y"].sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(codes * np.float32(0.01)).sum(1).expand(2, 4))
