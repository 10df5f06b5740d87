"""Every layer of what people export is fused, equal at all sizes; what only looks like it stays, with the reason."""

from __future__ import annotations

import importlib.util

import builders
import fusion_exports
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fusion_graphs import GUARD, LOWEST, OUTPUT, attention, graph
from onnx import TensorProto, helper

from onnxcomp import inspect, worker
from onnxcomp.errors import NoEffectError
from onnxcomp.passes import Fuse, QuantizeDynamic, QuantizeStatic, Simplify, UpgradeOpset
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.runtime import open_session

SIZES = [{"batch": 1, "seq": 1, "other": 3}, {"batch": 2, "seq": 7, "other": 4}, {"batch": 5, "seq": 16, "other": 1}]
ORDERS = {"alone": [Fuse()], "after": [Simplify(), Fuse()], "before": [Fuse(), Simplify()]}


def feeds(path, sizes, seed=0):
    """Noise; the masks hold a sample without padding, some with, and one that is all padding."""
    rng, made = np.random.default_rng(seed), {}
    for spec in open_session(path).signature.inputs:
        shape = [sizes.get(d, 3) if isinstance(d, str) else d for d in spec.shape]
        if spec.dtype == "bool":
            made[spec.name] = rng.random(shape) < 0.4
        elif spec.name.endswith("mask") and spec.dtype == "int64":
            made[spec.name] = (rng.random(shape) < 0.6).astype(np.int64)
            made[spec.name][0] = sizes["batch"] != 2  # at batch 2 a sample of nothing but padding
        elif spec.dtype == "int64":
            made[spec.name] = rng.integers(0, 2 if "type" in spec.name else 50, shape)
        else:
            made[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return made


def agree(reference, candidate, tolerance=1e-5, sizes=SIZES):
    for one in sizes:
        given = feeds(reference, one)
        want, got = (open_session(path).run(given) for path in (reference, candidate))
        for name, array in want.items():
            assert got[name].shape == array.shape
            largest = np.nanmax(np.abs(array), initial=1e-6)
            np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * largest, equal_nan=True)


def fused(proto, tmp_path, steps=(), *, same=True):
    """(model, effect, reasons) after fusing; outputs are compared."""
    source, output = builders.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx"
    done = optimize(source, [*steps, Fuse()])
    output.write_bytes(onnx.load_from_string(to_bytes(done.model)).SerializeToString())
    if same:
        agree(source, output)
    return onnx.load(output), done.passes[-1].effect, [note.reason for note in done.passes[-1].notes]


def refused(proto, tmp_path):
    """The reason of the one note of a model in which nothing is fused."""
    done = optimize(builders.save(proto, tmp_path / "m.onnx"), [Fuse()], allow_no_effect=True)
    (record,) = done.passes
    assert record.effect["added"] == {}
    (note,) = record.notes
    return note.reason


def to_bytes(model):
    import onnx_ir as ir

    return ir.to_proto(model).SerializeToString()


def ops(proto):
    return [node.op_type for node in proto.graph.node]


def the(proto, op_type):
    (node,) = (node for node in proto.graph.node if node.op_type == op_type)
    return node


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def with_transformers(name):
    return not name.startswith(("bert", "distilbert", "gpt2", "vit")) or importlib.util.find_spec("transformers")


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    worker.isolated(fusion_exports.export_all, folder, [n for n in fusion_exports.EXPORTS if with_transformers(n)])
    return folder


@pytest.mark.parametrize("name", fusion_exports.EXPORTS)
def test_every_layer_of_an_export(name, exports, tmp_path):
    if not with_transformers(name):
        pytest.skip("transformers is not installed")
    layers = fusion_exports.EXPORTS[name][2]
    source = exports / f"{name}.onnx"
    for order, steps in ORDERS.items():
        output = tmp_path / f"{order}.onnx"
        record = optimize_file(source, output, steps, allow_no_effect=True)
        (effect,) = (p.effect for p in record.passes if p.name == "fuse")
        assert effect["patterns"]["attention"] == {"found": layers, "fused": layers}
        assert effect["patterns"]["gelu"]["found"] == (1 if name.startswith("gpt2") else 0)
        assert all(found["found"] == found["fused"] for found in effect["patterns"].values())
        counts = inspect(output).contents.ops
        assert counts["com.microsoft::MultiHeadAttention"] == layers
        assert not counts.keys() & {"ai.onnx::Softmax", "ai.onnx::IsNaN", "ai.onnx::Tanh"}
        assert not any(value.name for value in onnx.load(output).graph.value_info)
        agree(source, output)


