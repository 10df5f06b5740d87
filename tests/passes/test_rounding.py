"""Rounding with error feedback: checked by GPTQ as its paper writes it, and by the outputs on real sentences."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest
import real_data
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import runtime
from onnxcomp.activations import Moments
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError
from onnxcomp.model import load, signature
from onnxcomp.passes import QuantizeWeights
from onnxcomp.passes.quantize import _nbits, rounding
from onnxcomp.pipeline import optimize, optimize_file


def inputs(rows, width, seed=0):
    """Correlated, with an outlier and a dead column; float32, (rows, width)."""
    generator = np.random.default_rng(seed)
    made = generator.standard_normal((rows, width // 4)) @ generator.standard_normal((width // 4, width))
    made += 0.3 * generator.standard_normal((rows, width))
    made[:, 5] *= 20
    made[:, 9] = 0
    return made.astype(np.float32)


def gram_of(x):
    made = Moments()
    made.update(x)
    return made.gram[0]


def gptq(matrix, gram, blocks, damping):
    """Algorithm 1 of the paper, by the Cholesky factor of the inverse: the numbers as floats, (rows, width)."""
    width = matrix.shape[1]
    damped = gram + damping * np.trace(gram) / width * np.eye(width)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest = matrix.astype(np.float64)
    made = np.empty_like(rest)
    for j in range(width):
        scale = blocks.scales[:, j // blocks.size].astype(np.float64)
        zero = blocks.zero_points[:, j // blocks.size].astype(np.float64)
        made[:, j] = np.clip(np.rint(rest[:, j] / scale), -zero, 2**blocks.bits - 1 - zero) * scale
        rest[:, j:] -= np.outer((rest[:, j] - made[:, j]) / upper[j, j], upper[j, j:])
    return made


def test_the_factors_make_up_the_damped_matrix():
    gram = gram_of(inputs(500, 200))
    kept = gram.copy()
    known = rounding.feedback(gram)
    assert np.array_equal(gram, kept)
    unit = known.columns + np.eye(200)
    damped = gram + rounding._DAMPING * np.trace(gram) / 200 * np.eye(200)
    sizes = np.sqrt(np.diag(damped))
    assert np.all(np.abs(unit * known.costs @ unit.T - damped) <= 1e-5 * np.outer(sizes, sizes))
    assert np.array_equal(np.triu(known.columns, 1), known.columns)
    assert rounding.feedback(np.zeros((8, 8))) is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 256])
def test_the_numbers_are_those_of_the_paper(bits, size):
    width = 300  # two lazy blocks, the last one padded
    x = inputs(2000, width)
    matrix = np.random.default_rng(1).standard_normal((20, width)).astype(np.float32)
    gram = gram_of(x)
    known = rounding.feedback(gram)
    blocks = rounding.fit(matrix, known, bits=bits, size=size, symmetric=False, search=False)
    made = blocks.restored(matrix)
    want = gptq(matrix, gram, blocks, rounding._DAMPING)
    # a tie that falls the other way changes the rest of its row
    assert np.mean(np.all(np.abs(made - want) < 1e-5 * np.abs(matrix).max(), axis=1)) >= 0.9
    assert np.linalg.norm((made - want) @ x.T) < 0.1 * np.linalg.norm((made - matrix) @ x.T)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_change_less_on_other_inputs_too(bits, symmetric):
    form = {"bits": bits, "size": 32, "symmetric": symmetric, "search": True}
    generator = np.random.default_rng(1)
    matrix = generator.standard_normal((64, 200)).astype(np.float32)
    x = inputs(4000, 200)
    known = rounding.feedback(gram_of(x[:2000]))
    plain, fed = _nbits.fit(matrix, **form), rounding.fit(matrix, known, **form)
    nearest, gained = (np.square(x[2000:] @ (b.restored(matrix) - matrix).T).sum() for b in (plain, fed))
    assert gained < 0.6 * nearest
    told = rounding.loss(matrix, gram_of(x[2000:]), known, **form)
    power = np.square(x[2000:] @ matrix.T).sum()
    np.testing.assert_allclose([told.nearest, told.gptq], np.array([nearest, gained]) / power, rtol=1e-3)


def test_an_error_counts_by_what_it_costs():
    form = {"bits": 4, "size": 32, "symmetric": False, "search": True}
    w = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    costs = np.geomspace(1e-4, 1, 32)
    alone = rounding.Feedback(np.zeros((32, 32)), costs)
    blocks = (_nbits.fit(w, **form), rounding.fit(w, alone, **form))
    plain, weighted = ((np.square(b.restored(w) - w) * costs).sum() for b in blocks)
    assert weighted < 0.9 * plain


def test_slices_of_rows_give_what_the_whole_gives(monkeypatch):
    matrix = np.random.default_rng(1).standard_normal((50, 100)).astype(np.float16)
    known = rounding.feedback(gram_of(inputs(500, 100)))
    form = {"bits": 4, "size": 16, "symmetric": False, "search": True}
    whole = rounding.fit(matrix, known, **form)
    assert whole.scales.dtype == np.float16
    monkeypatch.setattr(rounding, "_SLICE", 700)
    sliced = rounding.fit(matrix, known, **form)
    assert np.array_equal(sliced.scales, whole.scales)
    assert np.array_equal(sliced.numbers(matrix), whole.numbers(matrix))


def layer(op="MatMul", *, rows=96, columns=40, dtype=np.float32, **attributes):
    """x (batch, rows) times w, and Gemm plus c."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = (columns, rows) if attributes.get("transB") else (rows, columns)
    stored = [numpy_helper.from_array(builders.samples(*shape).astype(dtype), "w")]
    if op == "Gemm":
        stored.append(numpy_helper.from_array(builders.samples(columns, seed=2).astype(dtype), "c"))
    return builders.model(
        [helper.make_node(op, ["x", *(t.name for t in stored)], ["y"], name="node", **attributes)],
        [builders.value("x", "batch", rows, dtype=kind)],
        [builders.value("y", "batch", columns, dtype=kind)],
        stored,
    )


