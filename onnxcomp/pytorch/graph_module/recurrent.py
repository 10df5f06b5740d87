"""LSTM, GRU and RNN, step by step, in all directions; autograd sees through every step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxcomp.pytorch.graph_module.call import Call

_Activation = Callable[[Tensor], Tensor]

#: activations that need no numbers of their own, in lower case as attributes may be written
ACTIVATIONS: dict[str, _Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
}

#: (input's share of the gates, states) -> states, the first of which is the output
_Cell = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What the three operators share: x (time, batch, input) and the attributes."""

    x: Tensor
    lengths: Tensor | None
    directions: tuple[bool, ...]
    hidden: int
    batch_first: bool

    def initial(self, state: Tensor | None) -> Tensor:
        """A state (directions, batch, hidden), zeros where none is given."""
        if state is not None:
            return state.movedim(0, 1) if self.batch_first else state
        return self.x.new_zeros(len(self.directions), self.x.shape[1], self.hidden)

    def results(self, outputs: Sequence[Tensor], states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """ONNX's outputs: all steps (time, directions, batch, hidden), then the last of each state."""
        steps = torch.stack(tuple(outputs), 1)
        last = [torch.stack(parts) for parts in zip(*states, strict=True)]
        if self.batch_first:
            return [steps.permute(2, 0, 1, 3), *(state.movedim(0, 1) for state in last)]
        return [steps, *last]


def _frame(call: Call, x: Tensor, lengths: Tensor | None) -> _Frame:
    batch_first = bool(call.get("layout", 0))
    direction = call.get("direction", "forward")
    return _Frame(
        x.movedim(0, 1) if batch_first else x,
        lengths,
        {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction],
        call.get("hidden_size"),
        batch_first,
    )


def _activations(call: Call, defaults: Sequence[str], direction: int) -> list[_Activation]:
    names = call.get("activations") or defaults
    start = direction * len(defaults) if len(names) > len(defaults) else 0
    return [ACTIVATIONS[name.lower()] for name in names[start : start + len(defaults)]]


def _clipped(call: Call, x: Tensor) -> Tensor:
    bound = call.get("clip")
    return x if not bound else x.clamp(-bound, bound)


def _walk(
    frame: _Frame, gates: Tensor, states: Sequence[Tensor], cell: _Cell, *, back: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """All steps of one direction. Past a sequence's end states stand still and outputs are zero."""
    outputs: list[Tensor] = []
    for t in reversed(range(len(gates))) if back else range(len(gates)):
        new = cell(gates[t], states)
        if frame.lengths is None:
            states = new
            outputs.append(new[0])
        else:
            running = (frame.lengths.to(gates.device) > t).unsqueeze(1)
            states = [torch.where(running, a, b) for a, b in zip(new, states, strict=True)]
            outputs.append(torch.where(running, new[0], torch.zeros_like(new[0])))
    return torch.stack(outputs[::-1] if back else outputs), states


def _biases(bias: Tensor | None, direction: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The input's and the state's bias of a direction, each as long as its gates."""
    if bias is None:
        zeros = weight.new_zeros(weight.shape[1])
        return zeros, zeros
    first, second = bias[direction].chunk(2)
    return first, second


def lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    memory: Tensor | None = None,
    peephole: Tensor | None = None,
) -> list[Tensor]:
    """With w (directions, 4 hidden, input), gates in the order input, output, forget, cell."""
    frame = _frame(call, x, lengths)
    h0, c0 = frame.initial(hidden), frame.initial(memory)
    outputs, states = [], []
    for d, back in enumerate(frame.directions):
        activations = _activations(call, ("Sigmoid", "Tanh", "Tanh"), d)
        eyes = None if peephole is None else peephole[d].chunk(3)
        cell = functools.partial(_lstm_cell, call, r[d], activations, eyes)
        gates = frame.x @ w[d].mT + sum(_biases(bias, d, w))
        steps, last = _walk(frame, gates, (h0[d], c0[d]), cell, back=back)
        outputs.append(steps)
        states.append(last)
    return frame.results(outputs, states)


def _lstm_cell(
    call: Call,
    r: Tensor,
    activations: Sequence[_Activation],
    eyes: Sequence[Tensor] | None,
    part: Tensor,
    states: Sequence[Tensor],
) -> Sequence[Tensor]:
    squash, inner, outer = activations
    h, c = states
    i, o, f, g = (part + h @ r.mT).chunk(4, -1)
    if eyes is not None:
        i, f = i + eyes[0] * c, f + eyes[2] * c
    i = squash(_clipped(call, i))
    f = 1 - i if call.get("input_forget", 0) else squash(_clipped(call, f))
    c = f * c + i * inner(_clipped(call, g))
    o = squash(_clipped(call, o if eyes is None else o + eyes[1] * c))
    return [o * outer(c), c]


def gru(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> list[Tensor]:
    """With w (directions, 3 hidden, input), gates in the order update, reset, hidden."""
    frame = _frame(call, x, lengths)
    h0 = frame.initial(hidden)
    outputs, states = [], []
    for d, back in enumerate(frame.directions):
        first, second = _biases(bias, d, w)
        cell = functools.partial(_gru_cell, call, r[d], second, _activations(call, ("Sigmoid", "Tanh"), d))
        steps, last = _walk(frame, frame.x @ w[d].mT + first, (h0[d],), cell, back=back)
        outputs.append(steps)
        states.append(last)
    return frame.results(outputs, states)


def _gru_cell(
    call: Call, r: Tensor, bias: Tensor, activations: Sequence[_Activation], part: Tensor, states: Sequence[Tensor]
) -> Sequence[Tensor]:
    squash, inner = activations
    (h,) = states
    size = h.shape[-1]
    gates = part[:, : 2 * size] + h @ r[: 2 * size].mT + bias[: 2 * size]
    update, reset = squash(_clipped(call, gates)).chunk(2, -1)
    if call.get("linear_before_reset", 0):
        shared = reset * (h @ r[2 * size :].mT + bias[2 * size :])
    else:
        shared = (reset * h) @ r[2 * size :].mT + bias[2 * size :]
    new = inner(_clipped(call, part[:, 2 * size :] + shared))
    return [(1 - update) * new + update * h]


def rnn(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> list[Tensor]:
    """With w (directions, hidden, input): one activation of input and state."""
    frame = _frame(call, x, lengths)
    h0 = frame.initial(hidden)
    outputs, states = [], []
    for d, back in enumerate(frame.directions):
        cell = functools.partial(_rnn_cell, call, r[d], _activations(call, ("Tanh",), d)[0])
        gates = frame.x @ w[d].mT + sum(_biases(bias, d, w))
        steps, last = _walk(frame, gates, (h0[d],), cell, back=back)
        outputs.append(steps)
        states.append(last)
    return frame.results(outputs, states)


def _rnn_cell(
    call: Call, r: Tensor, activation: _Activation, part: Tensor, states: Sequence[Tensor]
) -> Sequence[Tensor]:
    return [activation(_clipped(call, part + states[0] @ r.mT))]
