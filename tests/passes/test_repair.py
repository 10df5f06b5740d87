"""Repair without training: against least squares by numpy, exact where what went depends on what stays, never worse."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import builders
import numpy as np
import onnx
import prune_graphs
import pytest
import real_data
from conftest import ROOT
from onnx import numpy_helper

from onnxcomp import runtime
from onnxcomp.activations import Moments
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError, DataError, UsageError
from onnxcomp.model import load, signature
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.base import temporary_context
from onnxcomp.passes.prune.repair import sequential
from onnxcomp.passes.prune.repair.least_squares import product, solve
from onnxcomp.passes.prune.repair.reestimate import reestimate
from onnxcomp.pipeline import optimize, optimize_file, save

RNG = np.random.default_rng(7)

#: rows that depend on the first half, so that half of the units can go without loss
MIX = RNG.normal(0, 0.3, (4, 4))

#: graphs without nonlinearity between the 8 channels of `w1` and what reads them; name -> (graph, weights, input shape)
LINEAR = {
    "matmul": (
        "(float[N,6] x) => (float[N,5] y) { a = MatMul (x, w1) c = MatMul (a, w2) y = Add (c, b2) }",
        {"w1": (6, 8), "w2": (8, 5), "b2": (5,)},
        (6,),
    ),
    "matmul, no bias": (
        "(float[N,3,6] x) => (float[N,3,5] y) { a = MatMul (x, w1) y = MatMul (a, w2) }",
        {"w1": (6, 8), "w2": (8, 5)},
        (3, 6),
    ),
    "gemm": (
        """(float[N,6] x) => (float[N,5] y) {
            a = MatMul (x, w1)
            y = Gemm <transB=1, alpha=0.5, beta=2.0> (a, w2, b2)
        }""",
        {"w1": (6, 8), "w2": (5, 8), "b2": (5,)},
        (6,),
    ),
    "transposed": (
        """(float[N,6] x) => (float[N,5] y) {
            a = MatMul (x, w1)
            t = Transpose <perm=[1,0]> (w2)
            y = MatMul (a, t)
        }""",
        {"w1": (6, 8), "w2": (5, 8)},
        (6,),
    ),
    "conv with padding": (
        "(float[N,3,7,7] x) => (float[N,5,7,7] y) { a = Conv (x, w1) y = Conv <pads=[1,1,1,1]> (a, w2) }",
        {"w1": (8, 3, 1, 1), "w2": (5, 8, 3, 3)},
        (3, 7, 7),
    ),
    "concat": (
        """(float[N,6] x) => (float[N,5] y) {
            a = MatMul (x, w1)
            b = MatMul (x, w3)
            c = Concat <axis=1> (b, a)
            y = Gemm (c, w2, b2)
        }""",
        {"w1": (6, 8), "w3": (6, 4), "w2": (12, 5), "b2": (5,)},
        (6,),
    ),
    "two consumers": (
        """(float[N,6] x) => (float[N,5] y, float[N,3] z) {
            a = MatMul (x, w1)
            y = MatMul (a, w2)
            z = MatMul (a, w4)
        }""",
        {"w1": (6, 8), "w2": (8, 5), "w4": (8, 3)},
        (6,),
    ),
}


def arrays(weights):
    """Weights of which the second half of the channels of w1 are mixtures of the first."""
    found = {name: (RNG.normal(0, 1, shape)).astype(np.float32) for name, shape in weights.items()}
    first = found["w1"]
    if first.ndim == 2:
        first[:, 4:] = 0.1 * (first[:, :4] @ MIX)
        if "w3" in found:
            found["w3"][:, 2:] = 0.1 * found["w3"][:, :2] @ MIX[:2, :2]
    else:
        first[4:] = 0.1 * np.tensordot(MIX.T, first[:4], 1)
    return found


def pruned(proto, tmp_path, x, *, sparsity=0.5, align=1, name="o.onnx", **options):
    """(what the pass says of the repair, outputs of the whole model, outputs of the pruned one on other samples)."""
    path = builders.save(proto, tmp_path / "m.onnx")
    step = PruneStructured(sparsity=sparsity, align=align, **options)
    feed = {proto.graph.input[0].name: x}
    record = optimize_file(path, tmp_path / name, [step], data=feed, allow_larger=True, force=True)
    fresh = {proto.graph.input[0].name: RNG.normal(0, 1, x.shape).astype(np.float32)}
    whole, cut = (runtime.open_session(p).run(fresh) for p in (path, tmp_path / name))
    return record.passes[0].effect.get("repair"), list(whole.values()), list(cut.values())


def error(whole, cut):
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(whole, cut, strict=True))


def test_a_solution_is_that_of_lapack_to_ten_digits():
    x = RNG.normal(size=(900, 300)) @ RNG.normal(size=(300, 300)) * np.exp(RNG.normal(size=300))
    gram = x.T @ x / 900
    gram[np.diag_indices(300)] += 1e-2 * np.trace(gram) / 300
    right = RNG.normal(size=(300, 7))
    expected = np.linalg.solve(gram, right)
    np.testing.assert_allclose(solve(gram, right), expected, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(product(x.T, x), x.T @ x, rtol=0, atol=1e-12 * np.abs(x.T @ x).max())


def test_a_column_of_zeros_gets_zeros():
    gram = np.diag([4.0, 0.0, 1.0])
    np.testing.assert_allclose(solve(gram, np.array([[8.0], [0.0], [3.0]])), [[2.0], [0.0], [3.0]])


@pytest.mark.parametrize("kind", LINEAR)
def test_what_depends_on_what_stays_is_made_good(kind, tmp_path):
    text, weights, shape = LINEAR[kind]
    proto = prune_graphs.build(text, arrays(weights))
    x = RNG.normal(0, 1, (512, *shape)).astype(np.float32)
    plain = error(*pruned(proto, tmp_path, x, repair="none")[1:])
    repair, whole, cut = pruned(proto, tmp_path, x, repair="lstsq")
    assert repair["chosen"]
    # damping leaves a part of the error
    assert error(whole, cut) < 0.15 * plain, (kind, plain)
    for consumer in repair["consumers"]:
        assert consumer["error"]["lstsq"] <= consumer["error"]["bias"] <= consumer["error"]["cut"]


def test_weights_and_bias_are_those_of_numpys_least_squares(tmp_path):
    text, weights, _ = LINEAR["matmul"]
    values = {name: RNG.normal(0, 1, shape).astype(np.float32) for name, shape in weights.items()}
    x = (RNG.normal(0, 1, (400, 6)) + 0.5).astype(np.float32)
    path = builders.save(prune_graphs.build(text, values), tmp_path / "m.onnx")
    model = load(path)
    data = Batches({"x": x}, signature(model).inputs)
    done = optimize(model, [PruneStructured(sparsity=0.5, align=1, repair="lstsq")], data=data)
    found = {k: v.const_value.numpy() for k, v in done.model.graph.initializers.items()}
    kept = done.passes[0].effect["plan"]["cuts"][0]["kept"]
    hidden = x[data.split(0.8)[0]._selection].astype(np.float64) @ values["w1"]
    left = hidden[:, kept]
    # damping as further rows, which the bias does not see
    damping = np.sqrt(1e-2 * np.mean(left**2) * len(left))
    rows = np.vstack([np.hstack([left, np.ones((len(left), 1))]), np.eye(len(kept), len(kept) + 1) * damping])
    start = values["w2"][kept].astype(np.float64)
    wanted = np.vstack([hidden @ values["w2"] + values["b2"], start * damping])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    np.testing.assert_allclose(found["w2"], expected[:-1], atol=1e-5)
    np.testing.assert_allclose(found["b2"], expected[-1], atol=1e-5)


def test_biases_keep_means_and_weights_stay(tmp_path):
    text, weights, _ = LINEAR["gemm"]
    proto = prune_graphs.build(text, {k: RNG.normal(0, 1, s).astype(np.float32) for k, s in weights.items()})
    x = (RNG.normal(0, 0.3, (256, 6)) + 2).astype(np.float32)
    path = builders.save(proto, tmp_path / "m.onnx")
    step = PruneStructured(sparsity=0.5, align=1, repair="bias")
    record = optimize_file(path, tmp_path / "o.onnx", [step], data={"x": x}, allow_larger=True)
    whole, cut = (runtime.open_session(p).run({"x": x})["y"] for p in (path, tmp_path / "o.onnx"))
    np.testing.assert_allclose(cut.mean(0), whole.mean(0), atol=0.05)
    kept = record.passes[0].effect["plan"]["cuts"][0]["kept"]
    before, after = (stored(p)["w2"] for p in (path, tmp_path / "o.onnx"))
    np.testing.assert_array_equal(after, before[:, kept])
    assert record.passes[0].effect["repair"]["chosen"] == ["bias"]


def test_biases_need_no_second_moments(tmp_path, monkeypatch):
    monkeypatch.setattr(Moments, "update", lambda *_: pytest.fail("second moments are made"))
    text, weights, shape = LINEAR["conv with padding"]
    rng = np.random.default_rng(5)
    values = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in weights.items()}
    x = rng.normal(2, 0.3, (64, *shape)).astype(np.float32)
    path = builders.save(prune_graphs.build(text, values), tmp_path / "m.onnx")
    model = load(path)
    data = Batches({"x": x}, signature(model).inputs)
    done = optimize(model, [PruneStructured(sparsity=0.5, align=1, repair="bias")], data=data)
    assert done.passes[0].effect["repair"]["chosen"] == ["bias"]
    save(done.model, tmp_path / "o.onnx")
    # means of patches, whose corners are padding
    feed = {"x": x[data.split(0.8)[0]._selection]}
    whole, cut = (runtime.open_session(tmp_path / name).run(feed)["y"] for name in ("m.onnx", "o.onnx"))
    np.testing.assert_allclose(cut.mean((0, 2, 3)), whole.mean((0, 2, 3)), atol=1e-5 * np.abs(whole).max())


def test_convolutions_of_one_level_are_repaired_in_turns_within_the_budget(tmp_path, monkeypatch):
    text = """(float[N,4,5,5] x) => (float[N,6,5,5] y) {
        a = Conv (x, w1)
        r = Relu (a)
        b = Conv (x, w2)
        s = Relu (b)
        c = Conv (r, w3)
        d = Conv (s, w4)
        y = Add (c, d)
    }"""
    shapes = {"w1": (16, 4, 1, 1), "w2": (16, 4, 1, 1), "w3": (6, 16, 1, 1), "w4": (6, 16, 1, 1)}
    proto = prune_graphs.build(text, {k: RNG.normal(0, 1, s).astype(np.float32) for k, s in shapes.items()})
    x = RNG.normal(0, 1, (128, 4, 5, 5)).astype(np.float32)
    seen = []
    real = sequential.observe_both
    monkeypatch.setattr(sequential, "observe_both", lambda *a, **k: seen.append(len(a[2])) or real(*a, **k))
    pruned(proto, tmp_path, x)
    assert seen == [2]
    together = (tmp_path / "o.onnx").read_bytes()
    monkeypatch.setattr(sequential, "_BUDGET", 8 * 24**2)
    pruned(proto, tmp_path, x)
    assert seen == [2, 1, 1]
    assert (tmp_path / "o.onnx").read_bytes() == together


def stored(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_in_a_row_are_repaired_from_the_first_to_the_last(groups, tmp_path):
    text = f"""(float[N,4,6,6] x) => (float[N,4] y) {{
        a = Conv <pads=[1,1,1,1]> (x, w1)
        r = Relu (a)
        c = Conv <pads=[1,1,1,1], group={groups}> (r, w2)
        s = Relu (c)
        d = Conv <pads=[1,1,1,1]> (s, w3)
        t = Relu (d)
        e = Conv <pads=[1,1,1,1]> (t, w4)
        u = Relu (e)
        p = GlobalAveragePool (u)
        f = Flatten (p)
        y = Gemm (f, w5, b5)
    }}"""
    shapes = {
        "w1": (16, 4, 3, 3), "w2": (16, 16 // groups, 3, 3), "w3": (16, 16, 3, 3), "w4": (16, 16, 3, 3),
        "w5": (16, 4), "b5": (4,),
    }  # fmt: skip
    values = {k: (RNG.normal(0, 1, s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for k, s in shapes.items()}
    x = RNG.normal(0, 1, (256, 4, 6, 6)).astype(np.float32)
    repair, _, _ = pruned(prune_graphs.build(text, values), tmp_path, x)
    sqnr = {step: f["outputs"]["y"]["sqnr_db"] for step, f in repair["fidelity"].items()}
    assert sqnr["before"] < sqnr["lstsq"] < sqnr["sequential"] == sqnr["after"]
    assert repair["chosen"] == ["sequential"]
    assert "w3_bias" in stored(tmp_path / "o.onnx")


def test_tied_weights_stay_one(tmp_path):
    text = """(float[N,6] x) => (float[N,6] y) {
        a = MatMul (x, w1)
        r = Relu (a)
        c = MatMul (r, w2)
        d = MatMul (c, w1)
        s = Relu (d)
        y = MatMul (s, w2)
    }"""
    values = {"w1": (6, 16), "w2": (16, 6)}
    x = RNG.normal(0, 1, (400, 6)).astype(np.float32)
    repair, whole, cut = pruned(prune_graphs.build(text, values), tmp_path, x)
    assert repair["chosen"] == ["lstsq"]
    assert {name: array.shape for name, array in stored(tmp_path / "o.onnx").items()} == {"w1": (6, 8), "w2": (8, 6)}
    assert error(whole, cut) < error(*pruned(prune_graphs.build(text, values), tmp_path, x, repair="none")[1:])


def test_statistics_of_batch_normalization_are_taken_anew(tmp_path):
    text = """(float[N,4,6,6] x) => (float[N,6,4,4] y) {
        a = Conv (x, w1)
        r = Relu (a)
        c = Conv (r, w2)
        n = BatchNormalization (c, g, b, m, v)
        q = Relu (n)
        d = Conv (q, w3)
        k = BatchNormalization (d, g3, b3, m3, v3)
        y = Relu (k)
    }"""
    shapes = {"w1": (16, 4, 1, 1), "w2": (8, 16, 3, 3), "w3": (6, 8, 1, 1)}
    values = {k: RNG.normal(0.2, 0.3, s).astype(np.float32) for k, s in shapes.items()}
    for name, width in (("", 8), ("3", 6)):
        values |= {f"g{name}": np.ones(width, np.float32), f"b{name}": np.zeros(width, np.float32)}
        values |= {f"m{name}": np.zeros(width, np.float32), f"v{name}": np.ones(width, np.float32)}
    x = RNG.normal(1, 1, (128, 4, 6, 6)).astype(np.float32)
    path = builders.save(prune_graphs.build(text, values), tmp_path / "m.onnx")
    true_statistics(path, x)
    # the second one from what it reads once the first one has new statistics
    proto = onnx.load(path)
    convolved = [node.output[0] for node in proto.graph.node if node.op_type == "Conv"][1:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in convolved)
    onnx.save(proto, tmp_path / "inner.onnx")
    found = runtime.open_session(tmp_path / "inner.onnx").run({"x": x})
    left = stored(path)
    for name, mean, variance in zip(convolved, ("m", "m3"), ("v", "v3"), strict=True):
        inner = found[name].astype(np.float64)
        np.testing.assert_allclose(left[mean], inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(left[variance], inner.var((0, 2, 3)), rtol=1e-4)
    repair, _, _ = pruned(onnx.load(path), tmp_path, x, repair="bias")
    sqnr = {step: found["outputs"]["y"]["sqnr_db"] for step, found in repair["fidelity"].items()}
    assert sqnr["bias"] < sqnr["batchnorm"] == sqnr["after"]
    assert repair["chosen"][-1] == "batchnorm"


def true_statistics(path, x):
    """Give a file's BatchNormalizations the statistics of these samples."""
    model = load(path)
    with temporary_context() as context:
        reestimate(model, Batches({"x": x}, signature(model).inputs), context)
    save(model, path, force=True)


