"""A residual CNN for 28 x 28 grey images, and a small one to be its student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

#: channels of the three stages; multiples of 16 fit the blocked kernels of CPUs
WIDTHS = (32, 64, 128)
WIDE_WIDTHS = (64, 144, 304)
STUDENT_WIDTHS = (16, 32, 48)
CLASSES = 10


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if inside != outside or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32, (batch, inside, height, width) -> (batch, outside, height / stride, width / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Fashion(nn.Module):
    """Images to class scores. Teacher, wide net and student have the same three stages, at other widths."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(nn.Conv2d(1, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.blocks = nn.Sequential(Block(first, first, 1), Block(first, second, 2), Block(second, third, 2))
        self.head = nn.Linear(third, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: float32 in [0, 1], (batch, 1, 28, 28) -> scores: float32, (batch, 10)."""
        features: torch.Tensor = self.blocks(self.stem(image))
        scores: torch.Tensor = self.head(features.mean((2, 3)))
        return scores


def build() -> nn.Module:
    """The untrained network, in eval mode."""
    return Fashion().eval()


def wide() -> nn.Module:
    """The untrained wide network, in eval mode: five times the parameters, where int8 pays most."""
    return Fashion(WIDE_WIDTHS).eval()


def student() -> nn.Module:
    """The untrained small network, in eval mode: less than a quarter of the parameters."""
    return Fashion(STUDENT_WIDTHS).eval()
