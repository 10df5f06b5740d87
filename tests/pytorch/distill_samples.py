"""A teacher, students and samples that are small enough to train in a second."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import torch
from onnx import helper
from torch import nn

from onnxcomp.runtime import open_session


def teacher(folder: Path) -> Path:
    return builders.save(builders.mlp(width=32), folder / "teacher.onnx")


def student(folder: Path, width: int = 8) -> Path:
    """The same inputs and outputs, fewer neurons; other weights than the teacher's."""
    proto = builders.mlp(width=width)
    for i, tensor in enumerate(proto.graph.initializer):
        shape = list(tensor.dims)
        tensor.CopyFrom(builders.weight(tensor.name, *shape, seed=7 + i))
    return builders.save(proto, folder / f"student{width}.onnx")


def samples(teacher_path: Path, count: int = 200) -> dict[str, np.ndarray]:
    """Inputs, and the teacher's own classes as labels."""
    x = builders.samples(count, 16)
    scores = open_session(teacher_path).run({"x": x})["y"]
    return {"x": x, "labels": scores.argmax(1).astype(np.int64)}


def with_dropout(folder: Path) -> Path:
    """x (batch, 16) -> Gemm, Relu, Dropout, Gemm -> y (batch, 10)."""
    proto = builders.mlp(width=8)
    nodes = list(proto.graph.node)
    nodes.insert(2, helper.make_node("Dropout", ["a"], ["d"], name="drop"))
    nodes[3].input[0] = "d"
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return builders.save(proto, folder / "dropout.onnx")


class Small(nn.Module):
    """The torch student of `teacher`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


class Keyed(Small):
    """Its output has the name of the teacher's."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": super().forward(x)}


class Narrow(nn.Module):
    """It answers with five classes where the teacher has ten."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.only(x)


class Foreign(Small):
    """It calls its input otherwise than the teacher."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image)


class Plain(nn.Module):
    """The net of `teacher`, in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Noisy(Plain):
    """Eval mode does not stop its noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.randn_like(x))
