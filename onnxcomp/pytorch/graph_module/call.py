"""A graph as a list of steps, and how they run: what an operator's function is given beside its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

#: an operator's function: (call, inputs ...) -> a tensor, or one per output; absent inputs are None
Operator = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Node:
    """What is known of a node before it runs.

    Attributes:
        name: the node's name, or its operator and first output.
        opset: version of its operator set.
        attributes: plain Python values; a tensor for a tensor, a `Plan` for a graph.
        outputs: how many outputs it names, empty ones in between too.
        types: ONNX's element type of each input, None where the model does not say.
    """

    name: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int
    types: tuple[ir.DataType | None, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One forward pass.

    Attributes:
        training: whether dropout drops and BatchNormalization uses the batch's statistics.
        dtype: the type of what the graph calls float, float16 or bfloat16.
        device: where float tensors are; shapes stay on the CPU.
        values: the tensor of each value that is still needed, by its number in the plan.
    """

    training: bool
    dtype: torch.dtype
    device: torch.device
    values: dict[int, Tensor]


@dataclasses.dataclass(frozen=True)
class Call:
    """What an operator's function is given first: the node and the forward pass."""

    node: Node
    run: Run

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or `default` where the node does not have it."""
        return self.node.attributes.get(name, default)


@dataclasses.dataclass(frozen=True)
class Step:
    """One node of a plan; numbers name values, None stands for one that is left empty or unused.

    Attributes:
        host: positions of inputs that are sizes, axes and the like, wanted on the CPU.
        frees: values that no later step needs.
    """

    function: Operator
    node: Node
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    host: frozenset[int]
    frees: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a graph that its wanted outputs need; `inputs` are what the graph itself is fed."""

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def execute(plan: Plan, run: Run) -> list[Tensor]:
    """Run the steps over `run.values`, which holds what they read from outside; the outputs in order.

    An error of torch carries the node's name as a note.
    """
    values = run.values
    for step in plan.steps:
        inputs = [None if slot is None else values[slot] for slot in step.inputs]
        if run.device.type != "cpu":
            inputs = _beside_each_other(inputs, step.host, run.device)
        try:
            result = step.function(Call(step.node, run), *inputs)
        except Exception as error:
            error.add_note(f"in node {step.node.name}, inputs {_show(inputs)}")
            raise
        results = (result,) if isinstance(result, Tensor) else result
        for slot, tensor in zip(step.outputs, results, strict=False):
            if slot is not None:
                values[slot] = tensor
        for slot in step.frees:
            del values[slot]
    return [values[slot] for slot in plan.outputs]


def _beside_each_other(
    inputs: Sequence[Tensor | None], host: frozenset[int], device: torch.device
) -> list[Tensor | None]:
    """Shapes meet shapes on the CPU; where one input is on the device, all are, but those in `host`."""
    found = list(inputs)
    free = [i for i, tensor in enumerate(inputs) if tensor is not None and i not in host]
    if any(inputs[i].device != torch.device("cpu") for i in free):  # type: ignore[union-attr]
        for i in free:
            found[i] = inputs[i].to(device)  # type: ignore[union-attr]
    return found


def _show(inputs: Sequence[Tensor | None]) -> str:
    parts = ("-" if t is None else f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in inputs)
    return ", ".join(parts)
