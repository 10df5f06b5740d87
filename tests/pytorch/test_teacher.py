"""Teachers: ONNX Runtime and torch give the same, inner tensors by name, nothing random, one batch ahead."""

from __future__ import annotations

import os
import threading

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import real_data
import torch
from onnx import TensorProto, helper
from torch import nn

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import DataError, InvalidModelError, ProviderError, UnsupportedError, UsageError
from onnxcomp.pytorch import GraphModule
from onnxcomp.pytorch.distillation.ahead import ahead
from onnxcomp.pytorch.distillation.hints import Taps, exposed
from onnxcomp.pytorch.distillation.teacher import OrtTeacher, TorchTeacher

#: real models with hints in the middle of each
REAL = {
    "snips_transformer": ("softmax", "layer_norm_2"),
    "mlperftiny_resnet8_cifar10": (),
    "osf_mnv3_detection_opt": (),
    "tribuo_tinybert": (),
}


def by_ort(proto, feeds, wanted):
    augmented = onnx.ModelProto()
    augmented.CopyFrom(proto)
    there = {value.name for value in proto.graph.output}
    augmented.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in wanted if n not in there)
    session = ort.InferenceSession(augmented.SerializeToString())
    return dict(zip(wanted, session.run(list(wanted), feeds), strict=True))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", REAL)
def test_onnx_runtime_and_torch_are_the_same_teacher(name, shared):
    path = shared / "models" / f"{name}.onnx"
    arrays, _ = real_data.samples(name, shared)
    batch = dict(next(iter(Batches(arrays, models.signature(models.load(path)).inputs, batch_size=4))).feeds)
    live = OrtTeacher(path, REAL[name])
    torches = TorchTeacher(GraphModule(path), inputs=tuple(batch), hints=REAL[name])
    assert live.names == torches.names
    found, expected = live.outputs(batch), torches.outputs(batch)
    assert tuple(found) == live.names
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert (tensor - expected[key]).abs().max() <= 1e-5 * expected[key].abs().max()


def test_inner_tensors_are_those_of_the_graph(tmp_path):
    proto = builders.cnn()
    path = builders.save(proto, tmp_path / "m.onnx")
    before = path.read_bytes()
    teacher = OrtTeacher(path, ("n1", "s", "scores"))
    batch = {"image": builders.samples(6, 3, 8, 8)}
    assert teacher.names == ("scores", "n1", "s")
    expected = by_ort(proto, batch, teacher.names)
    for name, tensor in teacher.outputs(batch).items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize(
    ("wrong", "hint"), [("layer_norm1", "did you mean 'layer_norm_1'?"), ("zz", "there are val_2, matmul")]
)
def test_a_misspelt_hint_has_a_nearest_name(wrong, hint, shared):
    with pytest.raises(UsageError, match=wrong) as caught:
        OrtTeacher(shared / "models/snips_transformer.onnx", ("softmax", wrong))
    assert hint in caught.value.hint


def test_inputs_weights_and_branches_are_no_hints(tmp_path):
    path = builders.save(builders.branch(), tmp_path / "m.onnx")
    for name in ("x", "outer", "t"):
        with pytest.raises(UsageError, match="main graph"):
            OrtTeacher(path, (name,))


def test_weights_in_a_file_of_their_own_are_not_copied(tmp_path):
    proto = builders.mlp(width=512)
    batch = {"x": builders.samples(3, 16)}
    expected = by_ort(proto, batch, ("y", "h"))
    path = builders.externalize(proto, tmp_path)
    with exposed(path, ("h",)) as file:
        assert file != path
        assert file.stat().st_size < 2000 < (tmp_path / "weights.data").stat().st_size
    assert names(tmp_path) == ["model.onnx", "weights.data"]
    found = OrtTeacher(path, ("h",)).outputs(batch)
    assert names(tmp_path) == ["model.onnx", "weights.data"]
    for name, array in expected.items():
        np.testing.assert_allclose(found[name].numpy(), array, rtol=1e-5, atol=1e-6)


