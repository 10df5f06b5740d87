"""FusedConv, as ORT's optimizer writes it: the parts compute the same, and are quantized."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
import real_data
from onnx import helper

from onnxcomp import runtime
from onnxcomp.model import load
from onnxcomp.passes import QuantizeStatic
from onnxcomp.passes.quantize.unfuse import unfuse
from onnxcomp.pipeline import optimize_file, save

FEEDS = {"image": builders.samples(64, 3, 8, 8)}


def fused(activation, params=(), *, summand=False):
    inputs = ["image", "k", "b", *(["extra"] if summand else [])]
    options = {"activation_params": list(params)} if params else {}
    nodes = [
        *([helper.make_node("Conv", ["image", "k", "b"], ["extra"], "before", pads=[1, 1, 1, 1])] if summand else []),
        helper.make_node(
            "FusedConv", inputs, ["h"], "fused", domain="com.microsoft", activation=activation, pads=[1, 1, 1, 1],
            **options,
        ),
        helper.make_node("Conv", ["h", "k2"], ["y"], "after"),
    ]  # fmt: skip
    held = [builders.weight("k", 16, 3, 3, 3), builders.weight("b", 16), builders.weight("k2", 16, 16, 3, 3)]
    proto = builders.model(nodes, [builders.value("image", "n", 3, 8, 8)], [builders.value("y", "n", 16, 6, 6)], held)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


CASES = [
    ("Relu", (), False),
    ("Relu", (), True),
    ("Sigmoid", (), False),
    ("Tanh", (), False),
    ("LeakyRelu", (0.3,), False),
    ("Clip", (-0.25, 0.5), False),
    ("HardSigmoid", (0.1, 0.4), False),
]


@pytest.mark.parametrize(("activation", "params", "summand"), CASES)
def test_the_parts_compute_the_same(activation, params, summand, tmp_path):
    path = builders.save(fused(activation, params, summand=summand), tmp_path / "m.onnx")
    model = load(path)
    assert unfuse(model) == 1
    assert activation in {n.op_type for n in model.graph}
    assert not any(n.domain for n in model.graph)
    save(model, tmp_path / "u.onnx")
    before, after = (runtime.open_session(p).run(FEEDS)["y"] for p in (path, tmp_path / "u.onnx"))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


def test_an_unknown_activation_stays(tmp_path):
    model = load(builders.save(fused("Relu"), tmp_path / "m.onnx"))
    node = next(n for n in model.graph if n.op_type == "FusedConv")
    node.attributes["activation"] = type(node.attributes["activation"])(
        "activation", node.attributes["activation"].type, "Mish"
    )
    assert unfuse(model) == 0
    assert node.op_type == "FusedConv"


@pytest.mark.parametrize(("activation", "params", "summand"), CASES[:2])
def test_static_quantizes_both(activation, params, summand, tmp_path):
    path = builders.save(fused(activation, params, summand=summand), tmp_path / "m.onnx")
    record = optimize_file(path, tmp_path / "o.onnx", [QuantizeStatic()], data=FEEDS, allow_larger=True)
    effect = record.passes[0].effect
    assert (effect["quantized_weights"], effect["skipped"]) == (2, [])
    assert record.fidelity.outputs["y"].sqnr_db > 25
    assert "FusedConv" not in {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}


def test_a_detector_that_ort_optimized(shared, tmp_path):
    arrays, _ = real_data.samples("osf_mnv3_detection_opt", shared)
    source = shared / "models/osf_mnv3_detection_opt.onnx"
    record = optimize_file(source, tmp_path / "o.onnx", [QuantizeStatic()], data=arrays, batch_size=4)
    effect = record.passes[0].effect
    assert effect["total_weights"] == 70
    assert effect["quantized_weights"] + len(effect["skipped"]) == 70
    assert all("max_node_error" in s["reason"] for s in effect["skipped"])
    assert len(effect["skipped"]) <= 3
    assert record.size_ratio < 0.6
    assert min(out.cosine_mean for out in record.fidelity.outputs.values()) > 0.7
