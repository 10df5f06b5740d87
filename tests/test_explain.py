"""What ORT makes of a model: kernels, what is left in float, findings and the expectation."""

from __future__ import annotations

import json

import builders
import numpy as np
import onnx
import pytest
import real_data
from onnx import helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from onnxcomp import Batches, runtime, save
from onnxcomp.explain import explain
from onnxcomp.inspect import infer_shapes, macs_by_node
from onnxcomp.model import load, signature
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@pytest.fixture
def server(monkeypatch):
    """Expectations are those for a CPU with AVX-512 and VNNI, whatever runs the tests."""
    monkeypatch.setattr(runtime, "cpu_features", lambda: frozenset({"avx", "avx2", "avx512f", "avx512_vnni"}))


def severities(found):
    return [finding.severity for finding in found.findings]


def finding(found, words):
    """The one finding that says these words."""
    (one,) = [f for f in found.findings if words in f.what]
    return one


def stored(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def feeds(name, *shape, count=4):
    generator = np.random.default_rng(0)
    return [{name: generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


class Reader(quantization.CalibrationDataReader):
    def __init__(self, rows):
        self.rows = iter(rows)

    def get_next(self):
        return next(self.rows, None)


def matmul_chain(tmp_path, *, rows=64, width=256):
    proto = builders.model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
        ],
        [builders.value("x", rows, width)],
        [builders.value("y", rows, width)],
        [builders.weight("w1", width, width), builders.weight("w2", width, width)],
    )
    return builders.save(proto, tmp_path / "chain.onnx")


def static(source, target, rows, **options):
    types = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    quantization.quantize_static(source, target, Reader(rows), per_channel=True, **{**types, **options})
    return target


def table(*, before, rows=4000, width=64):
    """ids (1, 8) -> rows of an int8 table, dequantized before or after the Gather -> MatMul."""
    if before:
        looking = [
            helper.make_node(DEQUANTIZE, ["table", "scale", "zero"], ["floats"], name="whole"),
            helper.make_node("Gather", ["floats", "ids"], ["e"], name="embed"),
        ]
    else:
        looking = [
            helper.make_node("Gather", ["table", "ids"], ["q"], name="embed"),
            helper.make_node(DEQUANTIZE, ["q", "scale", "zero"], ["e"], name="rows"),
        ]
    return builders.model(
        [*looking, helper.make_node("MatMul", ["e", "w"], ["y"], name="proj")],
        [builders.value("ids", 1, 8, dtype=onnx.TensorProto.INT64)],
        [builders.value("y", 1, 8, width)],
        [
            stored("table", np.random.default_rng(0).integers(-127, 127, (rows, width)).astype(np.int8)),
            stored("scale", np.float32(0.01)),
            stored("zero", np.int8(0)),
            builders.weight("w", width, width),
        ],
    )


def test_a_float_model_has_no_integer_kernels(tmp_path):
    found = explain(builders.save(builders.cnn(), tmp_path / "m.onnx"))
    assert found.integer_kernels == {}
    assert found.expectation == "about equal"
    assert sorted(node.op for node in found.float_nodes) == ["Conv", "Conv", "Gemm"]
    assert {node.stored for node in found.float_nodes} == {"float32"}
    assert (found.unfused, found.dequantized, found.findings) == ((), (), ())
    assert found.macs.integer == 0
    assert found.macs.other == 16 * 64 * 27 + 16 * 64 * 144 + 160


def test_conv_integer_is_named_and_slower(tmp_path, server):
    source = builders.save(builders.cnn(), tmp_path / "m.onnx")
    quantization.quantize_dynamic(source, tmp_path / "q.onnx")
    found = explain(tmp_path / "q.onnx")
    assert found.integer_kernels["ConvInteger"] == 2
    assert finding(found, "ConvInteger").severity == "high"
    assert "conv1_quant" in finding(found, "ConvInteger").what
    assert found.expectation == "slower"
    assert "ConvInteger" in found.reason


def test_a_quantized_chain_is_faster(tmp_path, server):
    source = matmul_chain(tmp_path)
    quantization.quantize_dynamic(source, tmp_path / "q.onnx", per_channel=True)
    found = explain(tmp_path / "q.onnx")
    assert found.integer_kernels == {"DynamicQuantizeMatMul": 2}
    assert found.macs.share == 1
    assert found.macs.integer == 2 * 64 * 256 * 256
    assert (found.expectation, found.float_nodes, found.findings) == ("faster", (), ())


def test_nothing_is_claimed_for_other_cpus(tmp_path, monkeypatch):
    source = matmul_chain(tmp_path)
    quantization.quantize_dynamic(source, tmp_path / "q.onnx")
    monkeypatch.setattr(runtime, "cpu_features", lambda: frozenset({"avx", "avx2"}))
    found = explain(tmp_path / "q.onnx")
    assert found.expectation == "unknown"
    assert finding(found, "no VNNI").severity == "medium"


def dequantized_weight(op_type, x, y, w, **attributes):
    """One nameless node that takes x and a stored uint8 weight behind a DequantizeLinear."""
    return builders.model(
        [
            helper.make_node(DEQUANTIZE, ["w", "s", "z"], ["wf"]),
            helper.make_node(op_type, ["x", "wf"], ["y"], **attributes),
        ],
        [builders.value("x", *x)],
        [builders.value("y", *y)],
        [
            stored("w", np.arange(np.prod(w)).reshape(w).astype(np.uint8)),
            stored("s", np.float32(0.1)),
            stored("z", np.uint8(128)),
        ],
    )


def test_a_convolution_in_float_by_a_stored_8_bit_weight_is_named(tmp_path):
    proto = dequantized_weight("Conv", (1, 4, 8, 8), (1, 16, 6, 6), (16, 4, 3, 3))
    found = explain(builders.save(proto, tmp_path / "m.onnx"))
    assert found.integer_kernels == {}
    assert [(node.node, node.stored, node.bytes) for node in found.float_nodes] == [("Conv", "uint8", 576)]
    assert [(one.tensor, one.elements) for one in found.dequantized] == [("w", 576)]
    assert "quantize their inputs too" in finding(found, "turned into float").remedy
    assert found.macs.integer == 0


def test_a_product_by_a_stored_8_bit_weight_is_no_longer_in_float(tmp_path):
    """ORT makes a MatMulNBits of it, with a transposed copy of the weight."""
    proto = dequantized_weight("MatMul", (4, 32), (4, 16), (32, 16))
    found = explain(builders.save(proto, tmp_path / "m.onnx"))
    assert found.integer_kernels == {"MatMulNBits": 1}
    assert (found.float_nodes, found.dequantized, found.findings) == ((), (), ())
    assert found.macs.integer == 4 * 32 * 16


def round_trip():
    """x (1, 8) is rounded to 8 bits and multiplied in float by a dequantized weight."""
    return builders.model(
        [
            helper.make_node(QUANTIZE, ["x", "s", "z"], ["xq"], name="round"),
            helper.make_node(DEQUANTIZE, ["xq", "s", "z"], ["xf"], name="back"),
            helper.make_node("Softmax", ["xf"], ["y"], name="soft"),
        ],
        [builders.value("x", 1, 8)],
        [builders.value("y", 1, 8)],
        [stored("s", np.float32(0.1)), stored("z", np.uint8(128))],
    )


def test_a_round_trip_is_named(tmp_path):
    found = explain(builders.save(round_trip(), tmp_path / "m.onnx"))
    assert [(one.node, one.kind) for one in found.unfused] == [("round", "round trip"), ("back", "round trip")]
    assert found.unfused[0].before == ("x",)
    assert found.unfused[1].after == ("soft",)
    assert "round, back" in finding(found, "only round numbers").what


def test_a_table_dequantized_before_its_gather_is_named(tmp_path, server):
    found = explain(builders.save(table(before=True), tmp_path / "m.onnx"))
    (one,) = found.dequantized
    assert (one.tensor, one.elements, one.after) == ("table", 4000 * 64, ("embed",))
    assert finding(found, "table").severity == "high"
    assert "behind the Gather" in finding(found, "table").remedy
    assert found.expectation == "slower"
    assert ("embed", "int8") in {(node.node, node.stored) for node in found.float_nodes}


def test_a_table_dequantized_behind_its_gather_costs_nothing(tmp_path, server):
    found = explain(builders.save(table(before=False), tmp_path / "m.onnx"))
    assert found.dequantized == ()
    assert [(one.node, one.kind) for one in found.unfused] == [("rows", "lookup")]
    assert found.findings == ()
    assert [node.node for node in found.float_nodes] == ["proj"]


def test_signed_activations(tmp_path, server):
    signed = quantization.QuantType.QInt8
    options = {"quant_format": quantization.QuantFormat.QOperator, "op_types_to_quantize": ["MatMul"]}
    source = matmul_chain(tmp_path)
    found = explain(static(source, tmp_path / "s.onnx", feeds("x", 64, 256), activation_type=signed, **options))
    assert found.signed_activations == 2
    assert finding(found, "signed activations").severity == "high"
    assert found.expectation != "faster"
    found = explain(static(source, tmp_path / "u.onnx", feeds("x", 64, 256), **options))
    assert found.signed_activations == 0
    assert found.expectation == "faster"


def normalized(*, fused):
    """(x + z) normalized, as two nodes or as one that the model holds itself."""
    separate = [
        helper.make_node("Add", ["x", "z"], ["s"], name="add"),
        helper.make_node("LayerNormalization", ["s", "g", "b"], ["y"], name="norm", axis=-1),
    ]
    one = helper.make_node("SkipLayerNormalization", ["x", "z", "g", "b"], ["y"], name="n", domain="com.microsoft")
    proto = builders.model(
        [one] if fused else separate,
        [builders.value("x", 2, 4, 16), builders.value("z", 2, 4, 16)],
        [builders.value("y", 2, 4, 16)],
        [builders.weight("g", 16), builders.weight("b", 16)],
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def test_skip_layer_normalizations_that_ort_makes_are_counted(tmp_path):
    found = explain(builders.save(normalized(fused=False), tmp_path / "m.onnx"))
    assert found.skip_layer_normalizations == 1
    assert finding(found, "SkipLayerNormalization").severity == "low"
    assert explain(builders.save(normalized(fused=True), tmp_path / "own.onnx")).skip_layer_normalizations == 0


def blocks(tmp_path, *, bits, accuracy):
    quantizer = MatMulNBitsQuantizer(
        onnx.load(matmul_chain(tmp_path, rows=1)), bits=bits, block_size=32, is_symmetric=True, accuracy_level=accuracy
    )
    quantizer.process()
    proto = quantizer.model.model
    del proto.graph.value_info[:]
    return builders.save(proto, tmp_path / f"{bits}.{accuracy}.onnx")


def test_blocks_of_8_bits_computed_in_float_are_slow(tmp_path, server):
    found = explain(blocks(tmp_path, bits=8, accuracy=0))
    assert found.integer_kernels == {"MatMulNBits": 2}
    assert finding(found, "accuracy_level").severity == "high"
    assert found.expectation == "slower"
    found = explain(blocks(tmp_path, bits=4, accuracy=4))
    assert (found.expectation, found.findings) == ("faster", ())
    assert found.macs.integer == 2 * 256 * 256


def test_standing_in_for_operators_that_onnx_does_not_know_leaves_no_trace(tmp_path):
    model = load(blocks(tmp_path, bits=4, accuracy=4))
    before = [(n.domain, n.op_type, [v and v.name for v in n.inputs], sorted(n.attributes)) for n in model.graph]
    stored_before = list(model.graph.initializers)
    infer_shapes(model)
    after = [(n.domain, n.op_type, [v and v.name for v in n.inputs], sorted(n.attributes)) for n in model.graph]
    assert (before, stored_before) == (after, list(model.graph.initializers))
    assert [macs for _, macs in macs_by_node(model)] == [256 * 256, 256 * 256]


def test_batch_normalization_between_qdq_is_the_reason(tmp_path):
    source = builders.save(builders.cnn(), tmp_path / "m.onnx")
    found = explain(static(source, tmp_path / "q.onnx", feeds("image", 1, 3, 8, 8)))
    assert "BatchNormalization" in finding(found, "stand between").what
    assert "onnxcomp optimize" in finding(found, "stand between").remedy


def test_findings_come_worst_first(tmp_path, server):
    proto = table(before=True)
    proto.graph.node[-1].output[0] = "m"
    proto.graph.node.append(helper.make_node(QUANTIZE, ["m", "one", "mid"], ["mq"], name="round"))
    proto.graph.node.append(helper.make_node(DEQUANTIZE, ["mq", "one", "mid"], ["y"], name="back"))
    proto.graph.initializer.extend([stored("one", np.float32(1)), stored("mid", np.uint8(128))])
    order = severities(explain(builders.save(proto, tmp_path / "m.onnx")))
    assert order == sorted(order, key=("high", "medium", "low").index)
    assert len(order) > 1


def test_unknown_sizes_give_no_expectation(tmp_path, server):
    chosen = helper.make_node("Compress", ["z", "keep"], ["x"], axis=1)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    proto = builders.model(
        [chosen, product],
        [builders.value("z", 2, 64, 128), builders.value("keep", 64, dtype=onnx.TensorProto.BOOL)],
        [builders.value("y", 2, "chosen", 128)],
        [builders.weight("w", 128, 128)],
    )
    quantization.quantize_dynamic(builders.save(proto, tmp_path / "m.onnx"), tmp_path / "q.onnx")
    found = explain(tmp_path / "q.onnx")
    assert found.macs is None
    assert found.expectation == "unknown"


def test_json_keys(tmp_path):
    found = explain(builders.save(table(before=True), tmp_path / "m.onnx")).to_json()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {
        *("host", "integer_kernels", "float_nodes", "unfused", "dequantized", "signed_activations"),
        *("skip_layer_normalizations", "macs", "findings", "expectation"),
    }
    assert set(found["host"]) == {"machine", "cpu", "onnxruntime"}
    assert set(found["findings"][0]) == {"severity", "what", "why", "remedy"}
    assert set(found["dequantized"][0]) == {"tensor", "elements", "after"}
    assert set(found["float_nodes"][0]) == {"node", "op", "module", "stored", "bytes"}
    assert set(found["macs"]) == {"integer", "other", "assumed", "share"}
    assert set(found["expectation"]) == {"speed", "reason"}


def quantized(shared, tmp_path, name, *passes):
    """The explanation of a sample model after passes, calibrated on real samples."""
    arrays, real = real_data.samples(name, shared)
    assert real
    source = shared / "models" / f"{name}.onnx"
    few = {key: value[:24] for key, value in arrays.items() if key != "labels"}
    result = optimize(source, passes, data=Batches(few, signature(load(source)).inputs))
    target = tmp_path / f"{passes[0].name}.onnx"
    save(result.model, target)
    return explain(target)


def test_a_transformer_with_dynamic_int8(shared, tmp_path, server):
    found = quantized(shared, tmp_path, "snips_transformer", QuantizeDynamic())
    assert found.integer_kernels == {"DynamicQuantizeMatMul": 9}
    assert found.expectation == "faster"
    assert found.macs.share > 0.9
    assert found.dequantized == ()


def test_magika_gains_from_static_int8_and_not_from_dynamic(shared, tmp_path, server):
    found = quantized(shared, tmp_path, "magika_standard_v3_3", QuantizeStatic())
    assert found.expectation == "faster"
    assert found.macs.share == 1
    found = quantized(shared, tmp_path, "magika_standard_v3_3", QuantizeDynamic())
    assert found.expectation == "about equal"
    assert found.macs.share < 0.1
    assert "in float" in finding(found, "multiply in float").what


def test_a_cnn_loses_by_convinteger(shared, tmp_path, server):
    source = shared / "models/mlperftiny_resnet8_cifar10.onnx"
    quantization.quantize_dynamic(source, tmp_path / "q.onnx")
    found = explain(tmp_path / "q.onnx")
    assert found.integer_kernels["ConvInteger"] == 9
    assert found.expectation == "slower"
    assert explain(source).expectation == "about equal"


@pytest.mark.slow
def test_every_sample_model_can_be_explained(shared, tmp_path):
    for path in sorted((shared / "models").glob("*.onnx")):
        if path.stem == "superres_prepost_op18":
            continue  # its operators are in no build of ORT
        found = explain(path)
        assert found.expectation in ("about equal", "slower", "unknown"), path
        json.dumps(found.to_json())
