"""Tiny models for the benchmark's tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def linear(path, *, name="x", batch="N", width=4, dtype=TensorProto.FLOAT, layers=1):
    """`y = relu(x @ W) @ W ...`: float (batch, width) to the same."""
    weight = np.eye(width, dtype=helper.tensor_dtype_to_np_dtype(dtype)) * 2
    nodes, last = [], name
    for index in range(layers):
        nodes += [
            helper.make_node("MatMul", [last, "w"], [f"h{index}"], name=f"matmul{index}"),
            helper.make_node("Relu", [f"h{index}"], [f"r{index}"]),  # no name: legal
        ]
        last = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, [batch, width])],
        [helper.make_tensor_value_info(last, dtype, [batch, width])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def indexed(path, *, size=8):
    """`y = table[i]`: int64 (N,) to float (N, 2); an index beyond the table makes a run fail."""
    table = np.arange(size * 2, dtype=np.float32).reshape(size, 2)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