def test_a_repair_that_makes_nothing_better_is_not_shipped(tmp_path):
    # what goes is always zero on the data: the plain cut computes the same
    text, weights, _ = LINEAR["gemm"]
    values = {k: RNG.normal(0, 1, s).astype(np.float32) for k, s in weights.items()}
    values["w1"][:, 4:] = 0
    path = builders.save(prune_graphs.build(text, values), tmp_path / "m.onnx")
    model = load(path)
    data = Batches({"x": builders.samples(64, 6)}, signature(model).inputs)
    done = optimize(model, [PruneStructured(sparsity=0.5, align=1)], data=data)
    assert done.passes[0].effect["repair"]["chosen"] == []
    assert any("not repaired" in note.reason for note in done.passes[0].notes)
    np.testing.assert_array_equal(done.model.graph.initializers["w2"].const_value.numpy(), values["w2"][:, :4])


def test_few_and_bad_samples(tmp_path):
    text, weights, _ = LINEAR["matmul"]
    proto = prune_graphs.build(text, weights)
    repair, _, cut = pruned(proto, tmp_path, builders.samples(3, 6))
    assert repair["samples"] == {"fitted": 3, "judged": 3}
    assert np.isfinite(cut[0]).all()
    pruned(proto, tmp_path, np.ones((40, 6), np.float32))  # one sample, again and again
    pruned(proto, tmp_path, np.zeros((40, 6), np.float32))
    path = builders.save(proto, tmp_path / "m.onnx")
    bad = builders.samples(40, 6)
    bad[3, 2] = np.nan
    with pytest.raises((CalibrationError, DataError), match="NaN"):
        optimize_file(path, tmp_path / "n.onnx", [PruneStructured(sparsity=0.5)], data={"x": bad})
    with pytest.raises(UsageError, match="needs data"):
        optimize_file(path, tmp_path / "n.onnx", [PruneStructured(sparsity=0.5, repair="bias")])


