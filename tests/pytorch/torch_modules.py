"""Tiny modules to export; the tests name them by file path, by module, or as objects."""

from __future__ import annotations

import os

import torch
from torch import nn


class Perceptron(nn.Module):
    """x (batch, 4) -> (batch, 3)."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.fc(x))


class Wide(Perceptron):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(4, width)


class Embedded(nn.Module):
    """ids (batch, seq) -> (batch, seq, 4)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.fc = nn.Linear(4, 4)

    def forward(self, ids):
        return torch.relu(self.fc(self.table(ids))) * 2


class NamedLikeOperators(nn.Module):
    """An argument that has the name of an operator used inside."""

    def forward(self, relu):
        return torch.relu(relu * 2) + relu


class Several(nn.Module):
    def forward(self, a, mask):
        return {"product": a * mask, "sum": a + mask}


class Optional(nn.Module):
    def forward(self, x, scale=None):
        return x * 2 if scale is None else x * scale


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, image):
        return self.norm(self.conv(image))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Loop(nn.Module):
    """x (batch, seq, 4); how often it runs depends on seq."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        for _ in range(x.shape[1] // 4):
            x = torch.tanh(self.fc(x))
        return x


class BakedReshape(nn.Module):
    def forward(self, x):
        return x.reshape(2, 4) * 2


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x * 3


class LiveDropout(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class OtherwiseInOnnx(nn.Module):
    """What it computes for an export is not what it computes in torch."""

    def forward(self, x):
        return x * 1.01 if torch.compiler.is_exporting() else x


class OtherwiseWhenLarge(nn.Module):
    """For an export it leaves out a branch that seeded inputs never take."""

    def forward(self, x):
        return x if torch.compiler.is_exporting() else x.clamp(max=100)


class Bare(nn.Module):
    def forward(self, x, y):
        return x + y


class Defaults(nn.Module):
    def forward(self, x, mask=None, y=None):
        return x if y is None else x + y


class ByKeyword(nn.Module):
    def forward(self, x, *, scale):
        return x * scale


class Unused(nn.Module):
    def forward(self, x, other):
        return x * 2


class Nested(nn.Module):
    def forward(self, x):
        return {"last": x + 1, "past": (x + 2, [x + 3, x + 4])}


class Through(nn.Module):
    """One output is the input, one is left out."""

    def forward(self, x):
        return x, None, x * 2


class Gives(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return x + 1, self.what


class GivesParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x):
        return x * 2, self.scale


class Nothing(nn.Module):
    def forward(self, x):
        return None


class Chosen(nn.Module):
    """Inputs of three types."""

    def forward(self, keep, times, x):
        return torch.where(keep, x, -x) * times


class WritesIntoInput(nn.Module):
    def forward(self, x):
        return x.add_(1)


class MakesFolder:
    """Unpickling it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Trainable(nn.Module):
    """x (batch, 2, 6, 6): BatchNormalization, and parameters that are equal at the start."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.first = nn.LayerNorm(4)
        self.second = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)
        generator = torch.Generator().manual_seed(5)
        for tensor in self.norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.second(self.first(x)))


INSTANCE = Perceptron()
WITH_EXAMPLES = (Perceptron(), (torch.ones(1, 4),))
WITH_ONE_TENSOR = (Perceptron, torch.ones(2, 4))
TRIPLE = (Perceptron(), torch.ones(2, 4), 3)
WITH_ARRAYS = (Perceptron(), [1.0, 2.0])
NOT_A_MODULE = {"weights": 1}


def factory():
    return Perceptron()


def failing():
    raise RuntimeError("no such checkpoint")
