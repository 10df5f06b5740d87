"""Low rank: the best factors of their rank on the data, for every way of reading a weight; refusals have reasons."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import builders
import numpy as np
import onnx
import onnx_ir as ir
import prune_graphs
import pytest
import real_data
from conftest import ROOT

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import GateError, NoEffectError, UnsupportedError, UsageError
from onnxcomp.inspect import MODULE
from onnxcomp.model import load, signature
from onnxcomp.passes import LowRank, QuantizeDynamic
from onnxcomp.passes.share import ranks
from onnxcomp.passes.share.inputs import shrunk
from onnxcomp.passes.share.matrices import find
from onnxcomp.passes.share.truncation import Truncation, factors
from onnxcomp.pipeline import optimize, optimize_file, save

RNG = np.random.default_rng(3)

#: name -> (graph in ONNX's text form, weights by shape, shape of a sample); each computes y from x by `w`
GRAPHS = {
    "matmul": ("(float[N,24] x) => (float[N,20] y) { y = MatMul (x, w) }", {"w": (24, 20)}, (24,)),
    "matmul, wide, with a bias": (
        "(float[N,5,16] x) => (float[N,5,40] y) { a = MatMul (x, w) y = Add (b, a) }",
        {"w": (16, 40), "b": (40,)},
        (5, 16),
    ),
    "gemm": (
        "(float[N,24] x) => (float[N,20] y) { y = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b) }",
        {"w": (20, 24), "b": (20,)},
        (24,),
    ),
    "gemm without bias": (
        "(float[N,24] x) => (float[N,20] y) { y = Gemm <alpha=2.0, beta=0.5> (x, w) }",
        {"w": (24, 20)},
        (24,),
    ),
    "transposed": (
        "(float[N,24] x) => (float[N,20] y) { t = Transpose <perm=[1,0]> (w) y = MatMul (x, t) }",
        {"w": (20, 24)},
        (24,),
    ),
    "constant": (
        "(float[N,24] x) => (float[N,20] y) { w = Constant <value=float[24,20] {VALUES}> () y = MatMul (x, w) }",
        {},
        (24,),
    ),
    "conv 1x1": (
        "(float[N,64,3,3] x) => (float[N,80,2,2] y) { y = Conv <strides=[2,2]> (x, w, b) }",
        {"w": (80, 64, 1, 1), "b": (80,)},
        (64, 3, 3),
    ),
    "conv 3x3 without bias": (
        "(float[N,8,5,5] x) => (float[N,80,5,5] y) { y = Conv <pads=[1,1,1,1], kernel_shape=[3,3]> (x, w) }",
        {"w": (80, 8, 3, 3)},
        (8, 5, 5),
    ),
}


def graph(name: str) -> onnx.ModelProto:
    text, values, _ = GRAPHS[name]
    if "VALUES" in text:
        numbers = ",".join(f"{n:.4f}" for n in RNG.normal(size=24 * 20))
        text = text.replace("VALUES", numbers)
    return prune_graphs.build(text, values)


def inputs(shape, count=60):
    """Correlated, and not about zero."""
    width = shape[-1] if len(shape) < 3 else shape[0]
    mix = RNG.normal(size=(width, width)) * np.exp(-np.arange(width) / 4)
    rows = RNG.normal(size=(count, *shape[: len(shape) - 1], width)) if len(shape) < 3 else None
    if rows is not None:
        return (rows @ mix.T + 1).astype(np.float32)
    maps = RNG.normal(size=(count, width, *shape[1:]))
    return (np.einsum("ij,njhw->nihw", mix, maps) + 1).astype(np.float32)


def outputs(model: ir.Model, feeds, folder, name="m.onnx"):
    path = folder / name
    save(model, path, force=True)
    return next(iter(runtime.open_session(path).run(feeds).values())).astype(np.float64)


def lowered(proto, x, tmp_path, **options):
    """(whole model, factored model, effect, notes)."""
    model = load(builders.save(proto, tmp_path / "whole.onnx"))
    feeds = {"x": x}
    done = optimize(model, [LowRank(**options)], data=Batches(feeds, signature(model).inputs))
    return model, done.model, done.passes[0].effect, done.passes[0].notes


@pytest.fixture
def all_fitted(monkeypatch):
    """No sample is held out, so that factors are the best for all."""
    monkeypatch.setattr("onnxcomp.passes.share.held_out._FEWEST", 1 << 20)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_other_factors_of_the_rank_are_nearer(name, all_fitted, tmp_path):
    """Against numpy's SVD of R W about the mean, and against random changes of the factors that were written."""
    proto, x = graph(name), inputs(GRAPHS[name][2], 1500)
    block = 16 if "conv" in name else 1
    model, low, effect, _ = lowered(proto, x, tmp_path, rank=max(block, 6))
    (entry,) = effect["factored"]
    assert entry["rank"] in (6, 16, 8, 12)
    whole, got = outputs(model, {"x": x}, tmp_path), outputs(low, {"x": x}, tmp_path)
    rows = [
        a.reshape(-1, a.shape[-1]) if a.ndim < 4 else np.moveaxis(a, 1, -1).reshape(-1, a.shape[1])
        for a in (whole, got)
    ]
    biased = name not in ("matmul", "transposed", "constant")
    centred = rows[0] - rows[0].mean(0) * biased
    if "conv" not in name and not biased:
        assert np.abs(rows[1] - rows[0]).max() > 1e-3
    sizes = np.linalg.svd(centred, compute_uv=False)  # no rank r map of x gives outputs nearer than rank r itself
    least = np.sum(sizes[entry["rank"] :] ** 2)
    error = np.sum((rows[1] - rows[0]) ** 2)
    assert least * (1 - 1e-3) <= error <= least * 1.02 + 1e-5 * np.sum(centred**2)
    assert entry["energy"] == pytest.approx(1 - least / np.sum(centred**2), abs=2e-3)
    if biased:
        np.testing.assert_allclose(rows[1].mean(0), rows[0].mean(0), atol=1e-4 * np.abs(rows[0]).max())
    for value in low.graph.initializers.values():
        if not value.name.endswith(("_left", "_right")):
            continue
        old = value.const_value
        change = RNG.normal(size=old.numpy().shape) * np.abs(old.numpy()).mean() * 1e-2
        for sign in (1, -1):
            value.const_value = ir.Tensor((old.numpy() + sign * change).astype(np.float32), name=old.name)
            other = outputs(low, {"x": x}, tmp_path)
            assert np.sum((other - whole) ** 2) > np.sum((got - whole) ** 2)
        value.const_value = old


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
@pytest.mark.parametrize("seen", ["full", "deficient", "zero", "none"])
def test_all_directions_give_the_weight_back(shape, seen):
    weight, x = RNG.normal(size=shape), RNG.normal(size=(200, shape[0]))
    if seen == "deficient":
        x[:, 3:] = x[:, :1] @ RNG.normal(size=(1, shape[0] - 3))
    gram = {"zero": np.zeros((shape[0],) * 2), "none": None}.get(seen, x.T @ x)
    truncation = Truncation.of(weight, gram)
    left, right = factors(weight, truncation.right)
    np.testing.assert_allclose(left @ right, weight, atol=1e-7)
    np.testing.assert_allclose(truncation.right @ truncation.right.T, np.eye(len(truncation.right)), atol=1e-6)
    assert np.all(np.diff(truncation.energies) <= 1e-9 * truncation.energies[0])
    if seen in ("none", "zero"):
        np.testing.assert_allclose(np.sqrt(truncation.energies), np.linalg.svd(weight, compute_uv=False), rtol=2e-3)
    if seen == "deficient":  # what was seen spans 3 dimensions, and 3 directions keep all of it
        left, right = factors(weight, truncation.right[:3])
        np.testing.assert_allclose(x @ left @ right, x @ weight, atol=2e-2 * np.abs(x @ weight).max())