@pytest.mark.parametrize("name", ["bert-sdpa", "encoder-padded"])
def test_a_fused_export_is_quantized_like_an_unfused(name, exports, tmp_path):
    if not with_transformers(name):
        pytest.skip("transformers is not installed")
    source, output = exports / f"{name}.onnx", tmp_path / "fused.onnx"
    optimize_file(source, output, [Fuse()])
    data = {k: v.repeat(4, 0) for k, v in feeds(source, {"batch": 8, "seq": 7}).items()}
    data = {k: np.zeros_like(v) if v.dtype == bool else v for k, v in data.items()}
    for step in (QuantizeDynamic(), QuantizeStatic()):
        counts = []
        for path in (source, output):
            record = optimize_file(path, tmp_path / "int8.onnx", [step], data=data, force=True, allow_larger=True)
            counts.append({k: record.passes[0].effect[k] for k in ("quantized_weights", "total_weights")})
            assert min(o.cosine_mean for o in record.fidelity.outputs.values()) > 0.98
        assert counts[0] == counts[1]


@pytest.mark.parametrize(("name", "found"), [("snips_transformer", (2, 2, 0)), ("tribuo_tinybert", (1, 1, 3))])
def test_real_models(name, found, shared, tmp_path):
    source, output = shared / "models" / f"{name}.onnx", tmp_path / "o.onnx"
    record = optimize_file(source, output, [UpgradeOpset(opset=17), Fuse()], allow_no_effect=True)
    patterns = record.passes[-1].effect["patterns"]
    assert tuple(p["found"] for p in patterns.values()) == found
    assert tuple(p["fused"] for p in patterns.values()) == found
    agree(source, output, sizes=[{**one, "sequence": one["seq"]} for one in SIZES])


def test_the_layer_keeps_its_name_and_module(tmp_path):
    proto = attention()
    node = the(proto, "Softmax")
    node.name = "layer.0.softmax"
    node.metadata_props.add(key="onnxcomp.module", value="layer.0")
    made = the(fused(proto, tmp_path)[0], "MultiHeadAttention")
    assert made.name == "layer.0.softmax"
    assert [(p.key, p.value) for p in made.metadata_props] == [("onnxcomp.module", "layer.0")]


def test_heads_are_neither_parted_nor_joined(tmp_path):
    proto, effect, _ = fused(attention(), tmp_path)
    assert ops(proto) == ["MultiHeadAttention", "Reshape"]
    assert list(proto.graph.node[0].input) == ["x", "x", "x"]
    assert attributes(proto.graph.node[0]) == {"num_heads": 4, "scale": pytest.approx(8**-0.5)}
    assert effect["nodes"]["after"] == 2


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ("half_ = Div(scaled, two)\n scores = Mul(three, half_)", 1.5 * 8**-0.5),
        ("scores = Identity(qk)", 1.0),
    ],
)
def test_all_scales_count(scores, scale, tmp_path):
    proto = attention(scores, two=np.float32(2), three=np.float32(3))
    assert attributes(the(fused(proto, tmp_path)[0], "MultiHeadAttention"))["scale"] == pytest.approx(scale)


def test_query_and_key_may_be_scaled_too(tmp_path):
    query = """
        q4 = Reshape(x, apart)
        plain = Transpose<perm = [0, 2, 1, 3]>(q4)
        q = Mul(plain, two)
    """
    key = "kp = Transpose<perm = [0, 2, 3, 1]>(q4)\n kt = Div(kp, four)"
    proto = attention(query=query, key=key, value="v = Identity(plain)", two=np.float32(2), four=np.float32(4))
    proto, _, _ = fused(proto, tmp_path)
    assert attributes(the(proto, "MultiHeadAttention"))["scale"] == pytest.approx(0.5 * 8**-0.5)
    assert ops(proto) == ["MultiHeadAttention", "Reshape"]


