"""The nodes that a quantization pass would quantize, and what of each it would round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import onnx_ir as ir

from onnxcomp.inspect import MODULE, WEIGHT_INPUTS, infer_shapes

#: operators whose constants ORT's Q/DQ quantizer rounds like activations
_ELEMENTWISE = {"Add", "Concat", "Mul", "Where"}

#: operators whose int8 kernels give float32: their outputs are not rounded
_FLOAT_OUTPUT = {"Gather", "Gemm", "MatMul"}

#: functions that an int8 kernel takes in, so that only what comes after them is rounded
_ABSORBED = {"Clip", "Relu"}


@dataclasses.dataclass(frozen=True)
class Target:
    """A node that can be quantized.

    Attributes:
        node: its name.
        module: path of the torch module that it came from; empty where the export recorded none.
        op: its operator type.
        nested: whether it stands in the body of If, Loop or Scan.
        weights: indices of inputs that are stored matrices, kernels or tables.
        constants: indices of other stored inputs that are rounded.
        inputs: indices of inputs that are computed and rounded.
        outputs: indices of outputs that are rounded.
        weight_bytes: of `weights`, in float.
    """

    node: str
    module: str
    op: str
    nested: bool
    weights: tuple[int, ...]
    constants: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weight_bytes: int


def static_targets(model: ir.Model, op_types: Collection[str], kept: Collection[str]) -> list[Target]:
    """What `quantize-static` would round of a prepared model, in the order of the graph.

    Those in `kept` are left out, and those in local functions. Shapes and types are inferred on a copy.
    """
    return _targets(model, op_types, kept, _static)


def dynamic_targets(model: ir.Model, op_types: Collection[str], kept: Collection[str]) -> list[Target]:
    """What `quantize-dynamic` would round, as `static_targets`."""
    return _targets(model, op_types, kept, _dynamic)


def _targets(
    model: ir.Model, op_types: Collection[str], kept: Collection[str], make: Callable[[ir.Node, bool], Target]
) -> list[Target]:
    typed = infer_shapes(model.clone())
    found = []
    for node in typed.graph.all_nodes():
        if node.op_type in op_types and node.name and node.name not in kept:
            target = make(node, node.graph is not typed.graph)
            if target.weights or target.inputs:
                found.append(target)
    return found


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The float32 tensor that the value is; None for what is computed, fed or of another type."""
    if value is None or value.producer() is not None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value if value.const_value.dtype == ir.DataType.FLOAT else None


def _static(node: ir.Node, nested: bool) -> Target:
    held = [i for i, value in enumerate(node.inputs) if stored(value) is not None]
    computed = [i for i, value in enumerate(node.inputs) if _computed(value)]
    if node.op_type == "Gather":
        computed = []
    outputs = [i for i, value in enumerate(node.outputs) if _computed(value) and not _taken_in(value)]
    return _target(
        node,
        nested=nested,
        constants=tuple(held) if node.op_type in _ELEMENTWISE else (),
        inputs=tuple(computed),
        outputs=() if node.op_type in _FLOAT_OUTPUT else tuple(outputs),
    )


def _dynamic(node: ir.Node, nested: bool) -> Target:
    """What is multiplied with a stored weight is rounded, nothing else."""
    target = _target(node, nested=nested)
    if not target.weights or node.op_type == "Gather":
        return target
    first = 0 if 0 not in target.weights else 1
    return dataclasses.replace(target, inputs=(first,))


def _target(
    node: ir.Node,
    *,
    nested: bool,
    constants: tuple[int, ...] = (),
    inputs: tuple[int, ...] = (),
    outputs: tuple[int, ...] = (),
) -> Target:
    slots = WEIGHT_INPUTS.get((node.domain, node.op_type), ())
    weights = [i for i in slots if i < len(node.inputs) and stored(node.inputs[i]) is not None]
    weights = [i for i in weights if len(_tensor(node, i).shape) > 1]
    return Target(
        node=node.name or "",
        module=node.metadata_props.get(MODULE, ""),
        op=node.op_type,
        nested=nested,
        weights=tuple(weights),
        constants=constants,
        inputs=inputs,
        outputs=outputs,
        weight_bytes=sum(_tensor(node, i).nbytes for i in weights),
    )


def _tensor(node: ir.Node, index: int) -> ir.TensorProtocol:
    tensor = stored(node.inputs[index])
    assert tensor is not None
    return tensor


def _computed(value: ir.Value | None) -> bool:
    """A float32 activation; a stored tensor is none."""
    return value is not None and value.const_value is None and value.dtype == ir.DataType.FLOAT


def _taken_in(value: ir.Value) -> bool:
    uses = list(value.uses())
    return len(uses) == 1 and uses[0].node.op_type in _ABSORBED and not value.is_graph_output()
