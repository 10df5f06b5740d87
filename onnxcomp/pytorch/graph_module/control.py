"""If, Loop and Scan: graphs inside of a node, which read the values around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxcomp.pytorch.graph_module.call import Call, Plan, Run, execute


def branch(call: Call, condition: Tensor) -> Sequence[Tensor]:
    """The outputs of one branch; only that one runs, and gets gradients."""
    plan: Plan = call.get("then_branch") if bool(condition.reshape(())) else call.get("else_branch")
    return execute(plan, call.run)


def _fed(plan: Plan, run: Run, inputs: Sequence[Tensor]) -> list[Tensor]:
    run.values.update(zip(plan.inputs, inputs, strict=True))
    return execute(plan, run)


def loop(call: Call, count: Tensor | None, condition: Tensor | None, *states: Tensor) -> list[Tensor]:
    """Until `count` turns are done or the body says stop: the last states, then each scan output stacked."""
    body: Plan = call.get("body")
    limit = None if count is None else int(count.reshape(()))
    going = torch.ones((), dtype=torch.bool) if condition is None else condition
    current, turn = list(states), 0
    stacked: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - 1 - len(states))]
    while (limit is None or turn < limit) and bool(going.reshape(())):
        going, *results = _fed(body, call.run, [torch.tensor(turn), going, *current])
        current = results[: len(states)]
        for found, one in zip(stacked, results[len(states) :], strict=True):
            found.append(one)
        turn += 1
    return current + [torch.stack(found) if found else torch.zeros(0) for found in stacked]


def scan(call: Call, *inputs: Tensor) -> list[Tensor]:
    """Opset 9 and later: walk along an axis of each scanned input, forth or back; states go through."""
    body: Plan = call.get("body")
    scanned = call.get("num_scan_inputs")
    states, sequences = list(inputs[:-scanned]), inputs[-scanned:]
    axes = call.get("scan_input_axes") or [0] * scanned
    back = call.get("scan_input_directions") or [0] * scanned
    parts = [
        list(reversed(x.unbind(axis))) if reverse else list(x.unbind(axis))
        for x, axis, reverse in zip(sequences, axes, back, strict=True)
    ]
    stacked: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - len(states))]
    for elements in zip(*parts, strict=True):
        results = _fed(body, call.run, [*states, *elements])
        states, produced = results[: len(states)], results[len(states) :]
        for found, one in zip(stacked, produced, strict=True):
            found.append(one)
    out_axes = call.get("scan_output_axes") or [0] * len(stacked)
    out_back = call.get("scan_output_directions") or [0] * len(stacked)
    return states + [
        torch.stack(found[::-1] if reverse else found, axis)
        for found, axis, reverse in zip(stacked, out_axes, out_back, strict=True)
    ]