def quantized(proto, feeds, tmp_path, **options):
    """(record of the pass, squared error of the output on other samples, bytes)."""
    path, out = builders.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx"
    options = {"bits": 4, "accuracy_level": 0, **options}
    record = optimize_file(path, out, [QuantizeWeights(**options)], data=feeds(0), force=True, allow_larger=True)
    want, got = (runtime.open_session(p).run(feeds(1))["y"].astype(np.float64) for p in (path, out))
    return record.passes[0], np.square(got - want).sum(), out.read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("op", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_layers_gain_on_samples_that_did_not_calibrate(op, attributes, dtype, tmp_path):
    proto = layer(op, dtype=dtype, **attributes)

    def feeds(seed):
        # the same mixture, other samples
        return {"x": (inputs(1200, 96)[400 * seed : 400 * seed + 800] / 4).astype(dtype)}

    _, nearest, _ = quantized(proto, feeds, tmp_path, gptq=False)
    made, gained, _ = quantized(proto, feeds, tmp_path)
    assert gained < 0.7 * nearest
    effect = made.effect["gptq"]
    assert (effect["weights"], effect["of"], effect["layers"][0]["node"]) == (1, 1, "node")
    assert effect["output_error"]["gptq"] < 0.7 * effect["output_error"]["nearest"]
    assert made.effect["quantized_weights"] == 1


def test_off_or_without_data_every_weight_goes_to_the_nearest(tmp_path):
    proto = layer()
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    data = Batches({"x": inputs(300, 96)}, signature(model).inputs)
    files = [
        ir.to_proto(optimize(model, [QuantizeWeights(bits=4, gptq=on)], data=given).model).SerializeToString()
        for on, given in ((True, None), (False, data), (False, None), (True, data))
    ]
    assert files[0] == files[1] == files[2]
    assert files[3] != files[0]


def test_what_cannot_be_rounded_so_says_why(tmp_path):
    """Two nodes multiply with w, one sees only zeros, a table is looked up; the last one is rounded."""
    proto = builders.model(
        [
            helper.make_node("Gather", ["t", "ids"], ["e"], name="table"),
            helper.make_node("MatMul", ["e", "w"], ["a"], name="first"),
            helper.make_node("MatMul", ["a", "w"], ["b"], name="second"),
            helper.make_node("Sub", ["b", "b"], ["z"], name="zero"),
            helper.make_node("MatMul", ["z", "v"], ["c"], name="dead"),
            helper.make_node("Add", ["c", "b"], ["s"], name="add"),
            helper.make_node("MatMul", ["s", "u"], ["y"], name="last"),
        ],
        [builders.value("ids", "batch", "seq", dtype=TensorProto.INT64)],
        [builders.value("y", "batch", "seq", 64)],
        [builders.weight("t", 50, 64), *(builders.weight(name, 64, 64) for name in "wvu")],
    )
    path = builders.save(proto, tmp_path / "m.onnx")
    ids = np.random.default_rng(0).integers(0, 50, (40, 3))
    record = optimize_file(path, tmp_path / "o.onnx", [QuantizeWeights(bits=4)], data={"ids": ids})
    (made,) = record.passes
    assert [entry["node"] for entry in made.effect["gptq"]["layers"]] == ["last"]
    assert made.effect["quantized_weights"] == made.effect["total_weights"] == 4
    notes = {note.node: note.reason for note in made.notes}
    assert "several nodes" in notes["first"]
    assert "zero" in notes["dead"]


def test_too_few_rows_are_noted(tmp_path):
    made, _, _ = quantized(layer(rows=640), lambda seed: {"x": inputs(100, 640, seed)}, tmp_path)
    assert any("less than the width" in note.reason for note in made.notes)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    x = inputs(100, 96)
    x[3, 4] = np.nan
    path = builders.save(layer(), tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match="NaN"):
        optimize_file(path, tmp_path / "o.onnx", [QuantizeWeights(bits=4)], data={"x": np.concatenate([x] * 3)})


def test_groups_of_layers_give_what_all_give_together(tmp_path, monkeypatch):
    """Gram matrices that do not fit the budget together are made one after the other."""
    moments = importlib.import_module("onnxcomp.activations.moments")
    model = load(builders.save(builders.mlp(width=64), tmp_path / "m.onnx"))
    data = Batches({"x": np.abs(builders.samples(400, 16))}, signature(model).inputs)
    files = []
    for budget in (1 << 30, 1):
        monkeypatch.setattr(moments.observe_moments, "__kwdefaults__", {"store": None, "budget": budget})
        done = optimize(model, [QuantizeWeights(bits=4)], data=data)
        assert done.passes[0].effect["gptq"]["of"] == 2
        files.append(ir.to_proto(done.model).SerializeToString())
    assert files[0] == files[1]


_PROGRAM = """
import hashlib, numpy as np
from test_rounding import gram_of, inputs
from onnxcomp.passes.quantize import rounding
gram = gram_of(inputs(1500, 601))
known = rounding.feedback(gram)
matrix = np.random.default_rng(0).standard_normal((300, 601)).astype(np.float32)
form = {"bits": 4, "size": 32, "symmetric": False, "search": True}
made = rounding._Rounding(matrix, known, 4, 32)
made.run(symmetric=False, search=True)
arrays = (known.columns, known.costs, made.wanted, made.scales, made.numbers)
print([hashlib.sha256(a.tobytes()).hexdigest()[:16] for a in arrays], rounding.loss(matrix, gram, known, **form))
"""


def test_the_same_bytes_on_any_number_of_threads():
    """Of BLAS: at this width its own products, and LAPACK's factors, differ."""
    program = f"import sys; sys.path[:0] = {[str(Path(f).parent) for f in (__file__, builders.__file__)]}\n{_PROGRAM}"
    found = set()
    for threads in ("1", "2"):
        settings = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1, found


def test_a_real_text_model(shared, tmp_path):
    model = load(shared / "models/snips_transformer.onnx")
    data = Batches(real_data.snips_calibration(shared / "data"), signature(model).inputs)
    arrays, real = real_data.samples("snips_transformer", shared)
    assert real
    feeds = {"ids": arrays["ids"][:300]}

    def outputs(file):
        return next(iter(runtime.open_session(file).run(feeds).values())).astype(np.float64)

    want, errors = outputs(shared / "models/snips_transformer.onnx"), []
    for on in (False, True):
        done = optimize(model, [QuantizeWeights(bits=4, op_types=("MatMul", "Gemm"), gptq=on)], data=data)
        file = tmp_path / f"{on}.onnx"
        file.write_bytes(ir.to_proto(done.model).SerializeToString())
        errors.append(np.square(outputs(file) - want).sum())
    assert done.passes[0].effect["gptq"]["weights"] > 4
    assert errors[1] < 0.6 * errors[0]
