"""GraphModule: names, which tensors train, what is refused, control flow, and the weights' way back."""

from __future__ import annotations

import copy
import pickle

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from builders import value, weight
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from operator_cases import by_ort, floats

from onnxcomp.errors import DataError, GateError, UnsupportedError, UsageError
from onnxcomp.inspect import constants
from onnxcomp.pytorch import GraphModule
from onnxcomp.pytorch.graph_module.call import Run, execute
from onnxcomp.pytorch.graph_module.weights import escape, unescape


def module(proto, **options):
    return GraphModule(ir.from_proto(proto), **options)


def same_as_ort(model, feeds, tolerance=1e-5):
    """The module against what ONNX Runtime makes of its own `write_back`."""
    wanted = by_ort(ir.to_proto(model.write_back()), feeds)
    with torch.no_grad():
        got = model({name: torch.from_numpy(array) for name, array in feeds.items()})
    for want, have in zip(wanted, got.values(), strict=True):
        np.testing.assert_allclose(have.numpy(), want, rtol=0, atol=tolerance * np.abs(want).max())


def nodes(*made, inputs=("x",), outputs=("y",), initializers=(), opset=17, shape=(2, 4)):
    return builders.model(
        list(made),
        [value(name, *shape) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        list(initializers),
        opset=opset,
    )


# names


@given(st.text())
def test_every_name_comes_back(name):
    assert unescape(escape(name, {name, "training"})) == name
    assert "." not in escape(name)
    assert escape(name)


def test_names_that_torch_or_the_module_has_are_taken_all_the_same():
    names = ["a.b", "training", "weights", "forward", "_model", "outputs", "%", "a%2Eb", "_plans"]
    sums = [helper.make_node("Add", ["x" if n == 0 else f"s{n}", w], [f"s{n + 1}"]) for n, w in enumerate(names)]
    model = module(nodes(*sums, outputs=[f"s{len(names)}"], initializers=[weight(name, 4) for name in names]))
    assert set(model.weights) == set(names)
    same_as_ort(model, {"x": floats(2, 4)})


def test_a_file_is_read_as_well(tmp_path):
    model = GraphModule(builders.save(builders.mlp(), tmp_path / "m.onnx"))
    assert set(model.weights) == {"w1", "b1", "w2", "b2"}
    assert not model.training


# which tensors train


def test_every_float_initializer_is_a_parameter_and_all_weights_train():
    model = module(builders.cnn())
    trained = {name for name, weight in model.weights.items() if weight.requires_grad}
    assert trained == {"k1", "gamma", "beta", "k2", "kb2", "w", "b"}
    assert set(model.weights) - trained == {"mean", "var"}


def test_bounds_exponents_and_single_numbers_do_not_train_but_may():
    proto = nodes(
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "half"], ["b"]),
        helper.make_node("Clip", ["b", "low"], ["c"]),
        helper.make_node("Pow", ["c", "two"], ["y"]),
        initializers=[
            weight("w", 4, 3),
            *(numpy_helper.from_array(np.array(n, np.float32), name) for n, name in ((0.5, "half"), (-9, "low"))),
            numpy_helper.from_array(np.array([2], np.float32), "two"),
        ],
    )
    model = module(proto)
    assert {name: w.requires_grad for name, w in model.weights.items()} == {
        "w": True, "half": False, "low": False, "two": False,
    }  # fmt: skip
    model.weights["half"].requires_grad_()
    model(x=torch.from_numpy(floats(2, 4)))["y"].sum().backward()
    assert model.weights["half"].grad.abs() > 0


def test_a_bias_of_one_number_trains_and_a_number_of_a_formula_does_not():
    proto = nodes(
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["s"]),
        helper.make_node("PRelu", ["s", "slope"], ["p"]),
        helper.make_node("Add", ["one", "p"], ["y"]),
        initializers=[weight("w", 4, 1), *(weight(name, 1) for name in ("bias", "scale", "slope", "one"))],
    )
    trained = {name for name, weight in module(proto).weights.items() if weight.requires_grad}
    assert trained == {"w", "bias", "slope"}


