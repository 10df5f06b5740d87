"""Second moments: equal to numpy's and torch's unfolded patches, in bounded pieces, the same on any threads."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import tracemalloc

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxcomp.activations import Moments, moments_of, observe_moments, store
from onnxcomp.activations.exact import bits_for, on_grid
from onnxcomp.activations.window import Window, window_of
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError, UnsupportedError
from onnxcomp.model import load, signature

MODULE = importlib.import_module("onnxcomp.activations.moments")


def assert_moments(made, rows):
    """`rows`: (rows, groups, width)."""
    rows = np.asarray(rows, np.float64)
    gram = np.einsum("ngi,ngj->gij", rows, rows)
    sizes = np.sqrt(np.einsum("gii->gi", gram))
    assert np.abs(made.gram - gram).max() <= 1e-6 * (sizes[:, :, None] * sizes[:, None]).max()
    assert np.all(np.abs(made.gram - gram) <= 1e-5 * sizes[:, :, None] * sizes[:, None] + 1e-12)
    assert np.array_equal(made.gram, made.gram.swapaxes(1, 2))
    np.testing.assert_allclose(made.total, rows.sum(0), atol=1e-5 * np.abs(rows).sum(0).max())
    assert made.count == len(rows)


def test_rows_of_batches_of_different_shapes(monkeypatch):
    monkeypatch.setattr(MODULE, "_ROWS", 16)
    generator = np.random.default_rng(0)
    batches = [generator.standard_normal(shape).astype(np.float32) for shape in [(4, 9, 6), (50, 6), (0, 6), (6,)]]
    batches[0][..., 2] *= 1000  # an outlier must not coarsen the others
    made = Moments()
    for batch in batches:
        made.update(batch)
    assert_moments(made, np.concatenate([b.reshape(-1, 1, 6) for b in batches]))


def windows():
    """(channels, size, window): groups, strides, dilations, pads of two lengths."""
    return [
        (4, (9, 7), Window((3, 2), (2, 1), (1, 2), ((1, 0), (2, 1)), None, 2)),
        (6, (8, 8), Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), None, 6)),
        (3, (11, 5), Window((1, 1), (2, 3), (1, 1), ((0, 0), (0, 0)))),
        (2, (10, 13), Window((3, 5), (3, 2), (2, 1), ((0, 3), (2, 0)))),
    ]


@pytest.mark.parametrize("limit", [2048, 24, 3])
@pytest.mark.parametrize("case", range(4))
def test_patches_are_those_that_torch_unfolds(case, limit, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(MODULE, "_ROWS", limit)
    channels, size, window = windows()[case]
    image = builders.samples(5, channels, *size).astype(np.float32)
    (top, bottom), (left, right) = window.pads
    padded = torch.nn.functional.pad(torch.from_numpy(image), (left, right, top, bottom))
    columns = torch.nn.functional.unfold(padded, window.kernel, dilation=window.dilations, stride=window.strides)
    rows = columns.permute(0, 2, 1).reshape(-1, window.groups, columns.shape[1] // window.groups)
    made = Moments(window)
    made.update(image[:2])
    made.update(image[2:])
    assert_moments(made, rows.numpy())


@pytest.mark.parametrize("case", range(4))
def test_patches_times_the_weight_are_the_convolution(case):
    torch = pytest.importorskip("torch")
    channels, size, window = windows()[case]
    image = builders.samples(2, channels, *size).astype(np.float32)
    weight = builders.samples(2 * window.groups, channels // window.groups, *window.kernel, seed=1).astype(np.float32)
    (top, bottom), (left, right) = window.pads
    padded = torch.nn.functional.pad(torch.from_numpy(image), (left, right, top, bottom))
    want = torch.nn.functional.conv2d(
        padded, torch.from_numpy(weight), None, window.strides, 0, window.dilations, window.groups
    ).numpy()
    made = Moments(window)
    made.update(image)
    matrix = weight.reshape(window.groups, 2, -1)
    square = np.einsum("goi,gij,goj->go", matrix, made.gram, matrix).reshape(-1)
    np.testing.assert_allclose(square, np.square(want).sum((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(("auto", "before", "after"), [("SAME_UPPER", 1, 2), ("SAME_LOWER", 2, 1), ("VALID", 0, 0)])
def test_automatic_pads(auto, before, after, tmp_path):
    """Kernel 4 with stride 1 lacks three positions; one axis, and the kernel's shape only from the weight."""
    proto = builders.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", auto_pad=auto)],
        [builders.value("x", "batch", 3, 11)],
        [builders.value("y", "batch", 5, "length")],
        [builders.weight("w", 5, 3, 4)],
    )
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    (node,) = model.graph
    x = builders.samples(6, 3, 11)
    data = Batches({"x": x}, signature(model).inputs, batch_size=4)
    ((found,),) = [list(part.items()) for part in observe_moments(model, data, {node: 12}, workdir=tmp_path)]
    padded = np.pad(x, ((0, 0), (0, 0), (before, after)))
    rows = [padded[n, :, i : i + 4].reshape(1, -1) for n in range(6) for i in range(padded.shape[2] - 3)]
    assert found[0] is node
    assert_moments(found[1], rows)


