"""Training of the reference classifiers: one recipe, deterministic for a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Progress = Callable[[str, float], None]


def fit(
    network: nn.Module,
    examples: np.ndarray,
    labels: np.ndarray,
    *,
    augment: Callable[[torch.Tensor], torch.Tensor],
    epochs: int,
    batch: int,
    rate: float,
    smoothing: float = 0.05,
    on_progress: Progress | None = None,
) -> nn.Module:
    """The network, trained in place, in eval mode. Same seed (set by the caller) and threads, same weights.

    AdamW (weight decay 0.01) with a one-cycle schedule that peaks at `rate`; cross entropy with label smoothing.

    Args:
        network: examples -> class scores.
        examples: (n, ...).
        labels: (n,) int64.
        augment: applied to each batch of examples.
        epochs: times that every example is seen.
        batch: examples per step.
        rate: peak of the learning rate.
        smoothing: share of the target that is spread over all classes.
        on_progress: called after each epoch with (text, fraction).
    """
    network.train()
    inputs, targets = torch.from_numpy(examples), torch.from_numpy(labels)
    steps = epochs * -(-len(inputs) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(inputs)).split(batch):
            scores = network(augment(inputs[rows]))
            loss = nn.functional.cross_entropy(scores, targets[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if on_progress is not None:
            text = f"training, epoch {epoch + 1} of {epochs}, loss {total / len(inputs):.3f}"
            on_progress(text, (epoch + 1) / epochs)
    return network.eval()


def accuracy(network: nn.Module, examples: np.ndarray, labels: np.ndarray, *, batch: int = 500) -> float:
    """Share of right answers, in [0, 1]; `batch` examples at a time."""
    with torch.inference_mode():
        answers = [network(part).argmax(1) for part in torch.from_numpy(examples).split(batch)]
    return float(np.mean(torch.cat(answers).numpy() == labels))