@pytest.mark.parametrize(
    "shape",
    ["batch, 4, seq, seq", "1, 1, seq, seq", "batch, 1, 1, seq", "1, 4, 1, seq", "seq, seq", "seq", "1, 1, 1, 1"],
)
def test_masks_of_any_shape_that_broadcasts(shape, tmp_path):
    masked = attention("scores = Add(mask, scaled)", inputs=f"float[{shape}] mask")
    proto, _, _ = fused(masked, tmp_path)
    assert "Softmax" not in ops(proto)
    assert ("Expand" in ops(proto)) == (shape not in ("batch, 4, seq, seq", "1, 1, seq, seq"))


def test_several_masks_are_added(tmp_path):
    inputs = "float[batch, 1, 1, seq] mask, float[4, seq, seq] bias"
    proto, _, _ = fused(attention("s = Add(scaled, bias)\n scores = Add(mask, s)", inputs=inputs), tmp_path)
    assert len(the(proto, "MultiHeadAttention").input) == 6


def test_a_mask_for_all_layers_is_expanded_once(tmp_path):
    proto = attention("scores = Add(mask, scaled)", inputs="float[batch, 1, 1, seq] mask")
    first = attention("scores = Add(mask, scaled)", inputs="float[batch, 1, 1, seq] mask").graph.node
    inner = {name for node in first for name in node.output}
    for node in first:
        node.input[:] = [f"{n}.0" if n in inner else n for n in node.input]
        node.output[:] = [f"{n}.0" for n in node.output]
        node.name += ".0"
    proto.graph.node[0].input[0] = "y.0"
    for node in reversed(first):
        proto.graph.node.insert(0, node)
    done, effect, _ = fused(proto, tmp_path)
    assert effect["patterns"]["attention"]["fused"] == 2
    assert ops(done).count("Expand") == 1


@pytest.mark.parametrize("lowest", ["lowest", "infinite"])
def test_a_score_may_be_replaced_where_it_is_masked(lowest, tmp_path):
    keep = attention(f"scores = Where(keep, scaled, {lowest})", inputs="bool[batch, 1, seq, seq] keep")
    assert "Softmax" not in ops(fused(keep, tmp_path)[0])
    drop = attention(f"scores = Where(drop, {lowest}, scaled)", inputs="bool[batch, 1, 1, seq] drop")
    assert "Softmax" not in ops(fused(drop, tmp_path)[0])


def test_a_score_replaced_by_a_moderate_number_stays(tmp_path):
    """Where a row is all masked, -10000 for each is not the same as -10000 more for each."""
    proto = attention("scores = Where(keep, scaled, thousands)", inputs="bool[batch, 1, seq, seq] keep")
    assert "masked scores become -10000" in refused(proto, tmp_path)


def test_the_guard_goes_where_no_mask_makes_nan(tmp_path):
    scores = "mask = Where(keep, zero, lowest)\n scores = Add(scaled, mask)"
    proto, _, _ = fused(attention(scores, weights=GUARD, inputs="bool[batch, 1, seq, seq] keep"), tmp_path)
    assert "IsNaN" not in ops(proto)
    assert "IsNaN" not in ops(fused(attention(weights=GUARD), tmp_path)[0])


@pytest.mark.parametrize(
    ("scores", "inputs"),
    [
        ("mask = Where(keep, zero, infinite)\n scores = Add(scaled, mask)", "bool[batch, 1, seq, seq] keep"),
        ("scores = Where(keep, scaled, infinite)", "bool[batch, 1, seq, seq] keep"),
        ("scores = Add(scaled, mask)", "float[batch, 1, seq, seq] mask"),
    ],
)
def test_the_guard_moves_behind_the_operator_where_one_may(scores, inputs, tmp_path):
    """Rows with every key masked are 0 before and after."""
    source = builders.save(attention(scores, weights=GUARD, inputs=inputs), tmp_path / "m.onnx")
    proto, _, _ = fused(onnx.load(source), tmp_path)
    assert ops(proto)[-4:] == ["MultiHeadAttention", "IsNaN", "Where", "Reshape"]
    given = feeds(source, SIZES[1])
    name = "keep" if "keep" in given else "mask"
    given[name][...] = given[name] > 0
    given[name][1, :, 2] = 0
    if name == "mask":
        given[name] = np.where(given[name], 0, -np.inf).astype(np.float32)
    want, got = (open_session(path).run(given)["y"] for path in (source, tmp_path / "o.onnx"))
    assert (want[1, 2] == 0).all()
    assert np.isfinite(want).all()
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_product_of_finite_masks_is_finite(tmp_path):
    scores = """
        floats = Cast<to = 1>(padding)
        inverted = Sub(one, floats)
        low = Mul(inverted, lowest)
        scores = Add(scaled, low)
    """
    inputs = "int64[batch, 1, 1, seq] padding"
    assert "IsNaN" in ops(fused(attention(scores, weights=GUARD, inputs=inputs), tmp_path, same=False)[0])
    moderate = scores.replace("lowest", "thousands")
    assert "IsNaN" not in ops(fused(attention(moderate, weights=GUARD, inputs=inputs), tmp_path)[0])