def test_a_weight_of_low_rank_loses_nothing(tmp_path):
    proto, x = graph("gemm"), inputs((24,))
    exact = (RNG.normal(size=(20, 5)) @ RNG.normal(size=(5, 24))).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(exact, "w"))
    model, low, effect, _ = lowered(proto, x, tmp_path, rank=7)
    (entry,) = effect["factored"]
    assert entry["energy"] == pytest.approx(1)
    fresh = {"x": RNG.normal(size=(9, 24)).astype(np.float32)}
    np.testing.assert_allclose(outputs(low, fresh, tmp_path), outputs(model, fresh, tmp_path), rtol=1e-3, atol=1e-3)


def test_nodes_that_read_one_weight_share_factors(all_fitted, tmp_path):
    text = """(float[N,24] x, float[N,24] z) => (float[N,24] y, float[N,24] v) {
        y = MatMul (x, w)
        v = MatMul (z, w)
    }"""
    model = load(builders.save(prune_graphs.build(text, {"w": (24, 24)}), tmp_path / "m.onnx"))
    feeds = {"x": inputs((24,), 900), "z": inputs((24,), 900)}
    done = optimize(model, [LowRank(rank=8)], data=Batches(feeds, signature(model).inputs))
    assert [v.name for v in done.model.graph.initializers.values()] == ["w_left", "w_right"]
    both = (
        np.concatenate([feeds["x"], feeds["z"]]).astype(np.float64) @ model.graph.initializers["w"].const_value.numpy()
    )
    left, right = (done.model.graph.initializers[n].const_value.numpy() for n in ("w_left", "w_right"))
    error = np.sum((np.concatenate([feeds["x"], feeds["z"]]) @ left @ right - both) ** 2)
    assert error <= 1.02 * np.sum(np.linalg.svd(both, compute_uv=False)[8:] ** 2)


