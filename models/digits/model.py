"""A small residual CNN for 8 x 8 grey images."""

from __future__ import annotations

import torch
from torch import nn

#: channels of the three stages; multiples of 16 fit the blocked kernels of CPUs
WIDTHS = (32, 64, 128)
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


class Digits(nn.Module):
    """Images to class scores."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.blocks = nn.Sequential(Block(first, first, 1), Block(first, second, 2), Block(second, third, 2))
        self.head = nn.Linear(third, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: float32 in [0, 1], (batch, 1, 8, 8) -> scores: float32, (batch, 10)."""
        features: torch.Tensor = self.blocks(self.stem(image))
        scores: torch.Tensor = self.head(features.mean((2, 3)))
        return scores


def build() -> nn.Module:
    """The untrained network, in eval mode."""
    return Digits().eval()