def test_a_folder_that_cannot_be_written_is_a_folder_to_read(tmp_path, monkeypatch):
    proto = builders.mlp()
    batch = {"x": builders.samples(3, 16)}
    expected = by_ort(proto, batch, ("h",))["h"]
    path = builders.externalize(proto, tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = OrtTeacher(path, ("h",)).outputs(batch)["h"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert names(tmp_path) == ["model.onnx", "weights.data"]


def test_errors_name_the_users_file(tmp_path):
    broken = builders.mlp()
    broken.graph.node[1].op_type = "Gemm"  # one input where it needs two
    path = builders.save(broken, tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError) as caught:
        OrtTeacher(path, ("h",))
    assert str(caught.value.where) == str(path)
    teacher = OrtTeacher(builders.save(builders.mlp(), path), ("h",))
    with pytest.raises(DataError, match=str(path)):
        teacher.outputs({"x": builders.samples(3, 15)})


def test_more_than_the_inputs_may_be_there_but_not_less(tmp_path):
    teacher = OrtTeacher(builders.save(builders.two_inputs(), tmp_path / "m.onnx"))
    assert teacher.inputs == ("a", "mask")
    batch = {"a": builders.samples(3, 4), "mask": np.ones((3, 4), np.int64), "labels": np.zeros(3)}
    assert tuple(teacher.outputs(batch)) == ("y",)
    with pytest.raises(DataError, match="no such input of the teacher") as caught:
        teacher.outputs({"a": batch["a"], "masks": batch["mask"]})
    assert caught.value.hint == "did you mean 'masks'?"


def fixed(batch):
    proto = builders.mlp()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return proto


def test_a_fixed_batch_is_run_in_turns(tmp_path):
    batch = {"x": builders.samples(6, 16)}
    whole = OrtTeacher(builders.save(builders.mlp(), tmp_path / "m.onnx")).outputs(batch)["y"]
    for size in (1, 2, 6):
        teacher = OrtTeacher(builders.save(fixed(size), tmp_path / f"{size}.onnx"))
        torch.testing.assert_close(teacher.outputs(batch)["y"], whole)
    with pytest.raises(DataError, match="6 samples for a teacher whose batch is fixed at 4") as caught:
        OrtTeacher(builders.save(fixed(4), tmp_path / "4.onnx")).outputs(batch)
    assert "that 4 divides" in caught.value.hint


def with_tail(node, dtype):
    proto = builders.mlp()
    proto.graph.node.append(node)
    proto.graph.output.append(builders.value(node.output[0], dtype=dtype))
    del proto.graph.output[-1].type.tensor_type.shape.dim[:]
    proto.graph.output[-1].type.tensor_type.ClearField("shape")
    return proto


def test_half_precision_comes_as_float32(tmp_path):
    node = helper.make_node("Cast", ["y"], ["half"], to=TensorProto.FLOAT16)
    teacher = OrtTeacher(builders.save(with_tail(node, TensorProto.FLOAT16), tmp_path / "m.onnx"))
    found = teacher.outputs({"x": builders.samples(3, 16)})
    assert found["half"].dtype == torch.float32
    torch.testing.assert_close(found["half"], found["y"], rtol=1e-3, atol=1e-3)


def test_class_numbers_are_nothing_to_learn_from(tmp_path):
    node = helper.make_node("ArgMax", ["y"], ["class"], axis=1)
    proto = with_tail(node, TensorProto.INT64)
    path = builders.save(proto, tmp_path / "m.onnx")
    assert OrtTeacher(path).names == ("y",)
    with pytest.raises(UnsupportedError, match="a hint of type int64"):
        OrtTeacher(path, ("class",))
    del proto.graph.output[0]
    with pytest.raises(UnsupportedError, match="no float output"):
        OrtTeacher(builders.save(proto, path))


@pytest.mark.skipif("cuda" in runtime.available_providers(), reason="this build has CUDA")
def test_a_provider_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ProviderError):
        OrtTeacher(builders.save(builders.mlp(), tmp_path / "m.onnx"), provider="cuda")


def test_the_hash_is_that_of_the_weights_wherever_they_lie(tmp_path):
    proto = builders.mlp()
    (tmp_path / "a").mkdir()
    path = builders.externalize(proto, tmp_path / "a")
    first = OrtTeacher(path).sha256
    assert OrtTeacher(path, ("h",)).sha256 == first
    data = tmp_path / "a/weights.data"
    data.write_bytes(data.read_bytes()[::-1])
    assert OrtTeacher(path).sha256 != first


class Net(nn.Module):
    def __init__(self, forced=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.cell = nn.LSTM(4, 5, batch_first=True)
        self.forced = forced

    def forward(self, image):
        features = self.stem(image).mean((2, 3))
        features = nn.functional.dropout(features, 0.5, training=self.forced)
        states, _ = self.cell(features[:, None])
        return {"features": features, "states": states}


def test_a_torch_teacher_stands_still():
    """In train mode before, between and after: nothing random, no statistics that move, no gradient."""
    torch.manual_seed(0)
    net = Net()
    batch = {"image": builders.samples(5, 3, 8, 8), "labels": np.zeros(5)}
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(batch["image"]))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    teacher = TorchTeacher(net, inputs=("image",), outputs=("features",))
    for _ in range(2):
        net.train()
        found = teacher.outputs(batch)
        assert list(found) == ["features"]
        torch.testing.assert_close(found["features"], expected["features"], rtol=0, atol=0)
        assert not found["features"].requires_grad
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_noise_that_eval_mode_does_not_stop_is_refused():
    teacher = TorchTeacher(Net(forced=True), inputs=("image",), outputs=("features",))
    with pytest.raises(UnsupportedError, match="differently to the same batch"):
        teacher.outputs({"image": builders.samples(5, 3, 8, 8)})


def test_hints_of_a_torch_teacher_are_paths():
    net = Net().eval()
    teacher = TorchTeacher(net, inputs=("image",), outputs=("states",), hints=("stem.0", "cell:0"))
    batch = {"image": builders.samples(5, 3, 8, 8)}
    found = teacher.outputs(batch)
    assert tuple(found) == teacher.names == ("states", "stem.0", "cell:0")
    torch.testing.assert_close(found["cell:0"], found["states"])
    torch.testing.assert_close(found["stem.0"], net.stem[0](torch.from_numpy(batch["image"])).detach())
    with pytest.raises(UsageError, match=r"no such submodule \(stem.3\)"):
        TorchTeacher(net, inputs=("image",), outputs=("states",), hints=("stem.3",))
    whole = TorchTeacher(net, inputs=("image",), outputs=("states",), hints=("cell",))
    with pytest.raises(UnsupportedError, match="tuple, not a tensor") as caught:
        whole.outputs(batch)
    assert "'cell:0'" in caught.value.hint


def test_outputs_of_a_torch_teacher_have_names():
    net = nn.Linear(4, 2)
    batch = {"x": builders.samples(3, 4)}
    assert list(TorchTeacher(net, inputs=("x",), outputs=("y",)).outputs(batch)) == ["y"]
    with pytest.raises(UsageError, match="1 tensors, not 2"):
        TorchTeacher(net, inputs=("x",), outputs=("y", "z")).outputs(batch)
    with pytest.raises(UsageError, match="nothing of this name"):
        TorchTeacher(Net(), inputs=("image",), outputs=("scores",)).outputs({"image": builders.samples(2, 3, 8, 8)})
    with pytest.raises(UsageError, match="names of its inputs and outputs"):
        TorchTeacher(net, inputs=("x",))


def test_taps_leave_the_module_as_it_was():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with Taps(net, ("0",)) as taps:
        loss = net(torch.ones(2, 4)).sum()
        found = taps.take()
        assert found["0"].requires_grad
        assert taps.take() == {}
    loss.backward()
    net(torch.ones(2, 4))
    assert taps.take() == {}
    assert not net[0]._forward_hooks


class Recorded:
    """A teacher that says when it is asked."""

    names, inputs, sha256 = ("y",), ("x",), ""

    def __init__(self, fails_at=None):
        self.asked = [threading.Event() for _ in range(5)]
        self.fails_at = fails_at

    def outputs(self, batch):
        number = int(batch["x"][0])
        self.asked[number].set()
        if number == self.fails_at:
            raise DataError("this batch is odd")
        return {"y": torch.from_numpy(batch["x"]) * 2}


def numbers(count=5, fails_at=None):
    for number in range(count):
        if number == fails_at:
            raise OSError("the disk is gone")
        yield {"x": np.array([float(number)])}


def thread_is_there():
    return any(thread.name.startswith("teacher") for thread in threading.enumerate())


def test_the_next_answer_is_made_meanwhile_and_no_more():
    teacher = Recorded()
    found = []
    for batch, answers in ahead(teacher, numbers()):
        found.append((batch["x"].item(), answers["y"].item()))
        if len(found) < 5:
            assert teacher.asked[len(found)].wait(20)
        assert not any(event.is_set() for event in teacher.asked[len(found) + 1 :])
    assert found == [(i, 2 * i) for i in range(5)]
    assert not thread_is_there()
    assert list(ahead(teacher, [])) == []


@pytest.mark.parametrize(
    ("teacher", "batches", "error"),
    [(Recorded(fails_at=2), numbers(), DataError), (Recorded(), numbers(fails_at=2), OSError)],
)
def test_errors_come_in_their_turn(teacher, batches, error):
    stream = ahead(teacher, batches)
    assert [next(stream)[1]["y"].item() for _ in range(2)] == [0, 2]
    with pytest.raises(error):
        next(stream)
    assert not thread_is_there()


def test_closing_ends_the_thread():
    stream = ahead(Recorded(), numbers())
    next(stream)
    assert thread_is_there()
    stream.close()
    assert not thread_is_there()
