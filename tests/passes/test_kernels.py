"""Products that ORT would run in float with a dequantized weight: none is left, and the float numbers stay."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
import real_data
from onnx import helper, numpy_helper

from onnxcomp import runtime
from onnxcomp.model import load, write_to
from onnxcomp.passes import QuantizeStatic
from onnxcomp.passes.quantize.kernels import make_reachable
from onnxcomp.pipeline import optimize_file

node, value, weight = helper.make_node, builders.value, builders.weight


def gemm(*, summand, stored, rows=4, graph_output=False, **attributes):
    """x (rows, 16), z like the summand -> Gemm -> y (rows, 32), and Relu of it."""
    shape = (32, 16) if attributes.get("transB") else (16, 32)
    nodes = [node("Gemm", ["x", "w", "c"], ["h"], name="fc", **attributes), node("Relu", ["h"], ["y"], name="after")]
    inputs, outputs, held = [value("x", rows, 16)], [value("y", rows, 32)], [weight("w", *shape)]
    if graph_output:
        outputs.append(value("h", rows, 32))
    if stored:
        held.append(weight("c", *summand))
    else:
        nodes.insert(0, node("Tanh", ["z"], ["c"], name="before"))
        inputs.append(value("z", *summand))
    return builders.model(nodes, inputs, outputs, held)


def matmul(shape, summand, *, stored, first=False, graph_output=False):
    """x of this shape -> MatMul -> Add -> y."""
    pair = ["c", "h"] if first else ["h", "c"]
    nodes = [node("MatMul", ["x", "w"], ["h"], name="fc"), node("Add", pair, ["y"], name="add")]
    inputs, outputs, held = [value("x", *shape)], [value("y", *shape[:-1], 32)], [weight("w", 16, 32)]
    if graph_output:
        outputs.append(value("h", *shape[:-1], 32))
    if stored:
        held.append(weight("c", *summand))
    else:
        nodes.insert(0, node("Tanh", ["z"], ["c"], name="before"))
        inputs.append(value("z", *summand))
    return builders.model(nodes, inputs, outputs, held)


def feeds(proto, batch=4):
    shapes = [[d.dim_value or batch for d in i.type.tensor_type.shape.dim] for i in proto.graph.input]
    return {i.name: builders.samples(*s) for i, s in zip(proto.graph.input, shapes, strict=True)}


def rewritten(proto, tmp_path):
    """The model afterwards; its outputs must be those from before."""
    made = load(builders.save(proto, tmp_path / "m.onnx"))
    make_reachable(made)
    path = write_to(made, tmp_path, "made")
    x = feeds(proto)
    before, after = (runtime.open_session(p).run(x) for p in (tmp_path / "m.onnx", path))
    assert list(before) == list(after)
    for name, array in before.items():
        assert np.abs(after[name] - array).max() <= 1e-6 * np.abs(array).max()
    return onnx.load(path).graph


def dequantized(path, tmp_path):
    """Weights that are dequantized in the graph that ORT runs."""
    folder = tmp_path / "optimized"
    folder.mkdir()
    graph = onnx.load(runtime.optimized(path, folder)).graph
    large = {t.name for t in graph.initializer if len(t.dims) > 1}
    return [n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in large]


def quantized(proto, tmp_path):
    """Quantize statically; (record, dequantized weights)."""
    path = builders.save(proto, tmp_path / "m.onnx")
    x = {name: np.concatenate([array] * 16) for name, array in feeds(proto).items()}
    record = optimize_file(path, tmp_path / "o.onnx", [QuantizeStatic()], data=x, allow_larger=True)
    assert all(output.sqnr_db > 30 for output in record.fidelity.outputs.values())
    assert record.passes[0].effect["skipped"] == []
    return record, dequantized(tmp_path / "o.onnx", tmp_path)


SPLIT = {
    "computed": {"summand": (4, 32), "stored": False},
    "computed, any rows": {"summand": ("n", 32), "stored": False, "rows": "n"},
    "computed, turned": {"summand": (4, 32), "stored": False, "transB": 1},
    "computed, given out": {"summand": (4, 32), "stored": False, "graph_output": True},
    "stored rows": {"summand": (4, 32), "stored": True},
    "stored column": {"summand": (4, 1), "stored": True},
    "stored rows, scaled": {"summand": (4, 32), "stored": True, "beta": 0.5},
}


@pytest.mark.parametrize("case", SPLIT)
def test_gemm_becomes_matmul_and_sum(case, tmp_path):
    proto = gemm(**SPLIT[case])
    graph = rewritten(proto, tmp_path)
    assert [n.op_type for n in graph.node if n.op_type not in ("Tanh", "Relu")] == ["MatMul", "Sum"]
    assert "fc" in {n.name for n in graph.node}  # what --exclude and the account call it
    assert quantized(proto, tmp_path)[1] == []


ROWS = {"row": (1, 32), "number": (), "one": (1,), "one of two axes": (1, 1)}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("turned", [0, 1])
def test_a_stored_row_becomes_a_bias(case, turned, tmp_path):
    proto = gemm(summand=ROWS[case], stored=True, transB=turned)
    graph = rewritten(proto, tmp_path)
    (fc,) = [n for n in graph.node if n.name == "fc"]
    assert fc.op_type == "Gemm"
    assert next(list(t.dims) for t in graph.initializer if t.name == fc.input[2]) == [32]
    assert quantized(proto, tmp_path)[1] == []


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5}])
def test_a_gemm_with_a_plain_bias_stays(attributes, tmp_path):
    graph = rewritten(gemm(summand=(32,), stored=True, **attributes), tmp_path)
    assert [n.op_type for n in graph.node] == ["Gemm", "Relu"]
    assert [t.name for t in graph.initializer] == ["w", "c"]


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 0.5}])
def test_a_gemm_with_factors_and_a_computed_summand_stays(attributes, tmp_path):
    graph = rewritten(gemm(summand=(4, 32), stored=False, **attributes), tmp_path)
    assert "Gemm" in {n.op_type for n in graph.node}


@pytest.mark.parametrize("turned", [0, 1])
def test_a_shared_matrix_is_not_turned(turned, tmp_path):
    nodes = [
        node("Tanh", ["z"], ["c"]),
        node("Gemm", ["x", "w", "c"], ["h"], name="one", transB=turned),
        node("Gemm", ["h", "w"], ["y"], name="two", transB=turned),
    ]
    proto = builders.model(nodes, [value("x", 4, 16), value("z", 4, 16)], [value("y", 4, 16)], [weight("w", 16, 16)])
    graph = rewritten(proto, tmp_path)
    assert next(n.op_type for n in graph.node if n.name == "one") == ("Gemm" if turned else "MatMul")
    assert np.array_equal(
        numpy_helper.to_array(graph.initializer[0]), numpy_helper.to_array(proto.graph.initializer[0])
    )


PRODUCTS = {
    "three axes": ((4, 5, 16), (32,), True),
    "four axes": ((4, 3, 5, 16), (32,), True),
    "any batch": (("n", 5, 16), (32,), True),
    "rows": ((4, 16), (4, 32), True),
    "residual": ((4, 16), (4, 32), False),
    "residual, any rows": (("n", 16), ("n", 32), False),
    "residual of three axes": ((4, 5, 16), (4, 5, 32), False),
}


@pytest.mark.parametrize("case", PRODUCTS)
@pytest.mark.parametrize("first", [False, True])
def test_no_matrix_of_a_product_and_a_sum_is_dequantized(case, first, tmp_path):
    shape, summand, stored = PRODUCTS[case]
    proto = matmul(shape, summand, stored=stored, first=first)
    rewritten(proto, tmp_path)
    assert quantized(proto, tmp_path)[1] == []


def test_a_bias_gets_the_axes_of_the_product(tmp_path):
    graph = rewritten(matmul((4, 5, 16), (32,), stored=True), tmp_path)
    (add,) = [n for n in graph.node if n.op_type == "Add"]
    assert next(list(t.dims) for t in graph.initializer if t.name == add.input[1]) == [1, 1, 32]


def test_a_bias_stays_where_the_product_is_given_out(tmp_path):
    graph = rewritten(matmul((4, 5, 16), (32,), stored=True, graph_output=True), tmp_path)
    assert [t.name for t in graph.initializer] == ["w", "c"]


def test_two_products_share_a_bias(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="one"),
        node("Add", ["h", "c"], ["a"], name="add1"),
        node("MatMul", ["a", "v"], ["k"], name="two"),
        node("Add", ["k", "c"], ["y"], name="add2"),
    ]
    held = [weight("w", 16, 16), weight("v", 16, 16), weight("c", 16)]
    proto = builders.model(nodes, [value("x", 4, 5, 16)], [value("y", 4, 5, 16)], held)
    rewritten(proto, tmp_path)
    record, left = quantized(proto, tmp_path)
    assert record.passes[0].effect["quantized_weights"] == 2
    assert left == []


def test_names_that_are_taken(tmp_path):
    """What is put in must not take the name of something else."""
    nodes = [
        node("Tanh", ["z"], ["c"], name="fc_Sum"),
        node("Gemm", ["x", "w", "c"], ["h"], name="fc"),
        node("Add", ["h", "h_product"], ["k"], name="add"),
        node("Gemm", ["k", "v", "c_row"], ["m"], name="fc2"),
        node("Gemm", ["m", "u", "d"], ["y"], name="fc3"),
        node("Add", ["y", "d_row"], ["t"], name="last"),
    ]
    held = [weight("w", 16, 16), weight("v", 16, 16), weight("u", 16, 16)]
    held += [weight("h_product", 16), weight("c_row", 1, 16), weight("d", 1, 16), weight("d_row", 16)]
    proto = builders.model(nodes, [value("x", 4, 16), value("z", 4, 16)], [value("t", 4, 16)], held)
    graph = rewritten(proto, tmp_path)
    names = [n.name for n in graph.node]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name", ["dtln_model_2", "magika_standard_v3_3", "snips_transformer", "mlperftiny_resnet8_cifar10"]
)
def test_real_models_run_without_dequantized_weights(name, shared, tmp_path):
    """DTLN has products of three axes of known size, and residual sums."""
    source = shared / f"models/{name}.onnx"
    data, _ = real_data.samples(name, shared)
    out = tmp_path / "o.onnx"
    record = optimize_file(source, out, [QuantizeStatic()], data=data)
    assert record.passes[0].effect["quantized_weights"] > 0
    assert dequantized(out, tmp_path) == []
