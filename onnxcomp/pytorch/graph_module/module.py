"""`GraphModule`: any ONNX graph as a trainable torch module."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from onnxcomp.errors import DataError, UsageError, nearest
from onnxcomp.inspect import constants
from onnxcomp.model import load, signature
from onnxcomp.pytorch.graph_module import weights
from onnxcomp.pytorch.graph_module.build import Numbering, build
from onnxcomp.pytorch.graph_module.call import Plan, Run, execute
from onnxcomp.pytorch.graph_module.dtypes import torch_dtype
from onnxcomp.pytorch.graph_module.refuse import refuse


class GraphModule(nn.Module):
    """Runs an ONNX graph (opset 7 to 23) in torch, with gradients; `write_back` gives the trained model.

    Every float initializer, and every float tensor of a Constant node, is a Parameter under its own
    name (`weights.escape` makes it one that torch takes); one that several nodes use is one Parameter.
    Statistics, bounds, quantization steps, exponents and single numbers have `requires_grad` off from
    the start. Integers and settings of operators (scales of Resize, the value of Pad) are buffers
    outside of the state dict. Shapes are computed on the CPU, wherever the module is.

    What the graph calls float, float16 or bfloat16 runs in float32, or in the type that `.double()`,
    `.half()` or `.bfloat16()` sets; `write_back` gives each weight its own type again. Quantization
    has a straight-through gradient, and its results stay floats (`quantize.py`). The module starts in
    eval mode, in which it computes what the graph says; `train()` switches dropout on and lets
    BatchNormalization use and move its statistics as torch's does.

    Args:
        model: the graph or its file. A copy is kept: the model itself is never changed.
        outputs: names of the values that `forward` gives, inner ones too; all graph outputs by default.

    Raises:
        UnsupportedError: naming every operator without a counterpart, before any work.
        UsageError: an output that is no value of the graph.
    """

    def __init__(self, model: ir.Model | str | os.PathLike[str], *, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self._model = model.clone() if isinstance(model, ir.Model) else load(model)
        if self._model.functions:
            common.InlinePass()(self._model)
        weights.plain_constants(self._model)
        refuse(self._model)
        #: names of Parameters and buffers in the order in which the model stores them
        self._stored: list[str] = []
        # its type is the one that float values have, its device theirs
        self._like: Tensor
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self._inputs = signature(self._model).inputs
        names = [str(value.name) for value in self._model.graph.outputs]
        self.outputs = tuple(names if outputs is None else outputs)
        reserved = frozenset(dir(self)) | {"_plans", "_numbers", "_slots"}
        for one in weights.stored(self._model):
            self._hold(one, reserved)
        self._bind()
        self._plan(self.outputs)
        self.eval()

    def _hold(self, one: weights.Stored, reserved: frozenset[str]) -> None:
        name = base = weights.escape(str(one.value.name), reserved)
        count = 0
        while hasattr(self, name):  # two branches may use a name
            count += 1
            name = f"{base}%23{count}"
        self._stored.append(name)
        if one.trainable:
            self.register_parameter(name, nn.Parameter(one.tensor, requires_grad=one.trained))
        else:
            self.register_buffer(name, one.tensor, persistent=False)

    def _bind(self) -> None:
        """Number the values of the model; a copy of the module has values of its own."""
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._numbers = Numbering()
        values = (value for value, _ in constants(self._model))
        self._slots = {self._numbers[value]: name for value, name in zip(values, self._stored, strict=True)}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Every Parameter by the name of its initializer; 'name#1' is a second tensor of that name."""
        return {weights.unescape(name): parameter for name, parameter in self.named_parameters()}

    def forward(self, feeds: Mapping[str, Tensor] | None = None, /, **inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name, from inputs by name: as a mapping, or as keywords where names allow it.

        Raises DataError for an input that is missing, unknown or of another rank.
        """
        return self.values({**(feeds or {}), **inputs}, self.outputs)

    def values(self, feeds: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """The named values, inner ones too; only what they need is computed.

        Raises UsageError for a name that the graph does not have, DataError as `forward` does.
        """
        plan = self._plan(tuple(names))
        values = {slot: getattr(self, name) for slot, name in self._slots.items()}
        values |= self._fed(feeds)
        run = Run(self.training, self._like.dtype, self._like.device, values)
        return dict(zip(names, execute(plan, run), strict=True))

    def write_back(self) -> ir.Model:
        """A copy of the model with the Parameters as its weights, each in its own type; all else as it was.

        Local functions are inlined. Raises GateError where a value is beyond its type's range.
        """
        model = self._model.clone()
        weights.write(model, [self._parameters.get(name) for name in self._stored])
        return model

    def _plan(self, names: tuple[str, ...]) -> Plan:
        if names not in self._plans:
            known = {str(value.name): value for value in _values(self._model.graph)}
            for name in names:
                if name not in known:
                    raise UsageError("the graph has no such value", where=name, hint=nearest(name, known))
            self._plans[names] = build(self._model, [known[name] for name in names], self._numbers)
        return self._plans[names]

    def _fed(self, feeds: Mapping[str, Tensor]) -> dict[int, Tensor]:
        specs = {spec.name: spec for spec in self._inputs}
        for name in feeds:
            if name not in specs:
                raise DataError("the model has no such input", where=name, hint=nearest(name, specs))
        found = {}
        for value in self._model.graph.inputs:
            spec = specs.get(str(value.name))
            if spec is None:
                continue  # a weight, which IR 3 lists among the inputs
            if spec.name not in feeds:
                raise DataError("no tensor for this input", where=spec.name)
            tensor = feeds[spec.name]
            if spec.shape is not None and tensor.ndim != len(spec.shape):
                raise DataError(f"{tensor.ndim} axes where the model has {len(spec.shape)}", where=spec.name)
            dtype = tensor.dtype if value.dtype is None else torch_dtype(value.dtype, self._like.dtype)
            found[self._numbers[value]] = tensor.to(dtype)
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and converts as any module does, but lists and numbers in buffers stay on the CPU: they are shapes."""
        lists = {name: buffer for name, buffer in self.named_buffers() if name != "_like" and buffer.ndim <= 1}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(lists)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a graph of linked nodes is too deep for them, a protobuf is not."""
        bound = ("_plans", "_numbers", "_slots")
        state = {key: value for key, value in self.__dict__.items() if key not in bound}
        return {**state, "_model": ir.to_proto(self._model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_model": ir.from_proto(state["_model"])})  # type: ignore[no-untyped-call]
        self._bind()


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Inputs, initializers and what nodes give, of the main graph."""
    made = [value for node in graph for value in node.outputs if value.name]
    return [*graph.inputs, *graph.initializers.values(), *made]
