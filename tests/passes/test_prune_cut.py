"""Structured pruning: what the cut writes computes what the whole model does without the removed sums."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import onnx_ir as ir
import prune_graphs
import pytest
from onnx import numpy_helper
from test_prune_units import analysed

from onnxcomp.data import Batches
from onnxcomp.errors import AccuracyGateError, GateError
from onnxcomp.model import load, signature, write_to
from onnxcomp.passes import PruneStructured
from onnxcomp.passes.prune import cut as cutting
from onnxcomp.passes.prune import equivalence
from onnxcomp.passes.prune.cut import Kept, cut, sliced
from onnxcomp.pipeline import optimize
from onnxcomp.runtime import open_session


def half(analysis):
    """Every other unit of each group goes."""
    return Kept.without(analysis, np.concatenate([group.units[1::2] for group in analysis.groups]))


def with_zeros(proto, kept):
    """The whole model, the removed part of each weight that sums over units zero: by numpy, in the stored arrays."""
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    for use in kept.analysis.atoms.uses:
        left = kept.indices(use.weight, use.weight_axis)
        if left is None:
            continue
        turned = use.weight.producer() is not None
        array = numpy_helper.to_array(stored[use.initializer]).copy()
        axis = 1 - use.weight_axis if turned else use.weight_axis
        away = np.setdiff1d(np.arange(array.shape[axis]), left)
        array[(slice(None),) * axis + (away,)] = 0
        stored[use.initializer].CopyFrom(numpy_helper.from_array(array, use.initializer))
    return result


def feeds(path):
    """Three runs of two samples."""
    inputs = signature(load(path)).inputs
    sizes = dict.fromkeys((d for spec in inputs for d in (spec.shape or ())[1:] if isinstance(d, str)), 7)
    return [batch.feeds for batch in Batches("random:6", inputs, batch_size=2, sizes=sizes)]


@pytest.mark.parametrize("name", prune_graphs.CUT)
def test_a_cut_is_the_model_with_zeros(name, tmp_path):
    """Against zeros put into the file with numpy, where no weight is read twice; and the proof's own way always."""
    proto = prune_graphs.cut_graph(name)
    analysis = analysed(proto, tmp_path)
    kept = half(analysis)
    expected = builders.save(with_zeros(proto, kept), tmp_path / "zeros.onnx")
    masked = write_to(equivalence.masked(kept), tmp_path, "masked")
    sizes = kept.of_initializers()
    cut(kept)
    made = write_to(analysis.model, tmp_path, "cut")
    onnx.checker.check_model(onnx.load(made), full_check=True)
    stored = {t.name: list(t.dims) for t in onnx.load(made).graph.initializer}
    assert all(stored[n][axis] == len(left) for n, axes in sizes.items() for axis, left in axes.items())
    sessions = [open_session(path) for path in (expected, masked, made)]
    for feed in feeds(expected):
        outputs = [session.run(feed) for session in sessions]
        for key, whole in outputs[0].items():
            assert np.abs(outputs[2][key] - outputs[1][key]).max() <= 1e-5 * np.abs(whole).max()
            if name not in ("tied", "embedding"):
                assert np.abs(outputs[2][key] - whole).max() <= 1e-5 * np.abs(whole).max()
        assert any(np.abs(whole).max() > 0 for whole in outputs[0].values())


@pytest.mark.parametrize("name", prune_graphs.CUT)
def test_the_pass_proves_it(name, tmp_path):
    """Half of every group, any count, one unit at least of the smallest."""
    model = load(builders.save(prune_graphs.cut_graph(name), tmp_path / "m.onnx"))
    done = optimize(model, [PruneStructured(sparsity=0.5, align=1)])
    effect = done.passes[0].effect
    assert effect["equivalence_error"] <= 1e-5
    assert effect["removed_parameters"] > 0
    assert all(group["kept"] < group["units"] for group in effect["groups"])


def test_constant_nodes_are_weights(tmp_path):
    proto = prune_graphs.cut_graph("conv")
    tensor = next(t for t in proto.graph.initializer if t.name == "w1")
    node = onnx.helper.make_node("Constant", [], ["w1"], value=tensor)
    proto.graph.initializer.remove(tensor)
    proto.graph.node.insert(0, node)
    done = optimize(load(builders.save(proto, tmp_path / "m.onnx")), [PruneStructured(sparsity=0.5, align=1)])
    assert [g["kept"] for g in done.passes[0].effect["groups"]] == [4, 3]


def test_initializers_that_are_inputs(tmp_path):
    """IR 3 lists weights among the inputs; what comes out is IR 4, and checks."""
    path = builders.save(builders.as_old(prune_graphs.cut_graph("slice, opset 9")), tmp_path / "m.onnx")
    done = optimize(load(path), [PruneStructured(sparsity=0.5, align=1)])
    onnx.checker.check_model(onnx.load(write_to(done.model, tmp_path, "cut")), full_check=True)