def test_two_masks_that_sum_to_infinity_keep_the_guard(tmp_path):
    scores = """
        a = Where(keep, zero, lowest)
        b = Where(also, zero, lowest)
        s = Add(scaled, a)
        scores = Add(s, b)
    """
    inputs = "bool[batch, 1, seq, seq] keep, bool[batch, 1, 1, seq] also"
    assert "IsNaN" in ops(fused(attention(scores, weights=GUARD, inputs=inputs), tmp_path, same=False)[0])
    both = scores.replace("lowest", "thousands")
    assert "IsNaN" not in ops(fused(attention(both, weights=GUARD, inputs=inputs), tmp_path)[0])


CAUSAL = """
    shape = Shape(x)
    size = Gather(shape, second)
    square = Concat<axis = 0>(size, size)
    ones = Expand(one, square)
"""
LOWER = "lower = Trilu<upper = 0>(ones)\n beyond = Equal(lower, zero)\n"
COUNTED = """
    shape = Shape(x)
    number = Gather(shape, one_)
    count = Range(zero_, number, one_)
    row = Unsqueeze(count, first)
    column = Unsqueeze(count, second)
"""


@pytest.mark.parametrize(
    "scores",
    [
        f"{CAUSAL}{LOWER} mask = Where(beyond, lowest, zero)\n scores = Add(scaled, mask)",
        f"{CAUSAL}{LOWER} within = Not(beyond)\n mask = Where(within, zero, infinite)\n scores = Add(scaled, mask)",
        f"{CAUSAL}{LOWER} scores = Where(beyond, lowest, scaled)",
        f"{CAUSAL} upper = Trilu<upper = 1>(ones, one_)\n b = Cast<to = 9>(upper)\n scores = Where(b, lowest, scaled)",
        f"{COUNTED} within = LessOrEqual(row, column)\n scores = Where(within, scaled, infinite)",
    ],
)
def test_a_causal_mask_becomes_the_operators_own(scores, tmp_path):
    constants = {"one_": np.int64(1), "zero_": np.int64(0)}
    proto, _, _ = fused(attention(scores, **constants), tmp_path)
    assert ops(proto) == ["MultiHeadAttention", "Reshape"]
    assert attributes(proto.graph.node[0])["unidirectional"] == 1


@pytest.mark.parametrize(
    "scores",
    [
        f"{CAUSAL}{LOWER} mask = Where(beyond, zero, lowest)\n scores = Add(scaled, mask)",
        f"{CAUSAL}{LOWER} mask = Where(beyond, thousands, zero)\n scores = Add(scaled, mask)",
        f"{CAUSAL}{LOWER.replace('(ones)', '(ones, one_)')} scores = Where(beyond, lowest, scaled)",
        f"{COUNTED} within = LessOrEqual(column, row)\n scores = Where(within, scaled, infinite)",
    ],
)
def test_a_mask_that_is_only_like_a_causal_one_stays_a_mask(scores, tmp_path):
    constants = {"one_": np.int64(1), "zero_": np.int64(0)}
    node = the(fused(attention(scores, **constants), tmp_path)[0], "MultiHeadAttention")
    assert "unidirectional" not in attributes(node)
    assert node.input[5]


def test_a_stored_causal_mask_is_known(tmp_path):
    square = np.triu(np.full((7, 7), LOWEST), 1)
    fixed = {"inputs": "", "outputs": "float[batch, 7, 32] y", "mask": square}
    for mask, causal in ((square, True), (square.T, False), (square * 0, False)):
        proto = attention("scores = Add(scaled, mask)", **{**fixed, "mask": mask})
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
        node = the(fused(proto, tmp_path)[0], "MultiHeadAttention")
        assert ("unidirectional" in attributes(node)) == causal


