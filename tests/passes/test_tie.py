"""`tie-initializers`: what becomes one tensor, what does not, and what a reader of a transpose becomes."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import NoEffectError
from onnxcomp.model import load
from onnxcomp.passes import CastFloat, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Simplify, TieInitializers
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.runtime import check_loads

W = np.random.default_rng(7).standard_normal((8, 8)).astype(np.float32)


def held(array: np.ndarray, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def tied(proto: onnx.ModelProto, folder, **options):
    """(effect, notes, the model) of a file that was tied and is equal, as the pipeline proves."""
    source = builders.save(proto, folder / "in.onnx")
    record = optimize_file(source, folder / "out.onnx", [TieInitializers()], **options)
    assert record.equivalence is not None
    assert record.equivalence <= 1e-5
    step = record.passes[0]
    return step.effect, [note.reason for note in step.notes], load(folder / "out.onnx")


def refuses(proto: onnx.ModelProto, folder) -> None:
    with pytest.raises(NoEffectError):
        tied(proto, folder)


def products(*initializers: onnx.TensorProto, rank: int = 2, opset: int = 17) -> onnx.ModelProto:
    """x @ each of the 8 by 8 matrices, added."""
    names = [tensor.name for tensor in initializers]
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=f"mm_{name}") for name in names]
    nodes.append(helper.make_node("Sum", [f"y_{name}" for name in names], ["y"]))
    shape = ["n", *([3] * (rank - 2)), 8]
    face = [builders.value("x", *shape)], [builders.value("y", *shape)]
    return builders.model(nodes, *face, list(initializers), opset=opset)


def test_equal_tensors_become_one(tmp_path):
    proto = products(held(W, "a"), held(W, "b"), held(2 * W, "c"), held(W, "d"))
    effect, notes, model = tied(proto, tmp_path)
    assert effect["groups"] == [{"kept": "a", "removed": ["b", "d"], "bytes": 512}]
    assert effect["bytes_saved"] == 512
    assert sorted(model.graph.initializers) == ["a", "c"]
    assert any("a session takes as much memory as before" in note for note in notes)
    with pytest.raises(NoEffectError):
        optimize(model, [TieInitializers()])


def test_only_what_is_equal_to_the_bit(tmp_path):
    zero = np.zeros((8, 8), np.float32)
    minus = np.full((8, 8), -0.0, np.float32)
    refuses(products(held(zero, "a"), held(minus, "b"), held(zero.reshape(8, 8) + 1, "c")), tmp_path)
    nan = np.full((8, 8), np.nan, np.float32)
    assert (
        len(
            optimize(
                ir.from_proto(products(held(nan, "a"), held(nan, "b"))), [TieInitializers()]
            ).model.graph.initializers
        )
        == 1
    )


def test_a_hit_of_the_hash_is_compared(monkeypatch):
    monkeypatch.setattr("onnxcomp.passes.share.contents._digest", lambda tensor, *, turned=False: b"")
    with pytest.raises(NoEffectError):
        optimize(ir.from_proto(products(held(W, "a"), held(2 * W, "b"))), [TieInitializers()])


def test_types_and_shapes_must_agree(tmp_path):
    ones = [
        held(np.zeros(4, np.float32), "a"),
        held(np.zeros((2, 2), np.float32), "b"),
        held(np.zeros(4, np.int32), "c"),
        held(np.zeros(4, np.float32), "d"),
    ]
    nodes = [helper.make_node("Identity", [tensor.name], [f"y{i}"]) for i, tensor in enumerate(ones)]
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    nodes.append(helper.make_node("Add", ["y0", "y3"], ["z"]))
    outputs = [builders.value("y", 1), builders.value("z", 4)]
    effect, _, _ = tied(builders.model(nodes, [builders.value("x", 1)], outputs, ones), tmp_path)
    assert [group["removed"] for group in effect["groups"]] == [["d"]]


def test_outputs_and_overridable_initializers_stay(tmp_path):
    proto = products(held(W, "a"), held(W, "b"))
    proto.graph.input.append(builders.value("b", 8, 8))
    refuses(proto, tmp_path)
    proto = products(held(W, "a"), held(W, "b"))
    proto.graph.output.append(builders.value("a", 8, 8))
    refuses(proto, tmp_path)


def test_ir_3_lists_what_no_caller_overrides(tmp_path):
    effect, _, model = tied(builders.as_old(products(held(W, "a"), held(W, "b"), opset=7)), tmp_path)
    assert effect["tied"] == 1
    assert [value.name for value in model.graph.inputs] == ["x", "a"]


def test_subgraphs_read_from_outside(tmp_path):
    proto = builders.branch()
    other = next(a for a in proto.graph.node[0].attribute if a.name == "else_branch").g
    other.initializer[0].CopyFrom(held(numpy_helper.to_array(proto.graph.initializer[0]), "inner"))
    effect, _, model = tied(proto, tmp_path)
    assert effect["groups"] == [{"kept": "outer", "removed": ["inner"], "bytes": 256}]
    assert [list(graph.initializers) for graph in model.graphs()] == [["outer"], [], []]


def test_two_branches_share_what_neither_gave_out(tmp_path):
    proto = builders.branch()
    then, other = (
        next(a for a in proto.graph.node[0].attribute if a.name == f"{n}_branch").g for n in ("then", "else")
    )
    own = numpy_helper.to_array(other.initializer[0])
    then.initializer.append(held(own, "mine"))
    then.node[0].input[1] = "mine"
    effect, _, model = tied(proto, tmp_path)
    assert effect["groups"] == [{"kept": "inner", "removed": ["mine"], "bytes": 256}]
    assert [list(graph.initializers) for graph in model.graphs()] == [["inner"], [], []]


def test_a_name_that_a_subgraph_hides(tmp_path):
    """The else branch has a value of its own called 'outer'; what it reads from outside must be called otherwise."""
    proto = builders.branch()
    other = next(a for a in proto.graph.node[0].attribute if a.name == "else_branch").g
    outer = numpy_helper.to_array(proto.graph.initializer[0])
    hidden = helper.make_node("Constant", [], ["outer"], value=held(3 * outer, ""))
    other.initializer[0].CopyFrom(held(outer, "inner"))
    other.node.insert(0, hidden)
    other.node[1].output[0] = "first"
    other.node.append(helper.make_node("MatMul", ["first", "outer"], ["o"]))
    model = optimize(ir.from_proto(proto), [TieInitializers()]).model
    assert list(model.graph.initializers) == ["outer_"]
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    ir.save(model, tmp_path / "m.onnx")
    import onnxruntime as ort

    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x, "flag": np.array(False)})[0]
    np.testing.assert_allclose(found, x @ outer @ (3 * outer), rtol=1e-4)


def test_constant_nodes_are_tensors_too(tmp_path):
    proto = products(held(W, "a"))
    constant = helper.make_node("Constant", [], ["c"], value=held(W, "any"))
    proto.graph.node.insert(0, constant)
    proto.graph.node[2].input.append("y_c")
    proto.graph.node.insert(2, helper.make_node("MatMul", ["x", "c"], ["y_c"]))
    before = proto.SerializeToString()
    source = ir.from_proto(proto)
    again = ir.to_proto(source).SerializeToString(deterministic=True)
    done = optimize(source, [TieInitializers()])
    assert done.passes[0].effect["groups"] == [{"kept": "a", "removed": ["c"], "bytes": 256}]
    assert "Constant" not in {node.op_type for node in done.model.graph}
    assert ir.to_proto(source).SerializeToString(deterministic=True) == again
    assert proto.SerializeToString() == before


def test_what_functions_store_stays_with_a_note(tmp_path):
    from onnx import FunctionProto

    inner = FunctionProto(name="times", domain="local", input=["a"], output=["b"])
    inner.opset_import.append(helper.make_opsetid("", 17))
    inner.node.append(helper.make_node("Constant", [], ["c"], value=held(W, "")))
    inner.node.append(helper.make_node("MatMul", ["a", "c"], ["b"]))
    nodes = [
        helper.make_node("times", ["x"], ["h"], domain="local"),
        helper.make_node("MatMul", ["h", "a"], ["i"]),
        helper.make_node("MatMul", ["i", "b"], ["y"]),
    ]
    face = [builders.value("x", "n", 8)], [builders.value("y", "n", 8)]
    proto = builders.model(nodes, *face, [held(W, "a"), held(W, "b")], functions=[inner])
    effect, notes, _ = tied(proto, tmp_path)
    assert effect["tied"] == 1
    assert any("local functions" in note for note in notes)


def test_strings(tmp_path):
    words = helper.make_tensor("a", TensorProto.STRING, [2], [b"a", b"bc"])
    nodes = [helper.make_node("Identity", [name], [f"y_{name}"]) for name in "abc"]
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    nodes.append(helper.make_node("Concat", ["y_a", "y_b", "y_c"], ["z"], axis=0))
    parts = [words, helper.make_tensor("b", TensorProto.STRING, [2], [b"ab", b"c"])]
    parts.append(helper.make_tensor("c", TensorProto.STRING, [2], [b"a", b"bc"]))
    outputs = [builders.value("y", 1), builders.value("z", 6, dtype=TensorProto.STRING)]
    done = optimize(ir.from_proto(builders.model(nodes, [builders.value("x", 1)], outputs, parts)), [TieInitializers()])
    assert done.passes[0].effect["groups"] == [
        {"kept": "a", "removed": ["c"], "bytes": done.passes[0].effect["bytes_saved"]}
    ]


R = np.random.default_rng(8).standard_normal((8, 5)).astype(np.float32)


def head(rank: int, node: onnx.NodeProto, *, opset: int = 17) -> onnx.ModelProto:
    """ids -> rows of a table (8, 5), more of them the higher the rank -> a node that reads the table turned, `t`."""
    shape = ["n", *([3] * (rank - 2))]
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"), node]
    face = [builders.value("ids", *shape, dtype=TensorProto.INT64)], [builders.value("y", *shape, 8)]
    return builders.model(nodes, *face, [held(R, "table"), held(R.T, "t")], opset=opset)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_tied_output_layer(rank, tmp_path):
    proto = head(rank, helper.make_node("MatMul", ["e", "t"], ["y"], name="head"))
    effect, _, model = tied(proto, tmp_path)
    assert effect["transposed"] == [{"kept": "table", "removed": ["t"], "bytes": 160}]
    assert [node.op_type for node in model.graph] == ["Transpose", "Gather", "MatMul"]
    with pytest.raises(NoEffectError):
        optimize(model, [TieInitializers()])


@pytest.mark.parametrize(
    ("steps", "least"),
    [([QuantizeDynamic()], 0.3), ([QuantizeStatic()], 0.3), ([QuantizeWeights(bits=8)], 0.6), ([CastFloat()], 0.51)],
)
def test_what_is_tied_can_still_be_quantized(steps, least, tmp_path):
    """Table and output layer among it; blocks of 8 bits hold the table once for each way of reading it."""
    table = np.random.default_rng(3).standard_normal((900, 64)).astype(np.float32)
    inner = np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("MatMul", ["e", "w"], ["h"], name="inner"),
        helper.make_node("MatMul", ["h", "t"], ["y"], name="head"),
    ]
    face = [builders.value("ids", "n", 6, dtype=TensorProto.INT64)], [builders.value("y", "n", 6, 900)]
    proto = builders.model(nodes, *face, [held(table, "table"), held(inner, "w"), held(table.T, "t")])
    tied(proto, tmp_path)
    ids = np.random.default_rng(5).integers(0, 900, (48, 6))
    record = optimize_file(tmp_path / "out.onnx", tmp_path / "q.onnx", steps, data={"ids": ids})
    effect = record.passes[0].effect
    assert effect.get("quantized_weights") == effect.get("total_weights")
    assert not effect.get("skipped")
    assert record.size_ratio < least
    check_loads(tmp_path / "q.onnx")


def test_a_gemm_turns_its_flag(tmp_path):
    node = helper.make_node("Gemm", ["e", "t"], ["y"], alpha=0.5)
    effect, _, model = tied(head(2, node), tmp_path)
    assert effect["tied"] == 1
    assert model.graph[1].attributes.get_int("transB") == 1
    assert model.graph[1].attributes.get_float("alpha") == 0.5


def test_the_first_factor(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["w", "x"], ["h"]),
        helper.make_node("MatMul", ["t", "h"], ["y"]),
    ]
    face = [builders.value("x", 5, "n")], [builders.value("y", 5, "n")]
    _, _, model = tied(builders.model(nodes, *face, [held(R, "w"), held(R.T, "t")]), tmp_path)
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "MatMul"]
    assert len(model.graph.initializers) == 1


def test_a_transpose_of_the_copy_goes(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Transpose", ["t"], ["again"]),
        helper.make_node("Gather", ["again", "ids"], ["f"]),
        helper.make_node("Add", ["e", "f"], ["y"]),
    ]
    face = [builders.value("ids", "n", dtype=TensorProto.INT64)], [builders.value("y", "n", 5)]
    _, _, model = tied(builders.model(nodes, *face, [held(R, "table"), held(R.T, "t")]), tmp_path)
    assert "Transpose" not in {node.op_type for node in model.graph}


def test_readers_that_cannot_are_named(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="rows"),
        helper.make_node("Gather", ["t", "ids"], ["f"], name="columns"),
        helper.make_node("Concat", ["e", "f"], ["y"], axis=1),
    ]
    face = [builders.value("ids", "n", dtype=TensorProto.INT64)], [builders.value("y", "n", 13)]
    proto = builders.model(nodes, *face, [held(R, "table"), held(R.T, "t")])
    done = optimize(ir.from_proto(proto), [TieInitializers()], allow_no_effect=True)
    (why,) = done.passes[0].effect["refused"]
    assert why == {
        "node": "columns",
        "reason": "'t' is a transpose of another: Gather can read it only as it is stored",
    }


def test_no_transpose_is_written_where_a_flag_does(tmp_path):
    """The one that a Gemm reads goes, whichever comes first."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    for order in (1, -1):
        stored = [held(R.T, "w"), held(R, "t")][::order]
        face = [builders.value("x", "n", 5)], [builders.value("y", "n", 5)]
        _, _, model = tied(builders.model(nodes, *face, stored), tmp_path, force=True)
        assert [node.op_type for node in model.graph] == ["Gemm", "MatMul"]
        assert list(model.graph.initializers) == ["t"]


