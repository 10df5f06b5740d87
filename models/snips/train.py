"""Training of the snips model; deterministic for a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from onnxcomp_models import fitting
from onnxcomp_models.snips.model import PADDING, UNKNOWN, build
from onnxcomp_models.snips.words import Data
from torch import nn

EPOCHS = 6
BATCH = 64
RATE = 1e-3

#: share of the words that training hides, so that unknown words are nothing new
HIDDEN = 0.1


def train(
    found: Data, *, seed: int = 0, epochs: int = EPOCHS, on_progress: fitting.Progress | None = None
) -> nn.Module:
    """A trained network in eval mode. Same seed and threads, same weights.

    One word in ten is replaced by the unknown word.

    Args:
        found: the data set; only its training part is seen.
        seed: of weights, order, dropout and hidden words.
        epochs: times that every sentence is seen.
        on_progress: called after each epoch with (text, fraction).
    """
    torch.manual_seed(seed)
    return fitting.fit(
        build(),
        found.train_ids,
        found.train_labels,
        augment=hidden,
        epochs=epochs,
        batch=BATCH,
        rate=RATE,
        on_progress=on_progress,
    )


def hidden(ids: torch.Tensor) -> torch.Tensor:
    """ids: int64, (n, seq) -> (n, longest sentence of the n), some words unknown."""
    ids = ids[:, : int((ids != PADDING).sum(1).max())]
    hide = (torch.rand(ids.shape) < HIDDEN) & (ids != PADDING)
    return torch.where(hide, UNKNOWN, ids)


def hide_words(samples: Mapping[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """`ids`, int64, (n, seq), with some words unknown, as `hidden` does: for `onnxcomp distill --augment`."""
    ids = samples["ids"]
    hide = (generator.random(ids.shape) < HIDDEN) & (ids != PADDING)
    return {**samples, "ids": np.where(hide, UNKNOWN, ids)}
