"""Products in int8: the numbers of ORT's quantizer, once each, and no float copy of a large matrix."""

from __future__ import annotations

from collections import Counter

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxruntime import quantization

from onnxcomp import runtime
from onnxcomp.passes import QuantizeDynamic, Simplify
from onnxcomp.passes.quantize import _ort, integer
from onnxcomp.pipeline import optimize_file

WIDE = 1024


def graph(*nodes, weights, width=64, out=48, rank=2):
    shape = ["batch", *[3] * (rank - 2)]
    return builders.model(
        list(nodes),
        [builders.value("x", *shape, width)],
        [builders.value("y", *shape, out)],
        weights,
    )


def stored(path):
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def quantized(proto, tmp_path, **options):
    source = builders.save(proto, tmp_path / "m.onnx")
    optimize_file(source, tmp_path / "q.onnx", [QuantizeDynamic(**options)], allow_larger=True)
    return source, tmp_path / "q.onnx"


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_the_numbers_are_those_of_the_quantizer_of_ort(tmp_path, per_channel, reduce_range):
    proto = graph(
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], "second"),
        weights=[builders.weight("w", 64, 96), builders.weight("v", 96, 48, seed=1)],
    )
    source, ours = quantized(proto, tmp_path, per_channel=per_channel, reduce_range=reduce_range)
    theirs = tmp_path / "ort.onnx"
    quantization.quantize_dynamic(
        source, theirs, per_channel=per_channel, reduce_range=reduce_range, weight_type=quantization.QuantType.QInt8
    )
    expected, found = stored(theirs), stored(ours)
    for name in ("w_quantized", "v_quantized", "w_scale", "v_scale"):
        assert np.array_equal(expected[name], found[name])
    x = builders.samples(8, 64)
    results = [runtime.open_session(path).run({"x": x}) for path in (theirs, ours)]
    assert np.array_equal(results[0]["y"], results[1]["y"])


def test_products_of_one_tensor_quantize_it_once(tmp_path):
    names = ("q", "k", "v")
    proto = graph(
        *(helper.make_node("MatMul", ["x", name], [f"{name}_out"], name) for name in names),
        helper.make_node("Sum", [f"{name}_out" for name in names], ["y"]),
        weights=[builders.weight(name, 64, 48, seed=i) for i, name in enumerate(names)],
    )
    _, path = quantized(proto, tmp_path)
    assert operators(path)["DynamicQuantizeLinear"] == 1
    assert operators(path)["MatMulInteger"] == 3


def test_a_matrix_that_two_nodes_read_is_stored_once(tmp_path):
    proto = graph(
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], "second"),
        weights=[builders.weight("w", 64, 64)],
        out=64,
    )
    _, path = quantized(proto, tmp_path)
    assert [name for name, array in stored(path).items() if array.size == 64 * 64] == ["w_quantized"]


def test_a_turned_gemm_with_bias_is_one_fused_kernel(tmp_path):
    proto = graph(
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", transB=1),
        weights=[builders.weight("w", 48, 64), builders.weight("b", 48)],
    )
    source, path = quantized(proto, tmp_path)
    assert stored(path)["w_quantized"].shape == (64, 48)
    x = builders.samples(32, 64)
    float_out, int_out = (runtime.open_session(p).run({"x": x})["y"] for p in (source, path))
    assert np.abs(float_out - int_out).max() < 0.05 * np.abs(float_out).max()
    assert operators(runtime.optimized(path, tmp_path)) == {"DynamicQuantizeMatMul": 1}


def test_a_column_of_zeros_stays_zeros(tmp_path):
    array = numpy_helper.to_array(builders.weight("w", 64, 48)).copy()
    array[:, 5] = 0
    proto = graph(helper.make_node("MatMul", ["x", "w"], ["y"], "m"), weights=[numpy_helper.from_array(array, "w")])
    _, path = quantized(proto, tmp_path)
    assert np.all(runtime.open_session(path).run({"x": builders.samples(4, 64)})["y"][:, 5] == 0)


def test_a_large_matrix_is_rounded_when_it_is_written():
    model = ir.from_proto(
        graph(
            helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
            weights=[builders.weight("w", WIDE, WIDE)],
            width=WIDE,
            out=WIDE,
        )
    )
    weight = model.graph.initializers["w"].const_value.numpy()
    request = _ort.Request(op_types=("MatMul",), exclude=(), per_channel=True, reduce_range=False)
    integer.quantize_products(model, request)
    made = model.graph.initializers["w_quantized"].const_value
    assert isinstance(made, ir.LazyTensor)
    assert np.array_equal(made.numpy(), np.rint(weight / (np.abs(weight).max(axis=0) / np.float32(127))))
    assert "w" not in model.graph.initializers


def test_a_model_with_lstm_beside_products_has_both_in_int8(tmp_path, shared):
    path = shared / "models" / "dtln_model_1.onnx"
    optimize_file(path, tmp_path / "q.onnx", [Simplify(), QuantizeDynamic()])
    found = operators(tmp_path / "q.onnx")
    assert found["DynamicQuantizeLSTM"] == 2
    assert found["MatMulInteger"] == 1
    assert "LSTM" not in found