def test_a_causal_mask_beside_another_stays_a_mask(tmp_path):
    scores = f"{CAUSAL}{LOWER} s = Where(beyond, lowest, scaled)\n scores = Add(s, padding)"
    proto, _, _ = fused(attention(scores, inputs="float[batch, 1, 1, seq] padding"), tmp_path)
    assert "unidirectional" not in attributes(the(proto, "MultiHeadAttention"))


CROSS = """
    k4 = Reshape(others, apart)
    kt = Transpose<perm = [0, 2, 3, 1]>(k4)
"""


def test_keys_of_another_length(tmp_path):
    value = "v = Transpose<perm = [0, 2, 1, 3]>(k4)"
    proto, _, _ = fused(attention(key=CROSS, value=value, inputs="float[batch, other, 32] others"), tmp_path)
    assert list(the(proto, "MultiHeadAttention").input) == ["x", "others", "others"]


def test_the_triangle_of_a_longer_key_is_not_causal(tmp_path):
    """The operator lines the triangle up at the end, sdpa at the start."""
    scores = """
        ones = ConstantOfShape<value = float[1] {1}>(square)
        lower = Trilu<upper = 0>(ones)
        beyond = Equal(lower, zero)
        scores = Where(beyond, lowest, scaled)
    """
    parts = """
        query = Shape(x)
        rows = Gather(query, second)
        keys = Shape(others)
        columns = Gather(keys, second)
        square = Concat<axis = 0>(rows, columns)
    """
    value = "v = Transpose<perm = [0, 2, 1, 3]>(k4)"
    inputs = "float[batch, other, 32] others"
    proto, _, _ = fused(attention(parts + scores, key=CROSS, value=value, inputs=inputs), tmp_path)
    assert "unidirectional" not in attributes(the(proto, "MultiHeadAttention"))


def test_batches_that_are_not_proven_equal_stay(tmp_path):
    value = "v = Transpose<perm = [0, 2, 1, 3]>(k4)"
    proto = attention(key=CROSS, value=value, inputs="float[several, other, 32] others")
    assert "not proven to agree" in refused(proto, tmp_path)


def test_a_mask_of_an_unknown_batch_stays(tmp_path):
    proto = attention("scores = Add(scaled, mask)", inputs="float[several, 1, 1, seq] mask")
    assert "axis of the mask is not proven" in refused(proto, tmp_path)


def test_keys_and_values_from_a_cache_stay_apart(tmp_path):
    """A cache is joined where the heads are parted already: the operator takes it so."""
    key = """
        k = Concat<axis = 2>(past, q)
        kt = Transpose<perm = [0, 1, 3, 2]>(k)
    """
    proto = attention(key=key, value="v = Identity(k)", inputs="float[batch, 4, other, 8] past")
    proto, _, _ = fused(proto, tmp_path)
    assert list(the(proto, "MultiHeadAttention").input) == ["x", "k", "k"]


def test_a_query_that_is_changed_between_is_joined_again(tmp_path):
    """As rotary embeddings do it."""
    query = """
        q4 = Reshape(x, apart)
        plain = Transpose<perm = [0, 2, 1, 3]>(q4)
        q = Mul(plain, angles)
    """
    proto = attention(query=query, value="v = Identity(plain)", inputs="float[batch, 1, seq, 8] angles")
    proto, _, _ = fused(proto, tmp_path)
    assert ops(proto) == ["Reshape", "Transpose", "Mul", "Transpose", "Reshape", "MultiHeadAttention", "Reshape"]


def test_ort_does_not_fuse_skip_layer_normalization(tmp_path):
    """It knows the sizes behind the operator, and would; on CPUs that costs more than the fusion gains."""
    output = f"{OUTPUT} r = Add(x, y)\n z = LayerNormalization(r, gain, gain)"
    proto = attention(output=output, outputs="float[batch, seq, 32] z", gain=np.ones(32, np.float32))
    fused(proto, tmp_path)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(tmp_path / "o.onnx", options)
    found = ops(onnx.load(tmp_path / "optimized.onnx"))
    assert "MultiHeadAttention" in found
    assert "SkipLayerNormalization" not in found