def test_what_multiplies_one_tensor_shares_the_first_factor(tmp_path):
    text = """(float[N,32] x) => (float[N,32] q, float[N,32] k, float[N,32] v) {
        a = MatMul (x, wq)
        q = Add (a, bq)
        k = Gemm <transB=1> (x, wk)
        v = MatMul (x, wv)
    }"""
    values = {"wq": (32, 32), "bq": (32,), "wk": (32, 32), "wv": (32, 32)}
    _, low, effect, _ = lowered(prune_graphs.build(text, values), inputs((32,)), tmp_path, rank=12)
    (entry,) = effect["factored"]
    assert len(entry["nodes"]) == 3
    names = [v.name for v in low.graph.initializers.values() if v.name != "bq"]
    assert sorted(names) == ["wk_right", "wq_left", "wq_right", "wv_right"]
    assert [n.op_type for n in low.graph] == ["MatMul", "MatMul", "Add", "Gemm", "MatMul"]
    assert effect["removed_parameters"] == 3 * 32 * 32 - 12 * 4 * 32


@pytest.mark.parametrize(
    ("text", "values", "reason"),
    [
        ("(float[N,24] x) => (float[20,N] y) { t = Transpose (x) y = MatMul (w, t) }", {"w": (20, 24)}, "columns"),
        ("(float[24,N] x) => (float[N,20] y) { y = Gemm <transA=1> (x, w) }", {"w": (24, 20)}, "columns"),
        ("(float[3,N,24] x) => (float[3,N,20] y) { y = MatMul (x, w) }", {"w": (3, 24, 20)}, "two axes"),
        ("(float[N,24] x) => (float[N,20] y) { s = Softmax (w) y = MatMul (x, s) }", {"w": (24, 20)}, None),
        ("(float[N,64,2,2] x) => (float[N,64,2,2] y) { y = Conv <group=2> (x, w) }", {"w": (64, 32, 1, 1)}, "grouped"),
        ("(float[N,2] x) => (float[N,2] y) { y = MatMul (x, w) }", {"w": (2, 2)}, "too small"),
        (
            "(float[N,24] x) => (float[N,24] y) { a = MatMul (x, w) t = Transpose <perm=[1,0]> (w) y = MatMul (a, t) }",
            {"w": (24, 24)},
            "another way",
        ),
        (
            "(float[N,24] x, int64[N] i) => (float[N,24] y) { a = Gather (w, i) b = MatMul (x, w) y = Add (a, b) }",
            {"w": (24, 24)},
            "another way",
        ),
    ],
)
def test_what_cannot_be_factored_has_a_reason(text, values, reason, tmp_path):
    model = load(builders.save(prune_graphs.build(text, values), tmp_path / "m.onnx"))
    with pytest.raises(NoEffectError):
        optimize(model, [LowRank()])
    families, skipped = find(model, set())
    reasons = [why for _, why in skipped] or ["too small"] * len(families)
    assert any(reason in why for why in reasons) if reason else not families