def test_weights_in_constant_nodes_train_in_each_of_their_forms():
    made = [
        helper.make_node("Constant", [], ["w"], value=weight("", 4, 3)),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["shape"], value_ints=[3, -1]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Gemm", ["x", "w", "b"], ["g"]),
        helper.make_node("Mul", ["g", "half"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    model = module(nodes(*made))
    assert {name: w.requires_grad for name, w in model.weights.items()} == {"w": True, "b": True, "half": False}
    with torch.no_grad():
        model.weights["b"].mul_(2)
    same_as_ort(model, {"x": floats(2, 4)})


def test_integers_are_no_part_of_the_state():
    proto = nodes(
        helper.make_node("Reshape", ["x", "s"], ["y"]), initializers=[numpy_helper.from_array(np.array([8]), "s")]
    )
    model = module(proto)
    assert [name for name, _ in model.named_buffers()] == ["_like", "s"]
    assert not model.state_dict()


def test_settings_of_operators_are_no_parameters():
    scales = numpy_helper.from_array(np.array([1, 2], np.float32), "s")
    edge = numpy_helper.from_array(np.array(0.5, np.float32), "e")
    sizes = numpy_helper.from_array(np.array([1, 0, 0, 0]), "p")
    model = module(
        nodes(
            helper.make_node("Resize", ["x", "", "s"], ["r"]),
            helper.make_node("Pad", ["r", "p", "e"], ["y"]),
            initializers=[scales, edge, sizes],
        )
    )
    assert not model.weights
    assert model.double()(x=torch.ones(2, 4))["y"].dtype == torch.float64
    same_as_ort(model.float(), {"x": floats(2, 4)})


# what is refused


def test_all_that_is_missing_is_named_at_once_with_its_nodes():
    proto = nodes(
        helper.make_node("Unique", ["x"], ["u"], name="first"),
        helper.make_node("Det", ["x"], ["d"], name="second"),
        helper.make_node("Det", ["d"], ["e"], name="third"),
        helper.make_node("MaxPool", ["x"], ["p", "indices"], name="fourth", kernel_shape=[2]),
        helper.make_node("Relu", ["indices"], ["y"]),
    )
    with pytest.raises(UnsupportedError) as caught:
        module(proto)
    for part in ("Unique (1x)", "Det (2x)", "MaxPool with indices (1x)"):
        assert part in caught.value.message
    assert caught.value.where.split(", ") == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("opset", [6, 24])
def test_other_opsets_are_refused(opset):
    with pytest.raises(UnsupportedError, match=f"opset {opset}, outside of 7 to 23"):
        module(nodes(helper.make_node("Relu", ["x"], ["y"]), opset=opset))


REFUSED = {
    "antialias": helper.make_node("Resize", ["x", "", "s"], ["y"], antialias=1),
    "crop": helper.make_node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="tf_crop_and_resize"),
    "activation": helper.make_node("RNN", ["x", "x", "x"], ["y"], activations=["Affine"], hidden_size=2),
    "float8": helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=TensorProto.FLOAT8E4M3FN),
    "blocks": helper.make_node("QuantizeLinear", ["x", "s"], ["y"], block_size=4),
    "statistics": helper.make_node("BatchNormalization", ["x", *"sssx"], ["y", "m", "v"], training_mode=1),
    "strings": helper.make_node("Constant", [], ["y"], value_string="a"),
    "fused": helper.make_node("FusedConv", ["x", "s"], ["y"], activation="Gelu", domain="com.microsoft"),
    "packed": helper.make_node("MultiHeadAttention", ["x"], ["y"], num_heads=2, domain="com.microsoft"),
    "past": helper.make_node("Attention", ["x", "s"], ["y", "past"], num_heads=2, domain="com.microsoft"),
    "bits": helper.make_node("MatMulNBits", ["x", "s", "s"], ["y"], bits=2, K=4, N=4, domain="com.microsoft"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attributes_without_a_counterpart_are_refused(name):
    proto = nodes(REFUSED[name], initializers=[weight("s", 4)], opset=21)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedError, match=REFUSED[name].op_type):
        module(proto)


def test_feeds_that_do_not_fit():
    model = module(builders.mlp())
    x = torch.zeros(2, 16)
    with pytest.raises(DataError, match="no such input") as caught:
        model({"X": x})
    assert caught.value.where == "X"
    with pytest.raises(DataError, match="no tensor"):
        model()
    with pytest.raises(DataError, match="3 axes where the model has 2"):
        model(x=x.unsqueeze(0))
    with pytest.raises(DataError, match="no such input"):
        model(x=x, w1=x)


def test_an_error_of_torch_names_the_node():
    with pytest.raises(RuntimeError) as caught:
        module(builders.mlp())(x=torch.zeros(2, 15))
    assert caught.value.__notes__ == ["in node fc1, inputs float32[2, 15], float32[32, 16], float32[32]"]


# inner values


def test_inner_values_by_name_with_their_gradients():
    model = module(builders.mlp(), outputs=["y", "a"])
    found = model(x=torch.from_numpy(floats(3, 16)))
    assert list(found) == ["y", "a"]
    found["a"].retain_grad()
    found["y"].square().sum().backward()
    assert found["a"].grad.shape == (3, 32)
    with pytest.raises(UsageError, match="no such value") as caught:
        module(builders.mlp(), outputs=["hh"])
    assert "did you mean 'h'" in caught.value.hint


def test_only_what_is_asked_for_is_computed():
    model = module(builders.mlp())
    with pytest.raises(RuntimeError):
        model(x=torch.zeros(2, 15))
    found = model.values({"x": torch.zeros(2, 15)}, ["x", "w1"])
    assert found["w1"] is model.weights["w1"]


def test_values_are_freed_after_their_last_use():
    chain = [helper.make_node("Relu", ["x" if n == 0 else f"v{n}"], [f"v{n + 1}"]) for n in range(9)]
    model = module(nodes(*chain, helper.make_node("Add", ["v9", "v2"], ["y"])))
    plan = model._plan(("y",))
    values = {model._numbers[v]: torch.ones(2) for v in model._model.graph.inputs}
    most = 0

    class Watched(dict):
        def __setitem__(self, key, tensor):
            nonlocal most
            super().__setitem__(key, tensor)
            most = max(most, len(self))

    execute(plan, Run(False, torch.float32, torch.device("cpu"), Watched(values)))
    assert most == 4  # x, v2, and the one read and written


# control flow


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_is_chosen_while_running_and_only_its_weights_learn(flag):
    model = module(builders.branch())
    feeds = {"x": floats(2, 8), "flag": np.array(flag)}
    same_as_ort(model, feeds)
    model({name: torch.from_numpy(array) for name, array in feeds.items()})["y"].sum().backward()
    learnt = {name for name, weight in model.weights.items() if weight.grad is not None}
    assert learnt == ({"outer"} if flag else {"inner"})
    with torch.no_grad():
        for weight in model.weights.values():
            weight.add_(1)
    same_as_ort(model, feeds)


def test_a_branch_with_a_constant_condition_and_names_used_twice():
    def part(scale):
        body = [
            helper.make_node("Constant", [], ["w"], value=weight("w", 4, seed=scale)),
            helper.make_node("Mul", ["x", "w"], [f"o{scale}"]),
        ]
        return helper.make_graph(body, f"g{scale}", [], [onnx.ValueInfoProto(name=f"o{scale}")])

    node = helper.make_node("If", ["c"], ["y"], then_branch=part(1), else_branch=part(2))
    for flag in (True, False):
        model = module(nodes(node, initializers=[numpy_helper.from_array(np.array(flag), "c")]))
        assert set(model.weights) == {"w", "w#1"}
        same_as_ort(model, {"x": floats(2, 4)})


def test_loop_carries_states_and_stacks_outputs():
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["before", "w"], ["after"]),
            helper.make_node("ReduceSum", ["after"], ["sum"], keepdims=0),
            helper.make_node("Less", ["sum", "limit"], ["go"]),
        ],
        "body",
        [value("i", dtype=TensorProto.INT64), value("go_in", dtype=TensorProto.BOOL), value("before", 2, 4)],
        [value("go", dtype=TensorProto.BOOL), value("after", 2, 4), value("sum")],
    )
    proto = nodes(
        helper.make_node("Loop", ["count", "", "x"], ["y", "sums"], body=body),
        outputs=["y", "sums"],
        initializers=[
            numpy_helper.from_array(np.full(4, 1.5, np.float32), "w"),
            numpy_helper.from_array(np.array(9), "count"),
            numpy_helper.from_array(np.array(60, np.float32), "limit"),
        ],
    )
    model = module(proto)
    x = np.ones((2, 4), np.float32)
    same_as_ort(model, {"x": x})
    found = model(x=torch.from_numpy(x))
    assert found["sums"].shape == (5,)
    found["y"].sum().backward()
    torch.testing.assert_close(model.weights["w"].grad, torch.full((4,), 2 * 5 * 1.5**4))


