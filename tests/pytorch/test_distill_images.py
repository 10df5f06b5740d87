"""Students that look at images: their convolutions train in the order of memory that is fast, whatever they came in."""

from __future__ import annotations

import builders
import pytest
import torch
from torch import nn

from onnxcomp.pytorch import distill


class Small(nn.Module):
    """The torch student of `builders.cnn`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


@pytest.fixture
def teacher(tmp_path):
    return builders.save(builders.cnn(), tmp_path / "teacher.onnx")


def trained(teacher, student, output, **options):
    data = {"image": builders.samples(200, 3, 8, 8)}
    return distill(teacher, student, data, output, epochs=3, batch=16, lr=0.02, validation=0.3, **options)


def test_a_module_comes_in_any_order_of_memory(teacher, tmp_path):
    """One in `channels_last` is written as any other is, and learns the same."""
    torch.manual_seed(0)
    plain = Small()
    other = Small().to(memory_format=torch.channels_last)
    other.load_state_dict(plain.state_dict())
    for name, module in (("plain", plain), ("other", other)):
        trained(teacher, module, tmp_path / f"{name}.onnx", checkpoint=tmp_path / name)
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_what_is_written_back_is_what_trained(teacher, tmp_path):
    """The file of a graph's kernels answers in ONNX Runtime as the graph did in torch."""
    proto = builders.cnn()
    for i, tensor in enumerate(proto.graph.initializer):
        if tensor.name in ("k1", "k2", "w"):
            tensor.CopyFrom(builders.weight(tensor.name, *tensor.dims, seed=3 + i))
    done = trained(teacher, builders.save(proto, tmp_path / "student.onnx"), tmp_path / "out.onnx")
    first, best = (done.trained.history[epoch]["validation"] for epoch in (0, done.trained.best))
    assert best["loss"] < first["loss"]
    assert done.fidelity.agreement.value == pytest.approx(best["agreement"], abs=1e-9)
