"""What a module has learnt, as tensors by name: to keep the best, to average, to save and to go on from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def live(module: nn.Module) -> State:
    """The module's own Parameters and lasting buffers, each once; writing into them changes the module."""
    lasting = module.state_dict().keys()
    found: State = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return found | {name: buffer for name, buffer in module.named_buffers() if name in lasting}


def statistics(module: nn.Module) -> list[Tensor]:
    """The module's own vectors of floats that training may move without a gradient: BatchNormalization's."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return [
        tensor
        for name, tensor in live(module).items()
        if name not in trained and tensor.is_floating_point() and tensor.ndim <= 1
    ]


def copied(state: Mapping[str, Tensor]) -> State:
    """A copy of its own, where the state is."""
    return {name: tensor.clone() for name, tensor in state.items()}


def put(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make the module hold the state, in place. The names must be those of `live`."""
    for name, tensor in live(module).items():
        tensor.copy_(state[name])


@contextlib.contextmanager
def holding(module: nn.Module, state: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The module with another state for a while; None leaves it as it is."""
    if state is None:
        yield
        return
    own = copied(live(module))
    put(module, state)
    try:
        yield
    finally:
        put(module, own)


def average(kept: State, module: nn.Module, *, decay: float, step: int) -> None:
    """Move a running average by one step, in place; early steps count more, so that the start is forgotten.

    The decay of step t is at most (1 + t) / (10 + t). Statistics are averaged as weights are; counts are copied.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    for name, tensor in live(module).items():
        if torch.is_floating_point(tensor):
            kept[name].lerp_(tensor, share)
        else:
            kept[name].copy_(tensor)
