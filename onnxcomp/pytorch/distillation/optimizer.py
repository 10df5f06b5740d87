"""The optimizer of a run, and its state as tensors by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onnxcomp.passes.distill import Settings

_MOMENTUM = 0.9


def make_optimizer(settings: Settings, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov, Hutter 2019), or SGD with momentum; vectors have no weight decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, momentum=_MOMENTUM)
    return torch.optim.AdamW(groups, settings.lr)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and counts of an optimizer by 'INDEX/KEY'."""
    states = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": value
        for index, kept in states.items()
        for key, value in kept.items()
        if isinstance(value, Tensor)
    }


def fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The way back of `optimizer_tensors`."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
