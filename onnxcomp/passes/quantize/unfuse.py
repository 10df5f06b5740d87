"""FusedConv, which only ORT's optimizer writes, as the Conv that it was made of: quantizers know no other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import all_nodes
from onnxcomp.passes.quantize.names import initializer

#: activation -> names of what `activation_params` holds, in order; ORT's `GetFusedActivationAttr`
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "Clip": ("min", "max"),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}

_OWN = ("activation", "activation_params")


def unfuse(model: ir.Model) -> int:
    """Write every FusedConv as Conv, Add of its fourth input where there is one, and activation; count them.

    The graph computes the same, and ORT fuses it again. One with another activation stays.
    """
    count = 0
    for node in list(all_nodes(model)):
        if (node.domain, node.op_type) != ("com.microsoft", "FusedConv"):
            continue
        activation = node.attributes.get_string("activation", "") or ""
        params = list(node.attributes.get_floats("activation_params", ()) or ())
        if activation and (activation not in _ACTIVATIONS or len(params) != len(_ACTIVATIONS[activation])):
            continue
        _split(model, node, activation, params)
        count += 1
    return count


def _split(model: ir.Model, node: ir.Node, activation: str, params: list[float]) -> None:
    assert node.graph is not None
    summand = node.inputs[3] if len(node.inputs) > 3 else None
    kept = {key: value for key, value in node.attributes.items() if key not in _OWN}
    made = [ir.Node("", "Conv", node.inputs[:3], kept.values(), name=node.name)]
    if summand is not None:
        made.append(ir.node("Add", [made[-1].outputs[0], summand], name=f"{node.name}_Add"))
    if activation == "Clip":
        ends = [
            initializer(model, f"{node.name}_{name}", ir.Tensor(np.array(value, np.float32)))
            for name, value in zip(_ACTIVATIONS["Clip"], params, strict=True)
        ]
        made.append(ir.node("Clip", [made[-1].outputs[0], *ends], name=f"{node.name}_Clip"))
    elif activation:
        attributes = dict(zip(_ACTIVATIONS[activation], params, strict=True))
        made.append(ir.node(activation, [made[-1].outputs[0]], attributes, name=f"{node.name}_{activation}"))
    out = node.outputs[0]
    for part in made:
        part.metadata_props.update(node.metadata_props)
        part.outputs[0].type, part.outputs[0].shape = out.type, out.shape
        part.outputs[0].name = f"{out.name}_{part.op_type}"
    node.graph.insert_before(node, made)
    out.replace_all_uses_with(made[-1].outputs[0], replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    made[-1].outputs[0].name = out.name