def test_heads_that_leave_apart_are_parted_again(tmp_path):
    proto = attention(output="y = Relu(o)", outputs="float[batch, 4, seq, 8] y")
    assert ops(fused(proto, tmp_path)[0]) == ["MultiHeadAttention", "Reshape", "Transpose", "Relu"]


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ([0, 0, 3, 4, 8], [2, 0, 3, 1, 4]),
        ([0, 0, 4, 3, 8], None),
    ],
)
def test_packed_projections_are_split_only_where_they_are_pieces(shape, order, tmp_path):
    """(3, heads, size) are three pieces of the last axis, (heads, 3, size) are not."""
    order = order or [3, 0, 2, 1, 4]
    query = f"""
        packed = Reshape(x, all)
        moved = Transpose<perm = {order}>(packed)
        q = Gather<axis = 0>(moved, index0)
        kh = Gather<axis = 0>(moved, index1)
        v = Gather<axis = 0>(moved, index2)
    """
    indices = {f"index{i}": np.int64(i) for i in range(3)}
    key = "kt = Transpose<perm = [0, 1, 3, 2]>(kh)"
    proto = attention(query=query, key=key, value="", width=96, **indices, all=np.array(shape))
    proto, _, _ = fused(proto, tmp_path)
    assert ("Split" in ops(proto)) == (order == [2, 0, 3, 1, 4])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"outputs": "float[batch, seq, 32] y, float[batch, 4, seq, seq] weights"}, "attention weights ('weights')"),
        ({"outputs": "float[batch, seq, 32] y, float[batch, 4, seq, seq] scaled"}, "scores ('scaled')"),
        ({"weights": "kept = Where(keep, weights, zero)", "inputs": "bool[batch, 4, seq, seq] keep"}, "go into Where"),
        ({"scores": "scores = Relu(scaled)"}, "made by Relu"),
        ({"scores": "s = Add(scaled, one)\n scores = Mul(s, half)"}, "made by Add"),
        (
            {"query": "q4 = Reshape(x, shape)\n q = Transpose<perm = [0, 2, 1, 3]>(q4)", "inputs": "int64[4] shape"},
            "head",
        ),
    ],
)
def test_what_only_looks_like_attention_stays(change, reason, tmp_path):
    assert reason in refused(attention(**change), tmp_path)


def test_attention_in_float16_stays(tmp_path):
    proto = attention(scale=np.float16(8**-0.5))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert "for float32 only" in refused(proto, tmp_path)


def test_a_classifiers_softmax_is_no_attention(tmp_path):
    proto = builders.model(
        [helper.make_node("Softmax", ["x"], ["p"]), helper.make_node("MatMul", ["p", "w"], ["y"])],
        [builders.value("x", "batch", 4)],
        [builders.value("y", "batch", 3)],
        [builders.weight("w", 4, 3)],
    )
    with pytest.raises(NoEffectError):
        optimize(builders.save(proto, tmp_path / "m.onnx"), [Fuse()])


def test_attention_in_a_branch(tmp_path):
    inner = attention()
    branch = helper.make_graph(inner.graph.node, "then", [], list(inner.graph.output))
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "else", [], [builders.value("z", "b", "s", 32)])
    choice = helper.make_node("Cast", ["number"], ["choice"], to=TensorProto.BOOL)
    proto = builders.model(
        [choice, helper.make_node("If", ["choice"], ["out"], then_branch=branch, else_branch=other)],
        [*inner.graph.input, builders.value("number", 1, dtype=TensorProto.INT64)],
        [builders.value("out", "batch", "seq", 32)],
        list(inner.graph.initializer),
    )
    proto, effect, _ = fused(proto, tmp_path)
    assert effect["patterns"]["attention"] == {"found": 1, "fused": 1}


def test_attention_at_opset_12(tmp_path):
    """Softmax then counts from a first axis on, Split and Unsqueeze have attributes."""
    proto, _, _ = fused(attention(opset=12), tmp_path)
    assert ops(proto) == ["MultiHeadAttention", "Reshape"]
    old = attention(opset=12)
    the(old, "Softmax").attribute[0].i = 1
    assert "not over the last axis" in refused(old, tmp_path)


