"""Small models built in code, one function each; weights are seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def weight(name: str, *shape: int, seed: int = 0, scale: float = 0.2) -> onnx.TensorProto:
    values = np.random.default_rng([seed, *name.encode()]).standard_normal(shape) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 9,
    functions: list[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", opset)]
    if functions:
        opsets.append(helper.make_opsetid("local", 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def value(name: str, *shape: int | str, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def mlp(*, opset: int = 17, width: int = 32) -> onnx.ModelProto:
    """x (batch, 16) -> Gemm, Relu, Gemm -> y (batch, 10)."""
    return model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1", transB=1),
            helper.make_node("Relu", ["h"], ["a"], name="relu"),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="fc2", transB=1),
        ],
        [value("x", "batch", 16)],
        [value("y", "batch", 10)],
        [weight("w1", width, 16), weight("b1", width), weight("w2", 10, width), weight("b2", 10)],
        opset=opset,
    )


def cnn(*, opset: int = 17) -> onnx.ModelProto:
    """image (batch, 3, 8, 8) -> Conv, BatchNormalization, Relu, Conv, Add, pool, Gemm -> scores (batch, 10)."""
    ones, positive = np.ones(16, np.float32), np.linspace(0.5, 1.5, 16, dtype=np.float32)
    norm = [numpy_helper.from_array(ones, "gamma"), weight("beta", 16), weight("mean", 16)]
    return model(
        [
            helper.make_node("Conv", ["image", "k1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"], name="norm1"),
            helper.make_node("Relu", ["n1"], ["r1"], name="relu1"),
            helper.make_node("Conv", ["r1", "k2", "kb2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c2", "r1"], ["s"], name="add"),
            helper.make_node("GlobalAveragePool", ["s"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flat"),
            helper.make_node("Gemm", ["f", "w", "b"], ["scores"], name="head"),
        ],
        [value("image", "batch", 3, 8, 8)],
        [value("scores", "batch", 10)],
        [
            weight("k1", 16, 3, 3, 3),
            *norm,
            numpy_helper.from_array(positive, "var"),
            weight("k2", 16, 16, 3, 3),
            weight("kb2", 16),
            weight("w", 16, 10),
            weight("b", 10),
        ],
        opset=opset,
    )


def encoder() -> onnx.ModelProto:
    """ids (batch, seq) int64 -> embedding, MatMul, LayerNormalization, MatMul -> states (batch, seq, 16)."""
    return model(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
            helper.make_node("MatMul", ["e", "w1"], ["m"], name="proj"),
            helper.make_node("LayerNormalization", ["m", "gamma", "beta"], ["n"], name="norm", axis=-1),
            helper.make_node("MatMul", ["n", "w2"], ["states"], name="out"),
        ],
        [value("ids", "batch", "seq", dtype=TensorProto.INT64)],
        [value("states", "batch", "seq", 16)],
        [weight("table", 50, 16), weight("w1", 16, 32), weight("gamma", 32), weight("beta", 32), weight("w2", 32, 16)],
    )


def layer_norm_empty_bias() -> onnx.ModelProto:
    """The legal one-node model that kills ORT 1.32 at its default optimization."""
    return model(
        [helper.make_node("LayerNormalization", ["x", "g", ""], ["y"], axis=-1)],
        [value("x", 2, 8)],
        [value("y", 2, 8)],
        [numpy_helper.from_array(np.ones(8, np.float32), "g")],
    )


def branch() -> onnx.ModelProto:
    """If whose branches multiply with a weight of the outer graph and one of their own."""
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "outer"], ["t"], name="then_mm")], "then", [], [value("t", 2, 8)]
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["o"], name="else_mm")],
        "else",
        [],
        [value("o", 2, 8)],
        [weight("inner", 8, 8)],
    )
    node = helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other)
    inputs = [value("x", 2, 8), value("flag", dtype=TensorProto.BOOL)]
    return model([node], inputs, [value("y", 2, 8)], [weight("outer", 8, 8)])


def relu() -> onnx.ModelProto:
    """No weights at all."""
    return model([helper.make_node("Relu", ["x"], ["y"], name="relu")], [value("x", "n", 4)], [value("y", "n", 4)])


def two_inputs() -> onnx.ModelProto:
    """a (batch, 4) float, mask (batch, 4) int64 -> a * mask."""
    return model(
        [
            helper.make_node("Cast", ["mask"], ["m"], to=FLOAT),
            helper.make_node("Mul", ["a", "m"], ["y"]),
        ],
        [value("a", "batch", 4), value("mask", "batch", 4, dtype=TensorProto.INT64)],
        [value("y", "batch", 4)],
    )


def stateful() -> onnx.ModelProto:
    """x (1, 4), state (2, 1, 4), rate () -> y (1, 4): whole inputs without a common batch axis."""
    return model(
        [
            helper.make_node("ReduceSum", ["state", "axes"], ["s"], keepdims=0),
            helper.make_node("Mul", ["x", "rate"], ["m"]),
            helper.make_node("Add", ["m", "s"], ["y"]),
        ],
        [value("x", 1, 4), value("state", 2, 1, 4), value("rate")],
        [value("y", 1, 4)],
        [numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )


def function_bomb(levels: int = 30) -> onnx.ModelProto:
    """Local functions that call each other twice: 2^levels nodes once expanded."""

    def function(level: int) -> onnx.FunctionProto:
        inner, domain = (f"f{level - 1}", "local") if level else ("Relu", "")
        nodes = [
            helper.make_node(inner, ["a"], ["m"], domain=domain),
            helper.make_node(inner, ["m"], ["b"], domain=domain),
        ]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        return helper.make_function("local", f"f{level}", ["a"], ["b"], nodes, opsets)

    node = helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="local")
    return model([node], [value("x", 2)], [value("y", 2)], functions=[function(i) for i in range(levels)])


def sparse(indices: np.ndarray) -> onnx.ModelProto:
    """x (2, 4) @ a sparse initializer (4, 3) with the values 1, 2, 3."""
    found = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w"),
        numpy_helper.from_array(indices.astype(np.int64), "w_indices"),
        [4, 3],
    )
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", 2, 4)], [value("y", 2, 3)])
    proto.graph.sparse_initializer.append(found)
    return proto


def as_old(proto: onnx.ModelProto) -> onnx.ModelProto:
    """IR 3: every initializer is listed as a graph input too."""
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(value(tensor.name, *tensor.dims, dtype=tensor.data_type))
    return proto


def externalize(proto: onnx.ModelProto, folder: Path, *, location: str = "weights.data") -> Path:
    """Write model.onnx with all initializers in one data file."""
    data = bytearray()
    for tensor in proto.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        point_outside(tensor, location, len(data), len(raw))
        data += raw
    (folder / location).write_bytes(bytes(data))
    return save(proto, folder / "model.onnx")


def point_outside(tensor: onnx.TensorProto, location: str, offset: int | str = 0, length: int | str = 0) -> None:
    """Make a tensor say that its bytes lie in another file."""
    for field in ("raw_data", "float_data", "int64_data", "int32_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)


def samples(count: int = 64, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def zip_map() -> onnx.ModelProto:
    """x (batch, 3) -> ai.onnx.ml ZipMap -> scores, a sequence of maps from int64 to float, and y = x."""
    proto = model(
        [
            helper.make_node("ZipMap", ["x"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[10, 20, 30]),
            helper.make_node("Identity", ["x"], ["y"]),
        ],
        [value("x", "batch", 3)],
        [value("y", "batch", 3)],
    )
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    )
    proto.graph.output.insert(0, helper.make_value_info("scores", kind))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return proto


def constants() -> onnx.ModelProto:
    """x (2, 8) @ a Constant node's matrix (8, 8) -> y (2, 8)."""
    constant = helper.make_node("Constant", [], ["w"], value=weight("w", 8, 8))
    return model([constant, helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", 2, 8)], [value("y", 2, 8)])


def nested(depth: int) -> onnx.ModelProto:
    """If within If, `depth` times."""
    inner = helper.make_node("Relu", ["x"], ["y"])
    for level in range(depth):
        graph = helper.make_graph([inner], f"g{level}", [], [value("y", 2)])
        inner = helper.make_node("If", ["flag"], ["y"], then_branch=graph)
    return model([inner], [value("x", 2), value("flag", dtype=TensorProto.BOOL)], [value("y", 2)])
