"""`cluster-weights`: each weight is one of a few numbers. Download size only: ORT computes the floats at load."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp import worker
from onnxcomp.errors import InvalidModelError, NoEffectError, UsageError
from onnxcomp.inspect import Weight, all_nodes, stored_origin, weights
from onnxcomp.passes.base import Context, Effect, Pass, drop_inner_shapes, named, option
from onnxcomp.passes.opset import upgrade
from onnxcomp.passes.share import codebook, observed, palette, values
from onnxcomp.passes.share.palette import Layout, Palette

_LABEL = "download size only"
_NOTE = (
    f"{_LABEL}: ORT computes the float weights when it loads the model, which takes longer and more memory, and then "
    "runs as fast as before; quantize makes models faster"
)

#: IR version from which a caller may override an initializer that is an input too
_OVERRIDABLE = 4

#: operators whose weights have their outputs along the second axis
_SECOND_AXIS = {"ConvTranspose", "GRU", "LSTM", "RNN"}

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterWeights(Pass):
    """Store weights as codes of 2 to 8 bits into a codebook, with a scale for each output; better with data.

    For what is downloaded often: the file shrinks to about `bits` / 32 (Han et al. 2015, arXiv:1510.00149). ORT
    computes the floats at load. A sentence encoder of 90 MB is one of 11.7 MB in 4 bits; it loads in 0.7 s of
    processor time instead of 0.15, takes 238 MB instead of 100, and runs as fast as before. `quantize` makes models
    faster, this does not.

    Rules:
        1. Weights are stored float tensors of rank 2 or more that Conv, MatMul, Gemm, Gather or recurrent nodes
           use; biases and normalization stay. All that reads one reads what stands for it.
        2. Books are the best for their tensor that k-means finds, for `group_size` outputs each where that is given.
        3. Codes fill bytes: 3 bits take 3, in operators of opset 11, to which older models are raised.
        4. With data, codes of matrices and kernels are chosen so that the outputs on it change least (see
           `share.assign`), where that is better on the data than the nearest. Not those that several nodes use, nor
           of grouped Conv, nor tables.
        5. Left as they are, with the reason: what would not get smaller, outputs, initializers that a caller may
           override, weights inside local functions, other types than float32 and float16.
    """

    name: ClassVar[str] = "cluster-weights"
    wants_data: ClassVar[bool] = True

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = option(4, "bits of a code: a weight is one of 2^bits numbers, times a scale")
    group_size: int | None = option(
        None, "outputs (columns of a matrix, channels of a kernel, rows of a table) that share a codebook; unset: all"
    )
    exclude: tuple[str, ...] = option((), "nodes, or torch modules ('encoder.layer.3'), whose weights stay as they are")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (options, unknown node), NoEffectError, InvalidModelError (NaN), CalibrationError."""
        if not 2 <= self.bits <= 8:
            raise UsageError(f"{self.bits} bits are not 2 to 8", where="bits")
        if self.group_size is not None and self.group_size < 1:
            raise UsageError(f"a group of {self.group_size} outputs holds none", where="group_size")
        if context.data is not None:
            context.data.require_real("choosing codes")
        if model.ir_version < _OVERRIDABLE:
            common.RemoveInitializersFromInputsPass()(model)
        if upgrade(model, palette.OPSET):
            context.note(f"opset raised to {palette.OPSET}: the nodes that read codes need it")
        chosen, refused = self._chosen(model)
        if not chosen:
            for one in refused:
                context.note(one["reason"], one["node"])
            raise NoEffectError("no weight can be stored in codes", hint="see the notes, or 'onnxcomp inspect'")
        details: dict[str, Any] = {"clustered": len(chosen), "of": len(chosen) + len(refused), "bits": self.bits}
        on_data: dict[ir.Value, Palette] = {}
        if context.data is not None:
            layouts = {weight.value: layout for weight, layout in chosen}
            on_data, details["on_data"] = observed.choose(model, layouts, context)
        before, after, errors = 0, 0, []
        for number, (weight, layout) in enumerate(chosen):
            worker.report("clustering", number / len(chosen))
            array = weight.tensor.numpy()
            held = on_data.pop(weight.value, None) or palette.fit(array, layout)
            errors.append(palette.relative_error(array, held))
            before, after = before + weight.tensor.nbytes, after + held.nbytes
            new = held.write(model, weight.value.name or "weight", weight.tensor.dtype, next(iter(model.graph)))
            weight.value.replace_all_uses_with(new)
            values.remove(weight.value)
        drop_inner_shapes(model)
        context.note(_NOTE)
        details |= {
            "weight_bytes": {"before": before, "after": after},
            "relative_error": float(f"{np.mean(errors):.4g}"),
            "refused": refused,
            "label": _LABEL,
        }
        return Effect(True, details)

    def _chosen(self, model: ir.Model) -> tuple[list[tuple[Weight, Layout]], list[dict[str, str]]]:
        """Weights with their layouts, and `{node, reason}` of the others."""
        excluded = {node for nodes in named(model, self.exclude).values() for node in nodes}
        origins = [stored_origin(value) for node in all_nodes(model) if node.name in excluded for value in node.inputs]
        whole = {origin[0] for origin in origins if origin is not None}
        graphs = set(model.graphs())
        chosen, refused = [], []
        for weight in weights(model):
            shape = tuple(int(size) for size in weight.tensor.shape.numpy())
            layout = Layout.of(shape, _axis(weight), self.bits, self.group_size)
            why = "excluded" if weight.value in whole else _why_not(weight, graphs)
            if why is None and layout.bytes_for(shape) >= weight.tensor.nbytes:
                why = "it would not get smaller"
            if why is not None:
                refused.append({"node": weight.node.name or weight.node.op_type, "reason": why})
            elif not _is_finite(weight.tensor.numpy()):
                raise InvalidModelError("a weight holds NaN or infinity", where=f"tensor {weight.value.name}")
            else:
                chosen.append((weight, layout))
        return chosen, refused


def _why_not(weight: Weight, graphs: set[ir.Graph]) -> str | None:
    """Why a weight stays as it is; None where nothing speaks against codes."""
    value, producer = weight.value, weight.value.producer()
    owner = value.graph if producer is None else producer.graph
    if owner not in graphs:
        return "inside a local function"
    if value.is_graph_output():
        return "an output of the graph"
    if value.is_graph_input():
        return "a caller may override it"
    if weight.tensor.dtype not in _TYPES:
        return f"weight of type {weight.tensor.dtype.name}"
    return None if weight.tensor.size else "it is empty"


def _axis(weight: Weight) -> int:
    """Along which a weight's outputs lie: numbers there have one scale."""
    node, last = weight.node, len(weight.tensor.shape) - 1
    second = len(node.inputs) > 1 and stored_origin(node.inputs[1]) is not None
    if node.op_type == "Gemm":
        return int(bool(node.attributes.get_int("transB", 0)) != second) if second else 0
    if node.op_type.endswith("MatMul"):
        return last if second else last - 1
    return 1 if node.op_type in _SECOND_AXIS else 0


def _is_finite(array: np.ndarray) -> bool:
    return all(bool(np.isfinite(array[rows]).all()) for rows in codebook.slices(array))
