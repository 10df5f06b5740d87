"""Training of the fashion models; deterministic for a seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from onnxcomp_models import fitting
from onnxcomp_models.fashion.files import Data
from onnxcomp_models.fashion.model import build
from torch import nn

EPOCHS = 8
BATCH = 128
RATE = 4e-3


def train(
    found: Data,
    *,
    builder: Callable[[], nn.Module] = build,
    seed: int = 0,
    epochs: int = EPOCHS,
    on_progress: fitting.Progress | None = None,
) -> nn.Module:
    """A trained network in eval mode. Same seed and threads, same weights.

    Images are mirrored at random and shifted by up to one pixel.

    Args:
        found: the data set; only its training part is seen.
        builder: `build` or `student`.
        seed: of weights, order, mirroring and shifts.
        epochs: times that every image is seen.
        on_progress: called after each epoch with (text, fraction).
    """
    torch.manual_seed(seed)
    network = builder().to(memory_format=torch.channels_last)  # convolutions of CPUs are faster so
    fitting.fit(
        network,
        found.train_images,
        found.train_labels,
        augment=augmented,
        epochs=epochs,
        batch=BATCH,
        rate=RATE,
        on_progress=on_progress,
    )
    return network.to(memory_format=torch.contiguous_format)


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Each image mirrored or not, and moved by -1, 0 or 1 pixel in both directions, zeros moving in.

    images: (n, 1, height, width) -> the same shape.
    """
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (1, 1, 1, 1))[:, 0]
    down, right = torch.randint(0, 3, (2, count, 1))
    rows, columns = torch.arange(height) + down, torch.arange(width) + right
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]
