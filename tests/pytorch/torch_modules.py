"""Tiny modules to export; the tests name them by file path, by module, or as objects."""

from __future__ import annotations

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


class Bare(nn.Module):
    def forward(self, x, y):
        return x + y


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
