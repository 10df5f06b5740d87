"""Data and training of the digits model; deterministic for a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from onnxcomp_models.digits.model import Digits
from torch import nn

EPOCHS = 40
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Data:
    """Images (n, 1, 8, 8) float32 in [0, 1], labels (n,) int64; two thirds train, one third tests."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def data() -> Data:
    """scikit-learn's bundled digits, split by class with a fixed seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, np.newaxis]
    labels = bunch.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=1 / 3, stratify=labels, random_state=0)
    return Data(parts[0], parts[2], parts[1], parts[3])


def train(*, seed: int = 0, epochs: int = EPOCHS, on_progress: Callable[[str, float], None] | None = None) -> nn.Module:
    """A trained network in eval mode. Same seed and threads, same weights.

    AdamW with a one-cycle schedule; images are shifted by up to one pixel.
    """
    torch.manual_seed(seed)
    found = data()
    images, labels = torch.from_numpy(found.train_images), torch.from_numpy(found.train_labels)
    network = Digits().train()
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            scores = network(_shift(images[rows]))
            loss = nn.functional.cross_entropy(scores, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if on_progress is not None:
            on_progress("training", (epoch + 1) / epochs)
    return network.eval()


def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, in [0, 1]."""
    with torch.inference_mode():
        answers = network(torch.from_numpy(images)).argmax(1).numpy()
    return float(np.mean(answers == labels))


def _shift(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixel in both directions, zeros moving in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2))
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, moves.tolist(), strict=True)])