@pytest.mark.parametrize("back", [0, 1])
def test_scan_walks_either_way(back):
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["turned"]),
            helper.make_node("Add", ["turned", "row"], ["next"]),
            helper.make_node("Tanh", ["next"], ["out"]),
        ],
        "body",
        [value("state", 4), value("row", 4)],
        [value("next", 4), value("out", 4)],
    )
    node = helper.make_node(
        *("Scan", ["first", "x"], ["last", "y"]),
        body=body,
        num_scan_inputs=1,
        scan_input_directions=[back],
        scan_output_directions=[back],
        scan_output_axes=[1],
    )
    proto = nodes(node, outputs=["last", "y"], initializers=[weight("w", 4, 4), weight("first", 4)])
    same_as_ort(module(proto), {"x": floats(2, 4)})


def test_local_functions_are_written_out():
    function = helper.make_function(
        *("local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])]),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    proto = builders.model(
        [helper.make_node("Twice", ["x"], ["y"], domain="local")],
        [value("x", 2)],
        [value("y", 2)],
        functions=[function],
    )
    assert module(proto)(x=torch.ones(2))["y"].tolist() == [2, 2]


# training


def test_train_mode_uses_and_moves_batch_statistics_as_torch_does():
    model = module(builders.cnn()).train()
    norm = torch.nn.BatchNorm2d(16)
    names = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
    norm.load_state_dict({key: model.weights[name].detach().clone() for key, name in names.items()}, strict=False)
    found = model.values({"image": torch.from_numpy(floats(4, 3, 8, 8))}, ["c1", "n1"])
    torch.testing.assert_close(found["n1"], norm(found["c1"]))
    torch.testing.assert_close(model.weights["mean"], norm.running_mean, check_dtype=False)
    torch.testing.assert_close(model.weights["var"], norm.running_var, check_dtype=False)
    same_as_ort(model.eval(), {"image": floats(2, 3, 8, 8)})


def test_dropout_drops_while_training_only():
    ratio = numpy_helper.from_array(np.array(0.25, np.float32), "r")
    model = module(nodes(helper.make_node("Dropout", ["x", "r"], ["y"]), initializers=[ratio], shape=(50, 40)))
    x = torch.ones(50, 40)
    assert torch.equal(model(x=x)["y"], x)
    torch.manual_seed(0)
    y = model.train()(x=x)["y"]
    assert set(y.unique().tolist()) == {0.0, np.float32(1 / 0.75)}
    assert 0.2 < float((y == 0).float().mean()) < 0.3


def test_other_types_and_copies():
    model = module(builders.encoder())
    feeds = {"ids": torch.tensor([[1, 2, 3]])}
    states = model(feeds)["states"]
    assert model.double()(feeds)["states"].dtype == torch.float64
    torch.testing.assert_close(model.float()(feeds)["states"], states)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(feeds)["states"], states)
        with torch.no_grad():
            other.weights["w1"].zero_()
        assert model.weights["w1"].abs().max() > 0
        assert not np.any(tensors(other.write_back())["w1"])


