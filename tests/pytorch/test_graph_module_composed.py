"""Recurrent, quantized and attention operators, each against ONNX Runtime; and that the table is covered."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import test_graph_module_operators
from onnx import TensorProto
from operator_cases import by_ort, by_torch, case, check, floats, number, whole

from onnxcomp.pytorch.graph_module.registry import OPERATORS

MICROSOFT = "com.microsoft"

TIME, BATCH, WIDTH, HIDDEN = 5, 3, 4, 2


def recurrent(op, direction="forward", *, lengths=None, states=False, bias=True, peephole=False, **attributes):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    ways = 2 if direction == "bidirectional" else 1
    inputs = [
        floats(TIME, BATCH, WIDTH),
        floats(ways, gates * HIDDEN, WIDTH, seed=1),
        floats(ways, gates * HIDDEN, HIDDEN, seed=2),
        floats(ways, 2 * gates * HIDDEN, seed=3) if bias else None,
        None if lengths is None else whole(*lengths, dtype=np.int32),
        floats(ways, BATCH, HIDDEN, seed=4) if states else None,
    ]
    if op == "LSTM":
        inputs.append(floats(ways, BATCH, HIDDEN, seed=5) if states else None)
        inputs.append(floats(ways, 3 * HIDDEN, seed=6) if peephole else None)
    while inputs[-1] is None:
        inputs.pop()
    attributes |= {"hidden_size": HIDDEN, "direction": direction}
    return case(op, *inputs, outputs=3 if op == "LSTM" else 2, constant=(1, 2, 3), opset=14, **attributes)


RECURRENT = [
    *(
        recurrent(op, direction, lengths=lengths, states=lengths is not None)
        for op in ("LSTM", "GRU", "RNN")
        for direction in ("forward", "reverse", "bidirectional")
        for lengths in (None, (5, 2, 3))
    ),
    recurrent("LSTM", bias=False),
    recurrent("LSTM", "bidirectional", peephole=True, states=True),
    recurrent("LSTM", clip=0.3),
    recurrent("LSTM", input_forget=1),
    recurrent("LSTM", activations=["Sigmoid", "Relu", "Tanh"]),
    recurrent("GRU", linear_before_reset=1),
    recurrent("GRU", "bidirectional", linear_before_reset=1, lengths=(1, 5, 4)),
    recurrent("RNN", "bidirectional", activations=["Relu", "Tanh"]),
]


X = floats(2, 3, 4)


def codes(*shape, dtype=np.uint8, bits=None, seed=0):
    low, high = (0, 2**bits - 1) if bits else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.random.default_rng(seed).integers(low, high, shape, endpoint=True).astype(dtype)


QUANTIZED = [
    case("QuantizeLinear", X, number(0.05), number(120, np.uint8), constant=(1, 2)),
    case("QuantizeLinear", X, number(0.02), number(3, np.int8), constant=(1, 2)),
    case("QuantizeLinear", whole(0.5, 1.5, 2.5, -0.5, 300, -300, dtype=np.float32), number(1.0)),
    case("QuantizeLinear", X, floats(3, low=0.01), codes(3), opset=13, axis=1, constant=(1, 2)),
    case("QuantizeLinear", X, number(0.001), number(0, np.int16), opset=21, constant=(1, 2)),
    case("QuantizeLinear", X, number(0.02), opset=21, output_dtype=TensorProto.INT8),
    case("DequantizeLinear", codes(2, 3), number(0.05), number(120, np.uint8), constant=(1, 2)),
    case("DequantizeLinear", codes(2, 3), floats(3), codes(3), axis=1, constant=(0, 1, 2)),
    case("DequantizeLinear", codes(4, dtype=np.int32), number(1e-8)),
    case("DequantizeLinear", codes(8, 3), floats(2, 3), codes(2, 3), axis=0, block_size=4, opset=21),
    case("DequantizeLinear", codes(6, 4, bits=4).astype(ml_dtypes.uint4), number(0.1), opset=21, constant=(0, 1)),
    case("DequantizeLinear", (2 * floats(6, 4)).astype(ml_dtypes.int4), number(0.1), opset=21, constant=(0, 1)),
    case("DequantizeLinear", floats(6, 4).astype(ml_dtypes.float8_e4m3fn), number(0.1), opset=19, constant=(0, 1)),
    case("DynamicQuantizeLinear", X, outputs=3),
    case("DynamicQuantizeLinear", np.zeros(3, np.float32), outputs=3),
    case("MatMulInteger", codes(3, 4), codes(4, 2, dtype=np.int8), number(7, np.uint8), number(0, np.int8)),
    case("MatMulInteger", codes(3, 4), codes(4, 2), number(7, np.uint8), codes(2), constant=(1, 3)),
    case("ConvInteger", codes(1, 2, 5, 5), codes(3, 2, 3, 3), number(7, np.uint8), pads=[1, 1, 1, 1]),
    case(
        *("QLinearConv", codes(1, 2, 5, 5), number(0.02), number(7, np.uint8), codes(3, 2, 3, 3, dtype=np.int8)),
        *(
            floats(3, low=0.01),
            np.zeros(3, np.int8),
            number(3.0),
            number(99, np.uint8),
            codes(3, dtype=np.int16).astype(np.int32),
        ),
        constant=(1, 2, 3, 4, 5, 6, 7, 8),
    ),
    case(
        *("QLinearMatMul", codes(3, 4), number(0.02), number(7, np.uint8), codes(4, 2, seed=1), number(0.01)),
        *(number(100, np.uint8), number(0.03), number(128, np.uint8)),
        constant=(1, 2, 4, 5, 6, 7),
    ),
    *(
        case(
            *("GatherBlockQuantized", codes(9, 32 * bits // 8), np.array([[0, 8], [3, 3]]), floats(9, 2, low=0.01)),
            *((codes(9, 2 * bits // 8, seed=1),) if shifted else ()),
            domain=MICROSOFT,
            constant=(0, 2, 3),
            bits=bits,
            block_size=16,
        )
        for bits in (4, 8)
        for shifted in (False, True)
    ),
    case(
        *("MatMulNBits", floats(3, 40), codes(6, 3, 8), floats(18, low=0.01)),
        domain=MICROSOFT,
        constant=(1, 2),
        K=40,
        N=6,
        bits=4,
        block_size=16,
    ),
    case(
        *("MatMulNBits", floats(3, 40), codes(6, 3, 8), floats(18, low=0.01), codes(12)),
        domain=MICROSOFT,
        constant=(1, 2, 3),
        K=40,
        N=6,
        bits=4,
        block_size=16,
    ),
    case(
        *("MatMulNBits", floats(3, 40), codes(6, 3, 16), floats(18, low=0.01)),
        domain=MICROSOFT,
        constant=(1, 2),
        K=40,
        N=6,
        bits=8,
        block_size=16,
    ),
]

QUERY, KEY = floats(2, 3, 8), floats(2, 5, 8)
HEADS = floats(2, 4, 3, 2)

ATTENTION = [
    case("Attention", HEADS, floats(2, 4, 5, 2), floats(2, 4, 5, 3), opset=23),
    case("Attention", HEADS, HEADS, HEADS, opset=23, is_causal=1, scale=0.3),
    case("Attention", HEADS, floats(2, 2, 5, 2), floats(2, 2, 5, 3), floats(3, 5), opset=23, softcap=2.0),
    case("Attention", QUERY, KEY, KEY, floats(2, 1, 3, 5) > -1, opset=23, q_num_heads=4, kv_num_heads=4),
    case(
        *(
            "Attention",
            HEADS,
            floats(2, 4, 5, 2),
            floats(2, 4, 5, 2),
            floats(3, 7),
            floats(2, 4, 2, 2),
            floats(2, 4, 2, 2),
        ),
        opset=23,
        outputs=3,
    ),
    case(
        *("Attention", HEADS, HEADS, HEADS, None, floats(2, 4, 2, 2, seed=1), floats(2, 4, 2, 2, seed=2)),
        opset=23,
        outputs=3,
        is_causal=1,
    ),
    case("Attention", HEADS, HEADS, HEADS, np.eye(3, dtype=bool)[::-1] & (np.arange(3) != 1), opset=23),
    *(
        case("Attention", HEADS, HEADS, HEADS, floats(3, 3), opset=23, softcap=1.5, outputs=4, qk_matmul_output_mode=n)
        for n in range(4)
    ),
    case("RotaryEmbedding", HEADS, floats(6, 1), floats(6, 1), np.array([[0, 1, 2], [3, 4, 5]]), opset=23),
    case("RotaryEmbedding", QUERY, floats(2, 3, 2), floats(2, 3, 2), opset=23, num_heads=2, interleaved=1),
    case("MultiHeadAttention", QUERY, KEY, KEY, domain=MICROSOFT, num_heads=4),
    case("MultiHeadAttention", QUERY, QUERY, QUERY, floats(24), domain=MICROSOFT, num_heads=2, unidirectional=1),
    case(
        *("MultiHeadAttention", QUERY, KEY, KEY, None, None, floats(1, 4, 3, 5)),
        domain=MICROSOFT,
        num_heads=4,
        scale=0.4,
    ),
    case("MultiHeadAttention", QUERY, floats(2, 4, 5, 2), floats(2, 4, 5, 2), domain=MICROSOFT, num_heads=4),
    case(
        *("MultiHeadAttention", QUERY, KEY, KEY, None, np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)),
        domain=MICROSOFT,
        num_heads=4,
    ),
    case("Attention", QUERY, floats(8, 24), floats(24), domain=MICROSOFT, num_heads=4, constant=(1, 2)),
    case("Attention", QUERY, floats(8, 24), floats(24), domain=MICROSOFT, num_heads=4, unidirectional=1),
]

CASES = [*RECURRENT, *QUANTIZED, *ATTENTION]


@pytest.mark.parametrize("one", CASES, ids=[f"{n}-{c.op}-{c.opset}" for n, c in enumerate(CASES)])
def test_a_composed_operator_gives_what_onnx_runtime_gives(one):
    proto, feeds = one.model(), one.feeds()
    check(by_ort(proto, feeds), by_torch(proto, feeds))


#: operators that no small case covers -> the test that does, or why none can
ELSEWHERE = {
    ("", "If"): "test_graph_module",
    ("", "Loop"): "test_graph_module",
    ("", "Scan"): "test_graph_module",
    ("", "Scatter"): "ONNX Runtime's own alias of ScatterElements before opset 11",
}


def test_every_operator_of_the_table_is_compared():
    compared = {(one.domain, one.op) for one in [*CASES, *test_graph_module_operators.CASES]}
    table = {(domain, op) for domain, operators in OPERATORS.items() for op in operators}
    assert table - compared == set(ELSEWHERE)
