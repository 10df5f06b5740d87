"""Students: graphs, pruned ones, int8 ones, and torch modules; outputs that do not belong together."""

from __future__ import annotations

import pickle
from pathlib import Path

import builders
import distill_samples
import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxcomp import model as models
from onnxcomp.errors import DataError, UnsafeModelError, UnsupportedError, UsageError
from onnxcomp.evaluate import evaluate
from onnxcomp.passes import PruneStructured, QuantizeDynamic, QuantizeStatic, QuantizeWeights
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch import distill
from onnxcomp.pytorch.distillation.quantized import fold, unfold
from onnxcomp.runtime import open_session

MODULES = Path(__file__).with_name("distill_samples.py")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    distill_samples.teacher(folder)
    distill_samples.student(folder)
    np.savez(folder / "data.npz", **distill_samples.samples(folder / "teacher.onnx"))
    np.savez(folder / "x.npz", x=builders.samples(64, 16))
    return folder


def run(place, student, output, **options):
    options = {"epochs": 3, "batch": 20, "lr": 0.02, **options}
    data = options.pop("data", place / "data.npz")
    return distill(options.pop("teacher", place / "teacher.onnx"), student, data, output, **options)


def improved(done):
    history = done.trained.history
    return history[done.trained.best]["validation"]["loss"] < history[0]["validation"]["loss"]


def test_a_graph_keeps_all_but_its_weights(place, tmp_path):
    source = place / "student8.onnx"
    done = run(place, source, tmp_path / "out.onnx")
    before, after = models.load(source), models.load(tmp_path / "out.onnx")
    assert [(n.op_type, n.name) for n in before.graph] == [(n.op_type, n.name) for n in after.graph]
    assert models.signature(before) == models.signature(after)
    assert done.elements == (8 * 16 + 8 + 10 * 8 + 10,) * 2
    for name, value in before.graph.initializers.items():
        assert not np.array_equal(value.const_value.numpy(), after.graph.initializers[name].const_value.numpy()), name


def test_a_model_in_memory_is_a_student_and_stays_as_it_is(place, tmp_path):
    model = models.load(place / "student8.onnx")
    before = ir.to_proto(model).SerializeToString()
    done = run(place, model, tmp_path / "memory.onnx")
    run(place, place / "student8.onnx", tmp_path / "file.onnx")
    assert done.student["path"] is None
    assert ir.to_proto(model).SerializeToString() == before
    assert (tmp_path / "memory.onnx").read_bytes() == (tmp_path / "file.onnx").read_bytes()


def test_a_pruned_graph_recovers(place, tmp_path):
    """Half of the neurons gone: fine-tuned by the teacher that it was cut from, it agrees more."""
    cut = tmp_path / "cut.onnx"
    optimize_file(place / "teacher.onnx", cut, [PruneStructured(sparsity=0.5, align=1)], data=place / "x.npz")
    done = run(place, cut, tmp_path / "out.onnx", epochs=10)
    history = done.trained.history
    assert history[done.trained.best]["validation"]["loss"] < 0.5 * history[0]["validation"]["loss"]
    assert done.output.bytes == pytest.approx(cut.stat().st_size, rel=0.02)


def cnn(place):
    """A net with BatchNormalization, another with the same nodes, and samples."""
    teacher = builders.save(builders.cnn(), place / "cnn.onnx")
    proto = builders.cnn()
    for i, tensor in enumerate(proto.graph.initializer):
        if tensor.name in ("k1", "k2", "w"):
            tensor.CopyFrom(builders.weight(tensor.name, *tensor.dims, seed=3 + i))
    return teacher, builders.save(proto, place / "cnn_student.onnx"), {"image": builders.samples(120, 3, 8, 8)}


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_move_unless_frozen(place, tmp_path, frozen):
    teacher, student, data = cnn(place)
    done = run(place, student, tmp_path / "out.onnx", teacher=teacher, data=data, freeze_statistics=frozen)
    before, after = (
        models.load(path).graph.initializers["mean"].const_value for path in (student, tmp_path / "out.onnx")
    )
    assert np.array_equal(before.numpy(), after.numpy()) == frozen
    assert improved(done)


def quantized(folder, **options):
    path = folder / "int8.onnx"
    optimize_file(folder / "student8.onnx", path, [QuantizeStatic(**options)], data=folder / "x.npz", force=True,
                  allow_larger=True)  # fmt: skip
    return path


@pytest.mark.parametrize("per_channel", [True, False])
def test_unfolded_and_folded_is_the_same_file(place, tmp_path, per_channel):
    """Before any training: integers become floats that round to the very same integers."""
    path = quantized(place, per_channel=per_channel)
    model = models.load(path)
    names = unfold(model)
    assert len(names) >= 4  # weights and biases
    assert not set(names) & set(model.graph.initializers)
    fold(model, names)
    one, two = models.load(path).graph, model.graph
    assert {n: v.const_value.numpy().tobytes() for n, v in one.initializers.items()} == {
        n: v.const_value.numpy().tobytes() for n, v in two.initializers.items()
    }
    assert [n.op_type for n in one] == [n.op_type for n in two]