# the way back


def tensors(model):
    return {value.name: tensor.numpy() for value, tensor in constants(model)}


@pytest.mark.parametrize("proto", [builders.cnn(), builders.branch(), builders.encoder()], ids=["cnn", "branch", "ids"])
def test_an_untouched_module_writes_the_same_model(proto):
    model = ir.from_proto(proto)
    written = ir.to_proto(GraphModule(model).write_back())
    assert written.SerializeToString(deterministic=True) == ir.to_proto(model).SerializeToString(deterministic=True)


def test_a_step_of_training_reaches_onnx_runtime_and_not_the_model_it_came_from():
    source = ir.from_proto(builders.cnn())
    before = {name: array.copy() for name, array in tensors(source).items()}
    model = GraphModule(source)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scores = model(image=torch.from_numpy(floats(4, 3, 8, 8)))["scores"]
    torch.nn.functional.cross_entropy(scores, torch.arange(4)).backward()
    optimizer.step()
    after = tensors(model.write_back())
    changed = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    assert changed == {"k1", "gamma", "beta", "k2", "kb2", "w", "b"}
    assert all(np.array_equal(array, before[name]) for name, array in tensors(source).items())
    same_as_ort(model, {"image": floats(2, 3, 8, 8)})


def test_a_written_model_stays_as_it_is_while_training_goes_on():
    model = module(builders.mlp())
    written = model.write_back()
    kept = tensors(written)["w1"].copy()
    with torch.no_grad():
        model.weights["w1"].zero_()
    assert np.array_equal(tensors(written)["w1"], kept)