def test_subgraphs_stay_whole(tmp_path):
    model = load(builders.save(builders.branch(), tmp_path / "m.onnx"))
    _, skipped = find(model, set())
    assert skipped
    assert {reason for _, reason in skipped} == {"it stands in a subgraph or a local function"}


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"rank": 0}, UsageError, "rank"),
        ({"energy": 1.0}, UsageError, "energy"),
        ({"keep": 0.0}, UsageError, "keep"),
        ({"limit": 1.5}, UsageError, "limit"),
        ({"keep": 0.5, "rank": 3}, UsageError, "together"),
        ({"allocation": "damage"}, UsageError, "data"),
        ({"rank": 3, "allocation": "uniform"}, UsageError, "allocate"),
        ({"exclude": ("nothing",)}, UsageError, "nothing"),
        ({"exclude": ("fc1", "fc2")}, NoEffectError, "factored"),
        ({"rank": 500}, NoEffectError, "factored"),
    ],
)
def test_options_that_make_no_sense(options, error, word, tmp_path):
    model = load(builders.save(builders.mlp(), tmp_path / "m.onnx"))
    with pytest.raises(error, match=word):
        optimize(model, [LowRank(**options)])


def test_a_target_that_is_too_low(tmp_path):
    model = load(builders.save(builders.mlp(), tmp_path / "m.onnx"))
    data = Batches({"x": builders.samples(20, 16)}, signature(model).inputs)
    with pytest.raises(GateError, match="cannot be reached"):
        optimize(model, [LowRank(target_size=0.01)], data=data)


def test_a_quantized_model_is_refused(tmp_path):
    model = load(builders.save(builders.mlp(), tmp_path / "m.onnx"))
    with pytest.raises(UnsupportedError, match="quantized"):
        optimize(model, [QuantizeDynamic(), LowRank()])


def test_names_modules_and_opset_stay(tmp_path):
    model = load(builders.save(builders.mlp(opset=13), tmp_path / "m.onnx"))
    next(iter(model.graph)).metadata_props[MODULE] = "net.fc1"
    done = optimize(model, [LowRank(rank=4)])
    nodes = [(n.op_type, n.name, n.metadata_props.get(MODULE)) for n in done.model.graph]
    assert nodes[:2] == [("MatMul", "fc1_reduced", "net.fc1"), ("Gemm", "fc1", "net.fc1")]
    assert len({name for _, name, _ in nodes}) == len(nodes)
    assert done.model.opset_imports[""] == 13
    assert any("plain SVD" in note.reason for note in done.passes[0].notes)


def test_a_budget_goes_where_it_is_worth_most(tmp_path):
    """Two equal matrices of which one hardly matters to the output: that one gives."""
    text = """(float[N,32] x) => (float[N,32] y) {
        a = Relu (x)
        b = MatMul (x, w1)
        c = MatMul (a, w2)
        d = Mul (c, s)
        y = Add (b, d)
    }"""
    proto = prune_graphs.build(text, {"w1": (32, 32), "w2": (32, 32), "s": np.full(1, 0.01)})
    x = RNG.normal(size=(60, 32)).astype(np.float32)
    model, low, effect, _ = lowered(proto, x, tmp_path, keep=0.6)
    rank = {entry["node"]: entry["rank"] for entry in effect["factored"]}
    names = {n.outputs[0].name: n.name or n.outputs[0].name for n in model.graph}
    assert rank[names["c"]] < 12
    assert names["b"] not in rank or rank[names["b"]] == 12
    left = sum(v.const_value.size for v in low.graph.initializers.values()) - 1
    assert left <= 0.6 * 2 * 32 * 32