def test_a_product_of_integers_stays(tmp_path):
    whole = np.arange(40, dtype=np.int32).reshape(8, 5)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "t"], ["y"])]
    face = (
        [builders.value("x", "n", 8, dtype=TensorProto.INT32)],
        [builders.value("y", "n", 8, dtype=TensorProto.INT32)],
    )
    proto = builders.model(nodes, *face, [held(whole, "w"), held(whole.T, "t")])
    refuses(proto, tmp_path)


def test_external_data_stays_mapped_and_comes_out_the_same(tmp_path):
    from unittest import mock

    big = np.random.default_rng(1).standard_normal((600, 500)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "t"], ["i"])]
    nodes.append(helper.make_node("MatMul", ["i", "b"], ["y"]))
    face = [builders.value("x", "n", 600)], [builders.value("y", "n", 500)]
    proto = builders.model(nodes, *face, [held(big, "a"), held(big.T, "t"), held(big, "b")])
    folder = tmp_path / "in"
    folder.mkdir()
    source = builders.externalize(proto, folder)
    with mock.patch("onnxcomp.passes.share.contents._PIECE", 1 << 12):
        record = optimize_file(source, tmp_path / "a.onnx", [TieInitializers()])
    assert record.passes[0].effect["bytes_saved"] == 2 * big.nbytes
    assert record.size_ratio < 0.4
    optimize_file(source, tmp_path / "b.onnx", [TieInitializers()])
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    check_loads(tmp_path / "a.onnx")


def test_real_models(shared, tmp_path):
    """What `inspect` counts as tied goes, from Constant nodes of TensorFlow too."""
    from onnxcomp.inspect import inspect

    before = inspect(shared / "models" / "silero_vad_16k_op15.onnx").contents
    assert before.tied
    record = optimize_file(shared / "models" / "silero_vad_16k_op15.onnx", tmp_path / "a.onnx", [TieInitializers()])
    after = inspect(tmp_path / "a.onnx").contents
    assert after.tied < before.tied
    assert before.initializer_bytes - after.initializer_bytes == record.passes[0].effect["bytes_saved"]
    source = shared / "models" / "tribuo_tinybert.onnx"
    with pytest.raises(NoEffectError):
        optimize(optimize(source, [Simplify()]).model, [TieInitializers()])