def test_a_tied_weight_is_one_parameter_with_the_gradient_of_both_uses():
    proto = nodes(
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
        initializers=[weight("w", 4, 4)],
    )
    model = module(proto)
    x = torch.from_numpy(floats(2, 4))
    model(x=x)["y"].sum().backward()
    w = model.weights["w"].detach().clone().requires_grad_()
    (x @ w @ w).sum().backward()
    torch.testing.assert_close(model.weights["w"].grad, w.grad)
    assert len(list(model.parameters())) == 1


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
def test_each_weight_gets_its_own_type_back(dtype):
    array = floats(4, 3).astype(dtype.numpy())
    proto = builders.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", 2, 4, dtype=dtype.value)],
        [value("y", 2, 3, dtype=dtype.value)],
        [ir.to_proto(ir.Tensor(array, name="w"))],
    )
    model = module(proto)
    assert model.weights["w"].dtype == (torch.float64 if dtype == ir.DataType.DOUBLE else torch.float32)
    assert model(x=torch.ones(2, 4).to(torch.float16))["y"].dtype == model.weights["w"].dtype
    assert tensors(model.write_back())["w"].tobytes() == array.tobytes()
    with torch.no_grad():
        model.weights["w"].mul_(2)
    assert np.array_equal(tensors(model.write_back())["w"], array * 2)


def test_a_value_beyond_float16_is_an_error():
    proto = builders.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", 2, 4, dtype=TensorProto.FLOAT16)],
        [value("y", 2, 3, dtype=TensorProto.FLOAT16)],
        [numpy_helper.from_array(floats(4, 3).astype(np.float16), "w")],
    )
    model = module(proto)
    with torch.no_grad():
        model.weights["w"].fill_(1e6)
    with pytest.raises(GateError, match="beyond the range of float16") as caught:
        model.write_back()
    assert caught.value.where == "w"