def test_an_int8_graph_trains_in_int8(place, tmp_path):
    """The file has the nodes and types that it had, other integers, and answers as the trained module did."""
    path = quantized(place)
    done = run(place, path, tmp_path / "out.onnx", quantization_aware=True, epochs=5, metric="agreement")
    before, after = models.load(path), models.load(tmp_path / "out.onnx")
    assert [n.op_type for n in before.graph] == [n.op_type for n in after.graph]
    kinds = [{name: value.const_value.dtype for name, value in m.graph.initializers.items()} for m in (before, after)]
    assert kinds[0] == kinds[1]
    changed = [
        name
        for name, value in before.graph.initializers.items()
        if value.const_value.dtype == ir.DataType.INT8
        and not np.array_equal(value.const_value.numpy(), after.graph.initializers[name].const_value.numpy())
    ]
    assert len(changed) >= 2
    assert improved(done)
    best = done.trained.history[done.trained.best]["validation"]
    # rounding at a half may fall otherwise in ORT's kernels: at most one of 20 samples
    assert done.fidelity.agreement.value == pytest.approx(best["agreement"], abs=0.051)


def test_a_float_graph_is_quantized_for_it(place, tmp_path):
    done = run(place, place / "student8.onnx", tmp_path / "out.onnx", quantization_aware=True)
    types = {value.const_value.dtype for value in models.load(tmp_path / "out.onnx").graph.initializers.values()}
    assert ir.DataType.INT8 in types
    assert done.student["quantized_weights"] >= 4
    assert done.student["path"] == str(place / "student8.onnx")


def test_integers_are_not_trained_by_chance(place, tmp_path):
    with pytest.raises(UsageError, match="the student's weights are integers") as caught:
        run(place, quantized(place), tmp_path / "out.onnx")
    assert "--quantization-aware" in caught.value.hint


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeWeights()])
def test_integers_of_another_kind_are_refused(place, tmp_path, step):
    source = builders.save(builders.mlp(width=256), tmp_path / "big.onnx")
    path = tmp_path / "other.onnx"
    optimize_file(source, path, [step], allow_larger=True)
    with pytest.raises(UsageError, match="the student's weights are integers"):
        run(place, path, tmp_path / "out.onnx")
    with pytest.raises(UnsupportedError, match="no integer weights before DequantizeLinear"):
        run(place, path, tmp_path / "out.onnx", quantization_aware=True)


@pytest.mark.parametrize("name", ["Small", "Keyed"])
def test_a_torch_module_is_exported_in_the_end(place, tmp_path, name):
    done = run(place, f"{MODULES}:{name}", tmp_path / "out.onnx")
    signature = open_session(tmp_path / "out.onnx").signature
    assert [(spec.name, spec.shape[0]) for spec in signature.inputs] == [("x", "batch")]
    assert [spec.name for spec in signature.outputs] == ["y"]
    assert done.student["path"] == f"{MODULES}:{name}"
    best = done.trained.history[done.trained.best]["validation"]
    assert done.fidelity.agreement.value == pytest.approx(best["agreement"])