def test_a_conv_over_two_axes_of_which_one_is_shrunk(tmp_path):
    assert window_of(conv(auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3])).same == "upper"
    window = Window((3, 3), (2, 2), (1, 1), ((0, 0), (0, 0)), "lower")
    assert window.patches(np.zeros((1, 2, 7, 8))).shape == (1, 4, 4, 1, 2, 3, 3)
    image = np.ones((1, 2, 5, 5))
    plain = Window((2, 2), (1, 1), (1, 1), ((0, 0), (0, 0)))
    assert np.shares_memory(plain.patches(image), image)


def conv(**attributes):
    values = [ir.Value(name="x"), ir.Value(name="w")]
    return ir.node("Conv", values, attributes, name="conv")


def test_what_has_no_rows_is_refused():
    x, w = ir.Value(name="x"), ir.Value(name="w")
    with pytest.raises(UnsupportedError, match="transA"):
        moments_of(ir.node("Gemm", [x, w], {"transA": 1}, name="g"))
    with pytest.raises(UnsupportedError, match="Gather"):
        moments_of(ir.node("Gather", [x, w]))
    with pytest.raises(UnsupportedError, match="kernel"):
        moments_of(conv())


def test_memory_is_that_of_pieces_and_not_of_all_patches():
    image = np.ones((4, 16, 128, 128), np.float32)
    made = Moments(Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))))
    tracemalloc.start()
    made.update(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    unfolded = 4 * 128 * 128 * 16 * 9 * 4
    assert peak < unfolded / 3
    assert made.count == 4 * 128 * 128


@pytest.fixture
def shared_input(tmp_path):
    """x -> Relu -> r; r times three matrices, one of them by Gemm; r + r through one more."""
    proto = builders.model(
        [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "wq"], ["q"], name="q"),
            helper.make_node("MatMul", ["r", "wk"], ["k"], name="k"),
            helper.make_node("Gemm", ["r", "wv"], ["v"], name="v", transB=1),
            helper.make_node("Add", ["q", "k"], ["s"], name="add"),
            helper.make_node("MatMul", ["s", "wo"], ["o"], name="o"),
        ],
        [builders.value("x", "batch", 16)],
        [builders.value("o", "batch", 8), builders.value("v", "batch", 8)],
        [builders.weight(n, *s) for n, s in (("wq", (16, 12)), ("wk", (16, 12)), ("wv", (8, 16)), ("wo", (12, 8)))],
    )
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    nodes = {n.name: n for n in model.graph}
    x = builders.samples(50, 16)
    return model, Batches({"x": x}, signature(model).inputs, batch_size=8), nodes, x


def test_a_tensor_of_several_nodes_is_taken_in_once(shared_input, tmp_path):
    model, data, nodes, x = shared_input
    widths = {nodes["q"]: 16, nodes["k"]: 16, nodes["v"]: 16, nodes["o"]: 12}
    parts = list(observe_moments(model, data, widths, workdir=tmp_path))
    assert len(parts) == 1
    (found,) = parts
    assert found[nodes["q"]] is found[nodes["k"]] is found[nodes["v"]]
    assert_moments(found[nodes["v"]], np.maximum(x, 0)[:, None])
    # two matrices of 16 and one of 12 do not fit the budget together; the second pass gives the same
    split = list(observe_moments(model, data, widths, workdir=tmp_path, budget=8 * 16 * 16))
    assert [len(part) for part in split] == [3, 1]
    assert split[1][nodes["o"]].gram.tobytes() == found[nodes["o"]].gram.tobytes()