def test_large_weights_are_sliced_when_they_are_written(monkeypatch):
    monkeypatch.setattr(cutting, "_LARGE", 100)
    array = np.arange(120, dtype=np.float32).reshape(10, 12)
    tensor = ir.tensor(array, name="w")
    lazy = sliced(tensor, {0: np.array([1, 5]), 1: np.array([0, 11])})
    assert isinstance(lazy, ir.LazyTensor)
    assert lazy.shape == (2, 2)
    assert lazy.numpy().tolist() == [[12, 23], [60, 71]]
    assert np.array_equal(tensor.numpy(), np.arange(120).reshape(10, 12))


@pytest.mark.parametrize("name", ["residual", "heads", "concat"])
def test_a_wrong_cut_is_not_published(name, monkeypatch, tmp_path):
    """The proof has eyes: weights of which the wrong half stays are refused."""
    model = load(builders.save(prune_graphs.cut_graph(name), tmp_path / "m.onnx"))

    def shifted(tensor, axes):
        wrong = {axis: (left + 1) % tensor.shape[axis] if axis == 0 else left for axis, left in axes.items()}
        array = tensor.numpy()
        for axis, left in wrong.items():
            array = array.take(left, axis)
        return ir.tensor(np.ascontiguousarray(array), name=tensor.name)

    monkeypatch.setattr(cutting, "sliced", shifted)
    with pytest.raises(AccuracyGateError, match="differs by"):
        optimize(model, [PruneStructured(sparsity=0.5, align=1)])


@pytest.mark.parametrize(
    ("op_type", "text"), [("Split", "does not run|cannot be checked"), ("Reshape", "does not run")]
)
def test_a_cut_that_does_not_run_is_not_published(op_type, text, monkeypatch, tmp_path):
    """Sizes that are written in the graph and were not written anew."""
    name = {"Split": "split in uneven parts", "Reshape": "heads beside the batch"}[op_type]
    model = load(builders.save(prune_graphs.cut_graph(name), tmp_path / "m.onnx"))
    monkeypatch.setattr(cutting, "_REWRITES", {k: v for k, v in cutting._REWRITES.items() if k != op_type})
    with pytest.raises(GateError, match=text):
        optimize(model, [PruneStructured(sparsity=0.5, align=1)])


def test_without_inputs_that_run_there_is_no_proof(tmp_path):
    """One input must be longer than the other, which made-up ones never are."""
    text = "(float[A,6] x, float[B,6] z) => (float[C,6] y) {a = MatMul (x, w1) r = Relu (a) b = MatMul (r, w2)"
    text += " s = Slice (b, one, end, zero) y = Sub (s, z)}"
    weights = {"w1": (6, 8), "w2": (8, 6), "one": np.array([2]), "end": np.array([99]), "zero": np.array([0])}
    model = load(builders.save(prune_graphs.build(text, weights), tmp_path / "m.onnx"))
    step = PruneStructured(sparsity=0.5, align=1)
    with pytest.raises(GateError, match="no made-up input runs"):
        optimize(model, [step])
    arrays = {"x": builders.samples(6, 4, 6), "z": builders.samples(6, 2, 6)}
    done = optimize(model, [step], data=Batches(arrays, signature(model).inputs))
    assert done.passes[0].effect["equivalence_error"] <= 1e-5


def test_float16_has_its_own_tolerance(tmp_path):
    proto = prune_graphs.cut_graph("tied")
    assert equivalence.tolerance(load(builders.save(proto, tmp_path / "m.onnx"))) == 1e-5
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    assert equivalence.tolerance(load(builders.save(proto, tmp_path / "m.onnx"))) == 1e-2


@pytest.mark.parametrize(("last", "probability"), [("Mul (s, s)", True), ("Add (s, tiny)", False)])
def test_small_probabilities_are_compared_as_probabilities(last, probability, tmp_path):
    """A Sigmoid of -14 is 1e-6, of which float32 kernels give no five digits; an error of 1 % there is none."""
    text = f"(float[N,4] x) => (float[N,4] y) {{a = Add (x, b) s = Sigmoid (a) m = {last} y = Reshape (m, same)}}"
    weights = {"same": np.array([-1, 4]), **({} if probability else {"tiny": np.float32(1e-12)})}
    pair = []
    for bias in (-14.0, -14.01):
        proto = prune_graphs.build(text, {**weights, "b": np.full(4, bias)})
        pair.append(load(builders.save(proto, tmp_path / "m.onnx")))
    found = equivalence.difference(*pair, None, tmp_path)
    assert found < 1e-6 if probability else found > 1e-3
