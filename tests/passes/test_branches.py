"""Which parts of a graph are residual branches, and which runs of them are layers."""

from __future__ import annotations

import builders
import pytest
from block_graphs import parsed, transformer
from onnx import TensorProto, helper

from onnxcomp.model import load
from onnxcomp.passes.prune.residual.branches import Branches

MATRIX = {"w": (8, 8), "v": (8, 8)}


def found(proto, tmp_path):
    return Branches(load(builders.save(proto, tmp_path / "m.onnx")))


def ends(blocks):
    return [(block.source, *block.targets) for block in blocks]


@pytest.mark.parametrize(
    ("normalized", "branches", "layers"),
    [
        ("plain", [("x", "sa0"), ("sa0", "sf0"), ("sf0", "sa1"), ("sa1", "sf1")], [("x", "sf0"), ("sf0", "sf1")]),
        ("pre", [("x", "sa0"), ("sa0", "sf0"), ("sf0", "sa1"), ("sa1", "sf1")], [("x", "sf0"), ("sf0", "sf1")]),
        (
            "post",
            [("x", "sa0", "na0"), ("na0", "sf0", "nf0"), ("nf0", "sa1", "na1"), ("na1", "sf1", "nf1")],
            [("x", "sf0", "nf0"), ("nf0", "sf1", "nf1")],
        ),
    ],
)
def test_layers_of_transformers(normalized, branches, layers, tmp_path):
    it = found(transformer(2, normalized=normalized), tmp_path)
    assert ends(it.branches()) == branches
    assert ends(it.layers()) == layers
    assert it.refused == []
    assert [len(block.heavy) for block in it.layers()] == [4, 4]


def test_normalization_in_pieces_goes_with_the_sum(tmp_path):
    proto = parsed(
        """(float[N,8] x) => (float[N,8] y) {
            a = MatMul (x, w)
            s = Add (a, x)
            m = ReduceMean <axes=[-1]> (s)
            c = Sub (s, m)
            q = Mul (c, c)
            p = ReduceMean <axes=[-1]> (q)
            r = Sqrt (p)
            n = Div (c, r)
            y = MatMul (n, v)
        }""",
        **MATRIX,
    )
    assert ends(found(proto, tmp_path).branches()) == [("x", "s", "n")]


def test_a_mask_behind_the_sum_stays(tmp_path):
    proto = parsed(
        """(float[N,8] x, float[N,8] mask) => (float[N,8] y) {
            a = MatMul (x, w)
            s = Add (x, a)
            r = Relu (s)
            k = Mul (r, mask)
            y = MatMul (k, v)
        }""",
        **MATRIX,
    )
    assert ends(found(proto, tmp_path).branches()) == [("x", "s", "r")]


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ("a = MatMul (x, w)\nb = MatMul (x, v)\ny = Add (a, b)", ["none is the value"]),
        ("a = MatMul (x, w)\ny = Add (a, bias)", []),
        ("a = Relu (x)\ny = Add (a, x)", []),
        ("a = MatMul (x, w)\nm = ReduceMax <axes=[1]> (a)\ny = Add (a, m)", []),
        ("a = MatMul (x, w)\nc = NonZero (a)\nd = Cast <to=1> (c)\ne = Add (d, d)\ny = MatMul (x, v)", []),
    ],
)
def test_what_is_none(body, reasons, tmp_path):
    proto = parsed(f"(float[N,8] x) => (float[N,8] y) {{ {body} }}", **MATRIX, bias=(8,))
    it = found(proto, tmp_path)
    assert it.branches() == it.layers() == []
    assert [next((r for r in reasons if r in reason), reason) for _, reason in it.refused] == reasons


def test_sizes_that_are_not_known_are_refused(tmp_path):
    proto = parsed(
        """(float[N,8] x, int64[2] shape) => (float[A,B] y) {
            a = MatMul (x, w)
            b = Reshape (a, shape)
            y = Add (b, x)
        }""",
        **MATRIX,
    )
    it = found(proto, tmp_path)
    assert it.branches() == []
    assert [(node, "size is not known" in reason) for node, reason in it.refused] == [("Add_2", True)]


def test_what_others_use_stays(tmp_path):
    """The branch's weights serve another output too: nothing would be gained."""
    proto = parsed(
        """(float[N,8] x) => (float[N,8] y, float[N,8] a) {
            a = MatMul (x, w)
            y = Add (a, x)
        }""",
        **MATRIX,
    )
    assert found(proto, tmp_path).branches() == []


def test_sums_in_subgraphs_are_said(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["x", "t"], ["u"])],
        "then", [], [builders.value("u", 2, 8)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["v"])], "else", [], [builders.value("v", 2, 8)]
    )  # fmt: skip
    proto = builders.model(
        [helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)],
        [builders.value("x", 2, 8), builders.value("flag", dtype=TensorProto.BOOL)],
        [builders.value("y", 2, 8)],
        [builders.weight("w", 8, 8)],
    )
    it = found(proto, tmp_path)
    assert it.branches() == []
    assert ["subgraphs" in reason for _, reason in it.refused] == [True]


def test_what_a_subgraph_reads_is_used(tmp_path):
    """A body of If reads the branch: it does not go away with the sum."""
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["t"])], "then", [], [builders.value("t", "n", 8)])
    other = helper.make_graph([helper.make_node("Identity", ["y"], ["u"])], "else", [], [builders.value("u", "n", 8)])
    proto = builders.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="mm"),
            helper.make_node("Add", ["x", "a"], ["y"], name="sum"),
            helper.make_node("If", ["flag"], ["z"], name="if", then_branch=body, else_branch=other),
        ],
        [builders.value("x", "n", 8), builders.value("flag", dtype=TensorProto.BOOL)],
        [builders.value("z", "n", 8)],
        [builders.weight("w", 8, 8)],
    )
    assert found(proto, tmp_path).branches() == []


def test_layers_that_do_not_repeat_are_branches(tmp_path):
    proto = transformer(1, normalized="pre")
    it = found(proto, tmp_path)
    assert ends(it.layers()) == ends(it.branches()) == [("x", "sa0"), ("sa0", "sf0")]


def test_an_outer_residual_holds_inner_ones(tmp_path):
    proto = parsed(
        """(float[N,8] x) => (float[N,8] y) {
            a = MatMul (x, w)
            s = Add (x, a)
            b = MatMul (s, v)
            t = Add (s, b)
            y = Add (x, t)
        }""",
        **MATRIX,
    )
    assert sorted(ends(found(proto, tmp_path).layers())) == [("s", "t"), ("x", "s"), ("x", "y")]