def test_what_cannot_be_repaired_is_named(tmp_path):
    text = """(float[N,6] x) => (float[N,6] y, float[8,6] z) {
        a = MatMul (x, w1)
        r = Relu (a)
        y = MatMul (r, w2)
        z = Identity (w3)
    }"""
    proto = prune_graphs.build(text, {"w1": (6, 8), "w2": (8, 6), "w3": (8, 6)})
    assert pruned(proto, tmp_path, builders.samples(64, 6))[0]["skipped"] == []
    proto = prune_graphs.build(
        """(float[N,8,5] x) => (float[N,6,5] y) {
            a = MatMul (w1, x)
            r = Relu (a)
            y = MatMul (w2, r)
        }""",
        {"w1": (8, 8), "w2": (6, 8)},
    )
    repair, _, _ = pruned(proto, tmp_path, builders.samples(64, 8, 5))
    assert "columns" in repair["skipped"][0]["reason"]


@pytest.mark.shared
def test_a_real_model_is_nearer_to_itself(shared, tmp_path):
    arrays, real = real_data.samples("snips_transformer", shared)
    assert real
    sqnr = {}
    for method in ("none", "lstsq"):
        step = PruneStructured(sparsity=0.3, repair=method)
        source = shared / "models/snips_transformer.onnx"
        record = optimize_file(source, tmp_path / f"{method}.onnx", [step], data={"ids": arrays["ids"][:300]})
        sqnr[method] = record.fidelity.outputs["logits"].sqnr_db
    assert sqnr["lstsq"] > sqnr["none"] + 6, sqnr  # 21 and 31 dB


def test_same_bytes_on_any_number_of_threads(tmp_path):
    text = LINEAR["conv with padding"][0]
    values = {"w1": (96, 3, 1, 1), "w2": (5, 96, 3, 3)}
    path = builders.save(prune_graphs.build(text, values), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=builders.samples(64, 3, 7, 7))
    digests = set()
    for threads in (1, 2):
        out = tmp_path / f"{threads}.onnx"
        code = (
            "from onnxcomp.passes import PruneStructured; from onnxcomp.pipeline import optimize_file; "
            f"optimize_file({str(path)!r}, {str(out)!r}, [PruneStructured(sparsity=0.5)], "
            f"data={str(tmp_path / 'x.npz')!r}, allow_larger=True)"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