@pytest.mark.parametrize(("batch", "seq"), [(1, 7), (3, 1), (1, 1)])
def test_fixed_sizes(batch, seq, tmp_path):
    """Axes of size 1 are nowhere in the parts of a Reshape."""
    proto = attention("scores = Add(scaled, mask)", inputs="float[batch, 1, 1, seq] mask")
    for value, axes in zip((*proto.graph.input, *proto.graph.output), ((0, 1), (0, 3), (0, 1)), strict=True):
        for axis, size in zip(axes, (batch, seq), strict=True):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    assert "Softmax" not in ops(fused(proto, tmp_path)[0])


def test_multiplications_are_counted_as_before(tmp_path):
    proto = attention()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = 7
    fused(proto, tmp_path)
    before, after = (inspect(tmp_path / name).contents for name in ("m.onnx", "o.onnx"))
    assert before.macs == after.macs == 2 * 7 * 7 * 32
    assert after.macs_unknown == 0


ERF = "d = {argument}\n e = Erf(d)\n g = Add({sum})\n"
TANH = "{inner}\n d = Mul(inner, outer)\n e = Tanh(d)\n g = Add(e, one)\n"
GATES = ["h = Mul(x, half)\n y = Mul(g, h)", "h = Mul(half, g)\n y = Mul(h, x)", "h = Mul(x, g)\n y = Div(h, two)"]
CUBES = [
    "c = Pow(x, three)\n s = Mul(c, cubic)\n inner = Add(x, s)",
    "b = Mul(x, x)\n c = Mul(b, x)\n s = Mul(cubic, c)\n inner = Add(s, x)",
    "b = Mul(x, x)\n s = Mul(cubic, b)\n a = Add(one, s)\n inner = Mul(a, x)",
]
NUMBERS = {
    "two": np.float32(2),
    "three": np.float32(3),
    "root": np.float32(2**0.5),
    "inverse": np.float32(0.5**0.5),
    "outer": np.float32((2 / np.pi) ** 0.5),
    "cubic": np.float32(0.044715),
}


def gelu(body, opset=20, **numbers):
    return graph(body, inputs="float[batch, seq, 32] x", opset=opset, **{**NUMBERS, **numbers})


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("argument", ["Div(x, root)", "Mul(inverse, x)"])
def test_gelu_with_erf(argument, gate, tmp_path):
    proto, _, _ = fused(gelu(ERF.format(argument=argument, sum="one, e") + gate), tmp_path)
    assert ops(proto) == ["Gelu"]
    assert attributes(proto.graph.node[0]) == {"approximate": b"none"}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("cube", CUBES)
def test_gelu_with_tanh(cube, gate, tmp_path):
    proto, _, _ = fused(gelu(TANH.format(inner=cube) + gate), tmp_path)
    assert ops(proto) == ["Gelu"]
    assert attributes(proto.graph.node[0]) == {"approximate": b"tanh"}


@pytest.mark.parametrize("body", [ERF.format(argument="Div(x, root)", sum="e, one"), TANH.format(inner=CUBES[2])])
def test_gelu_of_a_product(body, tmp_path):
    body = "x = Mul(u, two)\n" + body + GATES[0]
    proto = graph(body, inputs="float[batch, seq, 32] u", **NUMBERS)
    assert ops(fused(proto, tmp_path)[0]) == ["Mul", "Gelu"]


def test_powers_of_powers_end_soon(tmp_path):
    """Taken apart to the end, sixty squares would be 2^60 factors."""
    squares = "\n".join(f"p{i + 1} = Mul(p{i}, p{i})" for i in range(60))
    proto = graph(f"p0 = Identity(x)\n{squares}\n y = Erf(p60)", inputs="float[batch, seq, 32] x")
    assert "erf is not of x / sqrt 2" in refused(proto, tmp_path)


def test_gelu_before_opset_20_is_microsofts(tmp_path):
    for body, op_type in (
        (ERF.format(argument="Div(x, root)", sum="e, one"), "Gelu"),
        (TANH.format(inner=CUBES[0]), "FastGelu"),
    ):
        proto, _, _ = fused(gelu(body + GATES[0], opset=17), tmp_path)
        assert [(n.op_type, n.domain) for n in proto.graph.node] == [(op_type, "com.microsoft")]


