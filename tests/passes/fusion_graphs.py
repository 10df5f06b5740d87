"""Attention, Gelu and layer normalization in small graphs, as text with holes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

LOWEST = np.finfo(np.float32).min

CONSTANTS = {
    "apart": np.array([0, 0, 4, 8]),
    "together": np.array([0, 0, 32]),
    "scale": np.float32(8**-0.5),
    "zero": np.float32(0),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "lowest": LOWEST,
    "infinite": np.float32(-np.inf),
    "thousands": np.float32(-10000),
    "ends": np.array([-1]),
    "first": np.array([0]),
    "second": np.array([1]),
    "third": np.array([2]),
}

QUERY = """
    q4 = Reshape(x, apart)
    q = Transpose<perm = [0, 2, 1, 3]>(q4)
"""
KEY = "kt = Transpose<perm = [0, 2, 3, 1]>(q4)"
VALUE = "v = Identity(q)"
SCORES = "scores = Identity(scaled)"
WEIGHTS = "kept = Identity(weights)"
OUTPUT = """
    o4 = Transpose<perm = [0, 2, 1, 3]>(o)
    y = Reshape(o4, together)
"""
GUARD = """
    bad = IsNaN(weights)
    kept = Where(bad, zero, weights)
"""


def attention(
    scores=SCORES,
    *,
    query=QUERY,
    key=KEY,
    value=VALUE,
    weights=WEIGHTS,
    output=OUTPUT,
    width=32,
    inputs="",
    outputs="float[batch, seq, 32] y",
    opset=20,
    **constants,
):
    """Four heads of eight over x (batch, seq, 32), without weights."""
    return graph(
        f"""
        {query}
        {key}
        {value}
        qk = MatMul(q, kt)
        scaled = Mul(qk, scale)
        {scores}
        weights = Softmax<axis = -1>(scores)
        {weights}
        o = MatMul(kept, v)
        {output}
        """,
        inputs=f"float[batch, seq, {width}] x{inputs and ', ' + inputs}",
        outputs=outputs,
        opset=opset,
        **constants,
    )


def graph(body, *, inputs, outputs="float[batch, seq, 32] y", opset=20, **constants):
    """A model of these lines and of those constants that they name."""
    text = f'<ir_version: 9, opset_import: ["": {opset}]> test ({inputs}) => ({outputs}) {{ {body} }}'
    proto = parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    for name, array in (CONSTANTS | constants).items():
        if name in used:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(proto)
    return proto