def test_progress_is_that_of_all_passes(shared_input, tmp_path, monkeypatch):
    model, data, nodes, _ = shared_input
    said = []
    observing = importlib.import_module("onnxcomp.activations.observe")
    monkeypatch.setattr(observing.worker, "report", lambda _, share: said.append(share))
    list(observe_moments(model, data, {nodes["q"]: 16, nodes["o"]: 12}, workdir=tmp_path, budget=1))
    assert said == sorted(said)
    assert said[-1] == 1
    assert said[len(said) // 2 - 1] == 0.5


def test_kept_between_runs(shared_input, tmp_path, monkeypatch):
    model, data, nodes, _ = shared_input
    widths, kept = {nodes["q"]: 16, nodes["o"]: 12}, tmp_path / "kept"
    (first,) = observe_moments(model, data, widths, workdir=tmp_path, store=kept)
    monkeypatch.setattr(Moments, "update", lambda *_: pytest.fail("observed again"))
    (again,) = observe_moments(model, data, widths, workdir=tmp_path, store=kept)
    for node, moments in first.items():
        assert again[node].gram.tobytes() == moments.gram.tobytes()
        assert again[node].count == moments.count


def test_an_interrupted_observation_goes_on_to_the_same_bytes(shared_input, tmp_path, monkeypatch):
    model, data, nodes, _ = shared_input
    widths, kept = {nodes["q"]: 16}, tmp_path / "kept"
    monkeypatch.setattr(store, "_EVERY", 0)
    (whole,) = observe_moments(model, data, widths, workdir=tmp_path)
    update, left = Moments.update, [3]

    def interrupted(self, array):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        update(self, array)

    monkeypatch.setattr(Moments, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(observe_moments(model, data, widths, workdir=tmp_path, store=kept))
    left[0] = len(list(data)) - 3
    (again,) = observe_moments(model, data, widths, workdir=tmp_path, store=kept)
    assert again[nodes["q"]].gram.tobytes() == whole[nodes["q"]].gram.tobytes()


def test_what_is_not_finite_is_refused(shared_input, tmp_path):
    model, _, nodes, x = shared_input
    x[7, 3] = np.inf
    data = Batches({"x": x}, signature(model).inputs)
    with pytest.raises(CalibrationError, match="sample 7"):
        list(observe_moments(model, data, {nodes["q"]: 16}, workdir=tmp_path))


def test_sums_on_a_grid_are_exact():
    """In whatever order: the products are whole numbers of one step, and their sums fit float64."""
    generator = np.random.default_rng(0)
    for terms in (128, 2048):
        x = generator.standard_normal((terms, 3)).astype(np.float32) * np.float32([1e-20, 1, 1e20])
        made = on_grid(x, 0, terms)
        peak = np.abs(x).max(0)
        assert np.all(np.abs(made - x) <= peak * 2.0 ** -bits_for(terms))
        for _ in range(3):
            order = generator.permutation(terms)
            assert np.array_equal((made[order].T * 1.0) @ made[order], made.T @ made)
            assert np.array_equal(np.cumsum(made[order] * made[order], axis=0)[-1], np.diag(made.T @ made))
    assert np.array_equal(on_grid(np.zeros((4, 2)), 0, 4), np.zeros((4, 2)))


_PROGRAM = """
import hashlib, numpy as np
from onnxcomp.activations import Moments
made = Moments()
for seed in range(3):
    made.update(np.random.default_rng(seed).standard_normal((1500, 301)).astype(np.float32))
print(hashlib.sha256(made.gram.tobytes() + made.total.tobytes()).hexdigest())
"""


def test_the_same_bytes_on_any_number_of_threads():
    found = set()
    for threads in ("1", "2", "3"):
        settings = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], env={**os.environ, **settings}, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert len(found) == 1
    assert len(found.pop()) == len(hashlib.sha256().hexdigest())
