"""Which nodes of the asked operator types static quantization leaves in float unless told otherwise."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxcomp.inspect import constants


def float_nodes(model: ir.Model, op_types: Collection[str], excluded: Collection[str]) -> list[str]:
    """Names of the MatMul nodes that multiply two activations: attention's are short, and not robust in int8."""
    stored = {value for value, _ in constants(model)}
    return [
        node.name or ""
        for node in model.graph
        if node.op_type == "MatMul"
        and node.op_type in op_types
        and not node.domain
        and node.name not in excluded
        and not any(value in stored for value in node.inputs)
    ]