def test_the_command_line_says_what_was_factored(tmp_path):
    model, out = builders.save(builders.mlp(width=64), tmp_path / "m.onnx"), tmp_path / "o.onnx"
    words = ["share", str(model), "-o", str(out), "--method", "low-rank", "--rank", "4", "--no-measure"]
    done = subprocess.run(
        [sys.executable, "-m", "onnxcomp", *words], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "2 products factored (fc1 4 of 16, fc2 4 of 10)" in done.stdout
    assert out.exists()


def test_an_old_float16_model_is_measured_too(tmp_path):
    """What switches weights on and off must exist in opset 7, and take float16."""
    text = "(float16[N,64,4,4] x) => (float16[N,64,4,4] y) { a = Conv (x, w1, b) r = Relu (a) y = Conv (r, w2) }"
    proto = prune_graphs.build(text, {"w1": (64, 64, 1, 1), "b": (64,), "w2": (64, 64, 1, 1)})
    for tensor in proto.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    proto.opset_import[0].version = 7
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    x = inputs((64, 4, 4)).astype(np.float16)
    done = optimize(model, [LowRank(keep=0.6)], data=Batches({"x": x}, signature(model).inputs))
    assert done.passes[0].effect["allocation"] == "damage"
    assert np.all(np.isfinite(outputs(done.model, {"x": x}, tmp_path)))


def test_the_allocation_is_the_best_one():
    """Against all choices of two families."""
    families = [find_family(24, 16), find_family(16, 40)]
    curves = [
        ranks.Curve(f, np.exp(-np.arange(int(0.8 * f.even) + 1) / fall), weight=w)
        for f, fall, w in zip(families, (2.0, 6.0), (3.0, 1.0), strict=True)
    ]
    budget = 4 * 0.55 * sum(f.dense for f in families)

    def cost(choice):
        return sum(f.dense if r is None else f.per_rank * r for f, r in zip(families, choice, strict=True)) * 4

    def loss(choice):
        return sum(0 if r is None else c.lost[r] * c.weight for c, r in zip(curves, choice, strict=True))

    every = [(a, b) for a in [None, *curves[0].ranks] for b in [None, *curves[1].ranks]]
    chosen = ranks.within(curves, budget)
    assert cost(chosen) <= budget
    # no other that costs as little loses less
    assert loss(chosen) <= min(loss(c) for c in every if cost(c) <= cost(chosen)) + 1e-12


def find_family(width, outputs):
    proto = prune_graphs.build(
        f"(float[N,{width}] x) => (float[N,{outputs}] y) {{ y = MatMul (x, w) }}", {"w": (width, outputs)}
    )
    return find(ir.from_proto(proto), set())[0][0]


def test_same_bytes_on_any_number_of_threads(tmp_path):
    text = "(float[N,256] x) => (float[N,256] y) { a = MatMul (x, w1) r = Relu (a) y = MatMul (r, w2) }"
    path = builders.save(prune_graphs.build(text, {"w1": (256, 512), "w2": (512, 256)}), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=builders.samples(300, 256))
    digests = set()
    for threads in (1, 2):
        out = tmp_path / f"{threads}.onnx"
        code = (
            "from onnxcomp.passes import LowRank; from onnxcomp.pipeline import optimize_file; "
            f"optimize_file({str(path)!r}, {str(out)!r}, [LowRank(keep=0.5)], data={str(tmp_path / 'x.npz')!r})"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_snips_keeps_its_accuracy(shared, tmp_path):
    """At half of its matrices, where a plain SVD does not."""
    source = shared / "models/snips_transformer.onnx"
    arrays, _ = real_data.samples("snips_transformer", shared)
    labels = arrays["labels"]
    accuracy = {}
    for name, data in (("data", real_data.snips_calibration(shared / "data")), ("plain", None)):
        out = tmp_path / f"{name}.onnx"
        record = optimize_file(source, out, [LowRank(keep=0.5)], data=data)
        got = next(iter(runtime.open_session(out).run({"ids": arrays["ids"]}).values()))
        accuracy[name] = float(np.mean(got.argmax(-1) == labels))
        effect = record.passes[0].effect
        assert effect["removed_parameters"] > 0
        assert record.size_ratio < 0.9
    assert accuracy["data"] >= 0.975
    assert accuracy["data"] > accuracy["plain"]


def overfitted(tmp_path, count):
    """More inputs than rows of data: (effect, [(node, reason) of each note])."""
    generator = np.random.default_rng(5)
    mix = generator.normal(size=(64, 64)) * np.exp(-np.arange(64) / 8)
    proto = prune_graphs.build("(float[N,64] x) => (float[N,60] y) { y = MatMul (x, w) }", {"w": (64, 60)})
    x = (generator.normal(size=(count, 64)) @ mix.T).astype(np.float32)
    _, _, effect, notes = lowered(proto, x, tmp_path, rank=12)
    return effect, [(note.node, note.reason) for note in notes]


def test_what_is_lost_is_measured_on_other_samples(tmp_path):
    effect, notes = overfitted(tmp_path, 20)
    assert effect["samples"] == {"fitted": 15, "held_out": 5}
    errors, (entry,) = effect["output_error"], effect["factored"]
    assert errors["held_out"] > 1.5 * errors["fitted"] > 0
    assert entry["held_out_energy"] < entry["energy"]
    assert entry["rows"] == 15
    (scarce, large) = notes
    assert scarce == (entry["node"], "made from 15 rows of 64 inputs: more samples would tell more")
    assert f"{errors['held_out']:.0%}" in large[1]
    assert large[1].endswith("more samples would help")


def test_enough_data_needs_no_note(tmp_path):
    """Of low rank, and seen enough: nothing is lost on other samples either."""
    proto, x = graph("gemm"), inputs((24,), 400)
    exact = (RNG.normal(size=(20, 5)) @ RNG.normal(size=(5, 24))).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(exact, "w"))
    _, _, effect, notes = lowered(proto, x, tmp_path, rank=5)
    assert effect["output_error"]["held_out"] < 1e-3
    assert not notes


def test_too_few_samples_to_hold_some_out(tmp_path):
    effect, notes = overfitted(tmp_path, 6)
    assert effect["samples"] == {"fitted": 6, "held_out": 0}
    assert set(effect["output_error"]) == {"fitted"}
    assert not any("held_out_energy" in entry for entry in effect["factored"])
    assert any("no samples held out of 6" in reason for _, reason in notes)


def test_magika_keeps_its_accuracy_with_48_files(shared, tmp_path):
    """Judged on the samples that made them, the factors of its last layer looked perfect, and knew no type."""
    arrays, _ = real_data.samples("magika_standard_v3_3", shared)
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    known, others = order[:48], order[48:]
    out = tmp_path / "low.onnx"
    data = {"bytes": arrays["bytes"][known]}
    record = optimize_file(shared / "models/magika_standard_v3_3.onnx", out, [LowRank(keep=0.75)], data=data)
    got = next(iter(runtime.open_session(out).run({"bytes": arrays["bytes"][others]}).values()))
    assert np.mean(got.argmax(-1) == arrays["labels"][others]) >= 0.9
    assert record.passes[0].effect["output_error"]["held_out"] < 0.3


@pytest.mark.parametrize("rows", [3, 40, 4000])
def test_a_gram_matrix_of_few_rows_is_drawn_to_equal_inputs(rows):
    """Nearer to the one that the rows came from; of many rows it stays what it is."""
    generator = np.random.default_rng(2)
    truth = np.diag(np.linspace(0.5, 1.5, 30))
    x = generator.normal(size=(rows, 30)) @ np.sqrt(truth)
    seen = x.T @ x / rows
    drawn = shrunk(seen, rows)
    assert np.trace(drawn) == pytest.approx(np.trace(seen))
    assert np.linalg.norm(drawn - truth) < np.linalg.norm(seen - truth)
    if rows == 4000:
        np.testing.assert_allclose(drawn, seen, atol=0.05)