@pytest.mark.parametrize(
    ("body", "numbers", "reason"),
    [
        (ERF.format(argument="Div(x, two)", sum="e, one") + GATES[0], {}, "erf is not of x / sqrt 2"),
        (ERF.format(argument="Div(x, root)", sum="e, two") + GATES[0], {}, "not only added to 1"),
        (
            ERF.format(argument="Div(x, root)", sum="e, one") + GATES[0],
            {"half": np.float32(0.6)},
            "multiplied by x / 2",
        ),
        (TANH.format(inner=CUBES[0]) + GATES[0], {"cubic": np.float32(0.04)}, "tanh is not of"),
        (TANH.format(inner=CUBES[0]) + GATES[0], {"three": np.float32(2)}, "tanh is not of"),
    ],
)
def test_what_only_looks_like_gelu_stays(body, numbers, reason, tmp_path):
    assert reason in refused(gelu(body, **numbers), tmp_path)


MEAN = "m = ReduceMean(x, ends)\n d = Sub(x, m)\n"
SQUARES = ["q = Mul(d, d)\n", "q = Pow(d, two)\n", "d2 = Sub(x, m)\n q = Mul(d2, d2)\n"]
ROOT = "s = ReduceMean(q, ends)\n a = Add(s, tiny)\n r = Sqrt(a)\n"
QUOTIENTS = ["n = Div(d, r)\n", "i = Reciprocal(r)\n n = Mul(i, d)\n", "i = Div(one, r)\n n = Mul(d, i)\n"]
AFFINE = "w = Mul(n, gain)\n y = Add(shift, w)"


def norm(body, opset=18, inputs="float[batch, seq, 32] x", **numbers):
    vectors = {"gain": np.linspace(0.5, 2, 32, dtype=np.float32), "shift": np.linspace(-1, 1, 32, dtype=np.float32)}
    values = {**NUMBERS, **vectors, "tiny": np.float32(1e-3), **numbers}
    return graph(body, inputs=inputs, opset=opset, **values)


@pytest.mark.parametrize("quotient", QUOTIENTS)
@pytest.mark.parametrize("square", SQUARES)
def test_layer_normalization(square, quotient, tmp_path):
    proto, _, _ = fused(norm(MEAN + square + ROOT + quotient + AFFINE), tmp_path)
    assert ops(proto) == ["LayerNormalization"]
    assert attributes(proto.graph.node[0])["epsilon"] == pytest.approx(1e-3)


def test_layer_normalization_at_opset_17_has_axes_as_attributes(tmp_path):
    body = (MEAN + SQUARES[0] + ROOT + QUOTIENTS[0] + AFFINE).replace("ReduceMean(", "ReduceMean<axes = [-1]>(")
    assert ops(fused(norm(body.replace(", ends)", ")"), opset=17), tmp_path)[0]) == ["LayerNormalization"]
    assert "raise it to 17" in refused(norm(body.replace(", ends)", ")"), opset=13), tmp_path)


@pytest.mark.parametrize(
    ("affine", "left"),
    [
        ("w = Mul(n, gain)\n y = Add(w, x)", ["Add"]),
        ("y = Mul(n, x)", ["Mul"]),
        ("w = Mul(n, two)\n y = Add(w, shift)", ["Mul", "Add"]),
        ("y = Add(n, shift)", []),
    ],
)
def test_only_stored_vectors_are_scale_and_bias(affine, left, tmp_path):
    """A residual looks just like a bias."""
    proto, _, _ = fused(norm(MEAN + SQUARES[0] + ROOT + QUOTIENTS[0] + affine), tmp_path)
    assert ops(proto) == ["LayerNormalization", *left]


@pytest.mark.parametrize(
    ("body", "numbers", "reason"),
    [
        (MEAN + SQUARES[0] + ROOT + "n = Div(x, r)\n" + AFFINE, {}, "not divided by the standard deviation"),
        (MEAN + SQUARES[0] + ROOT + QUOTIENTS[0] + AFFINE, {"ends": np.array([1])}, "not over the last axis"),
        (
            MEAN.replace("Sub(x, m)", "Sub(m, x)") + SQUARES[0] + ROOT + QUOTIENTS[0] + AFFINE,
            {},
            "its mean is not found",
        ),
    ],
)
def test_what_only_looks_like_layer_normalization_stays(body, numbers, reason, tmp_path):
    assert reason in refused(norm(body, **numbers), tmp_path)
