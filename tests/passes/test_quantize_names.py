"""ORT's quantizer names what it makes after what is there, without looking: 'w_scale' may be taken."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp import runtime
from onnxcomp.errors import UnsupportedError
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize_file

BOTH = pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic()], ids=["dynamic", "static"])
X = {"x": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}


def run(proto, step, tmp_path, data=X, **options):
    path = builders.save(proto, tmp_path / "m.onnx")
    return optimize_file(path, tmp_path / "o.onnx", [step], data=data, allow_larger=True, **options)


def product(x, w, y, name):
    return helper.make_node("MatMul", [x, w], [y], name)


@BOTH
@pytest.mark.parametrize("base", ["w", "x", "h", "m"])
@pytest.mark.parametrize(
    "suffix",
    ["scale", "quantized", "zero_point", "DequantizeLinear_Output", "QuantizeLinear_Input", "QuantizeLinear_Output"],
)
def test_initializers_named_like_what_the_quantizer_makes(step, base, suffix, tmp_path):
    outputs = []
    for name in (f"{base}_{suffix}", "harmless"):
        factors = builders.weight("factors", 64)
        factors.name = name
        nodes = [
            product("x", "w", "h", "first"),
            helper.make_node("Mul", ["h", name], ["m"], "scaled"),
            product("m", "v", "y", "second"),
        ]
        held = [builders.weight("w", 64, 64), builders.weight("v", 64, 64), factors]
        proto = builders.model(nodes, [builders.value("x", "n", 64)], [builders.value("y", "n", 64)], held)
        record = run(proto, step, tmp_path, force=True)
        assert record.passes[0].effect["quantized_weights"] == 2
        outputs.append(runtime.open_session(tmp_path / "o.onnx").run(X)["y"])
    np.testing.assert_array_equal(*outputs)


@BOTH
@pytest.mark.parametrize("suffix", ["scale", "quantized", "found"])
def test_tables(step, suffix, tmp_path):
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["e"], "lookup"),
        helper.make_node("Mul", ["e", f"t_{suffix}"], ["e_found"], "scaled"),
        product("e_found", "v", "y", "product"),
    ]
    held = [builders.weight("t", 500, 64), builders.weight("v", 64, 64), builders.weight(f"t_{suffix}", 64)]
    inputs = [builders.value("ids", "n", dtype=TensorProto.INT64)]
    data = {"ids": np.random.default_rng(0).integers(0, 500, 200)}
    record = run(builders.model(nodes, inputs, [builders.value("y", "n", 64)], held), step, tmp_path, data)
    assert record.passes[0].effect["quantized_weights"] == 2
    assert record.fidelity.outputs["y"].sqnr_db > 25


@BOTH
def test_an_output_named_after_an_inner_value(step, tmp_path):
    nodes = [product("x", "w", "h", "first"), product("h", "v", "h_quantized", "second")]
    held = [builders.weight("w", 64, 64), builders.weight("v", 64, 64)]
    outputs = [builders.value("h_quantized", "n", 64)]
    record = run(builders.model(nodes, [builders.value("x", "n", 64)], outputs, held), step, tmp_path)
    assert record.fidelity.outputs["h_quantized"].sqnr_db > 25
    assert [o.name for o in onnx.load(tmp_path / "o.onnx").graph.output] == ["h_quantized"]


@BOTH
def test_two_faces_that_clash_are_refused(step, tmp_path):
    nodes = [product("x", "w", "h", "first"), helper.make_node("Mul", ["h", "x_scale"], ["y"], "scaled")]
    inputs = [builders.value("x", "n", 64), builders.value("x_scale", "n", 64)]
    proto = builders.model(nodes, inputs, [builders.value("y", "n", 64)], [builders.weight("w", 64, 64)])
    with pytest.raises(UnsupportedError, match="'x'") as error:
        run(proto, step, tmp_path, {"x": X["x"], "x_scale": X["x"]})
    assert "tensor x_scale" in error.value.where