def test_a_module_in_memory_and_hints_by_path(place, tmp_path):
    module = distill_samples.Small()
    done = run(place, module, tmp_path / "out.onnx", hint=["h=first"])
    assert improved(done)
    module.eval()
    x = builders.samples(5, 16)
    got = open_session(tmp_path / "out.onnx").run({"x": x})["y"]
    np.testing.assert_allclose(got, module(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_hint_pulls_inner_tensors_together(place, tmp_path):
    """Of equal widths, without a projector: with a large weight the inner tensors are nearer."""
    student = distill_samples.student(tmp_path, width=32)
    hinted = [run(place, student, tmp_path / "a.onnx", epochs=5, hint=["h=h"], hint_weight=20.0)]
    hinted.append(run(place, student, tmp_path / "b.onnx", epochs=5))
    x = np.load(place / "data.npz")["x"]

    def inner(path):
        graph = models.load(path).graph
        w, b = (graph.initializers[n].const_value.numpy() for n in ("w1", "b1"))
        return x @ w.T + b

    far = [np.square(inner(d.output.path) - inner(place / "teacher.onnx")).mean() for d in hinted]
    assert far[0] < 0.5 * far[1]


@pytest.mark.parametrize(
    ("student", "options", "error", "text"),
    [
        ("Narrow", {}, UsageError, "shape .* of the student"),
        ("Foreign", {}, UsageError, "does not run on the teacher's inputs"),
        ("Small", {"hint": ["nothing=first"]}, UsageError, "makes this tensor"),
        ("Small", {"hint": ["h=nothing"]}, UsageError, "no such submodule"),
        ("Nothing", {}, UsageError, "has no 'Nothing'"),
        ("Small", {"quantization_aware": True}, UsageError, "is for ONNX students"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before(place, tmp_path, student, options, error, text):
    with pytest.raises(error, match=text):
        run(place, f"{MODULES}:{student}", tmp_path / "out.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_graphs_that_do_not_fit_are_refused_before(place, tmp_path):
    with pytest.raises(UsageError, match="the student's inputs are image, the teacher's x"):
        run(place, builders.save(builders.cnn(), tmp_path / "cnn.onnx"), tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="the graph has no such value"):
        run(place, place / "student8.onnx", tmp_path / "out.onnx", hint=["h=nothing"])
    assert not (tmp_path / "out.onnx").exists()


def test_a_batch_that_the_models_fix(place, tmp_path):
    """A batch of 4: steps are whole runs, what does not fill one is left out, and one by one is parts of a step."""
    protos = {}
    for name, size in (("teacher", 4), ("student8", 4)):
        proto = models.read_proto(place / f"{name}.onnx")
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size
        protos[name] = builders.save(proto, tmp_path / f"{name}.onnx")
    done = run(place, protos["student8"], tmp_path / "out.onnx", teacher=protos["teacher"], batch=10)
    assert done.trained.steps == 3 * (180 // 12)
    assert improved(done)


def test_labels_help_where_they_are_right(place, tmp_path):
    done = run(place, place / "student8.onnx", tmp_path / "out.onnx", labels_weight=0.5, metric="accuracy")
    history = done.trained.history
    assert history[done.trained.best]["validation"]["accuracy"] > history[0]["validation"]["accuracy"]
    score = evaluate(tmp_path / "out.onnx", place / "data.npz")
    assert score.value.value > 0.3


def torch_teacher(path, module=distill_samples.Plain):
    """The net of a file as a module with its weights."""
    weights = models.load(path).graph.initializers
    made = module()
    with torch.no_grad():
        for layer, number in ((made.first, 1), (made.second, 2)):
            layer.weight.copy_(torch.from_numpy(weights[f"w{number}"].const_value.numpy().copy()))
            layer.bias.copy_(torch.from_numpy(weights[f"b{number}"].const_value.numpy().copy()))
    return made


def test_a_torch_module_teaches_as_its_file_does(place, tmp_path):
    """The same losses and fidelity; the record says what it was, and eval mode is its own."""
    module = torch_teacher(place / "teacher.onnx").train()
    hints = {"hint": ["h=h"]}, {"hint": ["first=h"]}
    of_file = run(place, place / "student8.onnx", tmp_path / "a.onnx", **hints[0])
    done = run(place, place / "student8.onnx", tmp_path / "b.onnx", teacher=module, **hints[1])
    for ours, theirs in zip(done.trained.history, of_file.trained.history, strict=True):
        assert ours["validation"]["loss"] == pytest.approx(theirs["validation"]["loss"], rel=1e-4)
    assert done.fidelity.agreement.value == of_file.fidelity.agreement.value
    assert not module.training
    record = done.to_json()["input"]
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    assert (record["kind"], record["path"], record["bytes"]) == ("torch", "Plain", size)
    assert of_file.to_json()["input"]["kind"] == "onnx"
    with torch.no_grad():
        module.first.bias.add_(1)
    other = run(place, place / "student8.onnx", tmp_path / "c.onnx", teacher=module, **hints[1])
    assert other.to_json()["input"]["sha256"] != record["sha256"]


def test_a_module_teaches_a_module(place, tmp_path):
    """Neither is a file: the samples say what both take."""
    done = run(place, f"{MODULES}:Small", tmp_path / "b.onnx", teacher=f"{MODULES}:Keyed", cache=tmp_path / "cache")
    assert improved(done)
    assert done.to_json()["input"]["path"] == f"{MODULES}:Keyed"
    (output,) = models.signature(models.load(done.output.path)).outputs
    assert output.name == "y"


@pytest.mark.parametrize(
    ("teacher", "options", "error", "text"),
    [
        ("Foreign", {}, UsageError, "does not run on the samples"),
        ("Foreign", {"student": "Small"}, DataError, r"takes image, the samples hold x"),
        ("Narrow", {}, UsageError, r"shape .*10\) of the student, .*5\) of the teacher"),
        ("Plain", {"hint": ["nothing=h"]}, UsageError, "no such submodule"),
        ("Plain", {"data": "random:50"}, DataError, "needs real data"),
        ("Noisy", {}, UnsupportedError, "answers differently"),
    ],
)
def test_a_module_that_cannot_teach_is_refused_before(place, tmp_path, teacher, options, error, text):
    options = dict(options)
    student = options.pop("student", None)
    student = place / "student8.onnx" if student is None else f"{MODULES}:{student}"
    with pytest.raises(error, match=text):
        run(place, student, tmp_path / "out.onnx", teacher=f"{MODULES}:{teacher}", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_student_is_not_its_own_teacher(place, tmp_path):
    module = distill_samples.Small()
    with pytest.raises(UsageError, match="its own teacher"):
        run(place, module, tmp_path / "out.onnx", teacher=module)


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.pkl"])
def test_pickles_are_never_read(place, tmp_path, who, name):
    """Reading this one would leave a file behind."""
    (tmp_path / name).write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    chosen = {"teacher": place / "teacher.onnx", "student": place / "student8.onnx", who: str(tmp_path / name)}
    with pytest.raises(UnsafeModelError, match="a pickled module is never read"):
        distill(chosen["teacher"], chosen["student"], place / "data.npz", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [name]


class Trap:
    """A pickle that runs code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
