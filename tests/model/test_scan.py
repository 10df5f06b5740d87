"""Bombs and inconsistent tensors are refused before any other parser sees the file."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import InvalidModelError, UnsafeModelError
from onnxcomp.model import Limits, load
from onnxcomp.model.scan import check, tensor_bytes


def with_tensor(**fields):
    """The MLP whose bias `b2` (10) is described by `fields`."""
    proto = builders.mlp()
    tensor = proto.graph.initializer[3]
    for name, content in fields.items():
        tensor.ClearField(name)
        field = getattr(tensor, name)
        if isinstance(content, list):
            field.extend(content)
        else:
            setattr(tensor, name, content)
    return proto


def test_nesting(tmp_path):
    check(builders.nested(5), Limits(nesting=5))
    with pytest.raises(UnsafeModelError, match="nested 6 deep") as error:
        check(builders.nested(6), Limits(nesting=5))
    assert "Limits.nesting" in error.value.hint
    load(builders.save(builders.nested(30), tmp_path / "m.onnx"))


def test_a_nesting_bomb(tmp_path):
    """Thousands of graphs within graphs: one tag and one length each."""
    data = b""
    for _ in range(3000):
        for tag in (b"\x0a", b"\x32", b"\x2a"):  # GraphProto.node, AttributeProto.g, NodeProto.attribute
            data = tag + length(data) + data
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + length(data) + data)
    with pytest.raises(InvalidModelError):
        load(tmp_path / "m.onnx")


def length(data):
    count, out = len(data), bytearray()
    while count > 127:
        out.append(count & 127 | 128)
        count >>= 7
    return bytes([*out, count])


def test_nesting_within_functions_counts():
    proto = builders.function_bomb(1)
    proto.functions[0].node.append(builders.nested(6).graph.node[0])
    with pytest.raises(UnsafeModelError, match="nested 6 deep"):
        check(proto, Limits(nesting=5))


def test_a_function_bomb(tmp_path):
    path = builders.save(builders.function_bomb(), tmp_path / "m.onnx")
    with pytest.raises(UnsafeModelError, match="more than 1000000 nodes") as error:
        load(path)
    assert "Limits.expanded_nodes" in error.value.hint
    assert str(path) in error.value.where


def test_expanded_nodes_are_counted_exactly():
    bomb = builders.function_bomb(4)
    check(bomb, Limits(expanded_nodes=16))
    with pytest.raises(UnsafeModelError, match="more than 15 nodes"):
        check(bomb, Limits(expanded_nodes=15))


def test_a_bomb_that_the_graph_does_not_call():
    bomb = builders.function_bomb(4)
    del bomb.graph.node[:]
    with pytest.raises(UnsafeModelError, match="more than 15 nodes"):
        check(bomb, Limits(expanded_nodes=15))


def test_calls_within_subgraphs_are_counted():
    bomb = builders.function_bomb(4)
    graph = helper.make_graph(list(bomb.graph.node), "then", [], [builders.value("y", 2)])
    bomb.graph.node[0].CopyFrom(helper.make_node("If", ["flag"], ["y"], then_branch=graph, else_branch=graph))
    check(bomb, Limits(expanded_nodes=33))
    with pytest.raises(UnsafeModelError, match="more than 32 nodes"):
        check(bomb, Limits(expanded_nodes=32))


def test_functions_that_call_themselves():
    direct, mutual = builders.function_bomb(1), builders.function_bomb(2)
    direct.functions[0].node[0].op_type, direct.functions[0].node[0].domain = "f0", "local"
    mutual.functions[0].node[0].op_type, mutual.functions[0].node[0].domain = "f1", "local"
    for proto in (direct, mutual):
        with pytest.raises(InvalidModelError, match="calls itself"):
            check(proto, Limits())


def test_a_long_chain_of_functions():
    chain = builders.function_bomb(100)
    for function in chain.functions:
        del function.node[1:]
        function.node[0].output[0] = "b"
    check(chain, Limits(nesting=100))
    with pytest.raises(UnsafeModelError, match="64 deep"):
        check(chain, Limits())


def test_a_function_defined_twice():
    proto = builders.function_bomb(2)
    proto.functions.append(proto.functions[0])
    with pytest.raises(InvalidModelError, match="defined twice"):
        check(proto, Limits())


def test_a_negative_dimension():
    with pytest.raises(InvalidModelError, match="negative dimension") as error:
        check(with_tensor(dims=[-10]), Limits())
    assert error.value.where == "tensor b2"


@pytest.mark.parametrize("dims", [[1 << 60], [1 << 20, 1 << 21], [0, 1 << 41], [1 << 40, 1 << 40, 0]])
def test_too_many_elements(dims):
    with pytest.raises(UnsafeModelError, match="elements"):
        check(with_tensor(dims=dims), Limits())


def test_the_limit_of_elements():
    check(builders.mlp(), Limits(elements=512))
    with pytest.raises(UnsafeModelError, match="declares 512 elements") as error:
        check(builders.mlp(), Limits(elements=511))
    assert error.value.where == "tensor w1"


@pytest.mark.parametrize("size", [0, 39, 41, 80])
def test_the_wrong_number_of_bytes(size):
    with pytest.raises(InvalidModelError, match=f"has {size} entries, its shape needs 40"):
        check(with_tensor(raw_data=bytes(size)), Limits())


def test_the_wrong_number_of_values_or_the_wrong_field():
    plain = with_tensor(float_data=[0.5] * 10)
    plain.graph.initializer[3].ClearField("raw_data")
    check(plain, Limits())
    for field, values in (("float_data", [0.5] * 9), ("int64_data", [1] * 10), ("int32_data", [1] * 10)):
        wrong = with_tensor(**{field: values})
        wrong.graph.initializer[3].ClearField("raw_data")
        with pytest.raises(InvalidModelError, match="its shape needs 10"):
            check(wrong, Limits())


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
def test_every_type_in_its_own_field_loads(tmp_path, kind):
    tensor = helper.make_tensor("b2", kind, [3], [b"1"] * 3 if kind == TensorProto.STRING else [1, 0, 1])
    packed = numpy_helper.from_array(numpy_helper.to_array(tensor), "b1")
    for stored in (tensor, packed):
        proto = builders.mlp()
        proto.graph.initializer[3].CopyFrom(stored)
        proto.graph.initializer[3].name = "b2"
        held = load(builders.save(proto, tmp_path / "m.onnx")).graph.initializers["b2"].const_value
        wanted = numpy_helper.to_array(stored)
        np.testing.assert_array_equal(held.numpy(), wanted.astype("S") if wanted.dtype == object else wanted)


@pytest.mark.parametrize("kind", [TensorProto.UNDEFINED, 77])
def test_an_unknown_type(kind):
    tensor = TensorProto(dims=[1], data_type=kind, name="t")
    with pytest.raises(InvalidModelError, match="unknown element type"):
        tensor_bytes(tensor)
    proto = builders.mlp()
    proto.graph.initializer.append(tensor)
    with pytest.raises(InvalidModelError, match="unknown element type"):
        check(proto, Limits())


def test_bytes_of_packed_types_round_up():
    sizes = {TensorProto.INT4: 2, 27: 3, TensorProto.UINT2: 1, TensorProto.INT8: 3, TensorProto.COMPLEX128: 48}
    assert {kind: tensor_bytes(TensorProto(dims=[3], data_type=kind)) for kind in sizes} == sizes


def test_tensors_in_attributes_and_subgraphs_are_checked():
    for proto in (builders.constants(), builders.branch()):
        node = proto.graph.node[0]
        tensor = node.attribute[0].t
        if node.op_type == "If":
            graphs = [a.g for a in node.attribute if a.g.initializer]
            tensor = graphs[0].initializer[0]
        tensor.raw_data = b"short"
        with pytest.raises(InvalidModelError, match="has 5 entries"):
            check(proto, Limits())


def test_an_output_without_a_name():
    proto = builders.relu()
    proto.graph.output[0].name = ""
    with pytest.raises(InvalidModelError, match="output has no name"):
        check(proto, Limits())


def test_good_models_pass(shared):
    for path in sorted((shared / "models").rglob("*.onnx")):
        check(onnx.load(path, load_external_data=False), Limits())
