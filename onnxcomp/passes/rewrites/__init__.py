"""Rewrites of `simplify` that onnxscript's rules lack: views, slices, constants beside MatMul, Conv and Mul.

Each takes a node and the opset, and says whether it changed the graph. Shapes are those that inference
found; where one is not known, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxcomp.inspect import all_nodes
from onnxcomp.passes.rewrites import arithmetic, moves

_Attempt = Callable[[ir.Node, int], bool]

_ATTEMPTS: Mapping[str, Sequence[_Attempt]] = {
    "Add": (arithmetic.neutral, arithmetic.bias_of_conv, arithmetic.bias_of_matmul),
    "Concat": (moves.concat_of_concat,),
    "Div": (arithmetic.neutral,),
    "Dropout": (moves.idle_dropout,),
    "Mul": (arithmetic.neutral, arithmetic.factor_of_factor),
    "Pad": (moves.pad_by_nothing,),
    "Reshape": (moves.reshape_to_computed, moves.reshape_of_view, moves.reshape_to_itself),
    "Slice": (moves.slice_of_all, moves.slice_of_slice),
    "Split": (moves.split_in_one,),
    "Squeeze": (moves.squeeze_of_unsqueeze, moves.unsqueeze_of_reshape),
    "Sub": (arithmetic.neutral,),
    "Unsqueeze": (moves.unsqueeze_of_unsqueeze, moves.unsqueeze_of_reshape),
}


def rewrite(model: ir.Model) -> int:
    """Try every rewrite at every node, once: how many changed something."""
    opset, changed = model.opset_imports.get("", 0), 0
    if opset < 7:
        return 0
    inside = {node for function in model.functions.values() for node in function.all_nodes()}
    for node in list(all_nodes(model)):
        if node.domain or node in inside or node.graph is None:
            continue
        for attempt in _ATTEMPTS.get(node.op_type, ()):
            if attempt(node, opset):
                changed += 1
                break
    return changed
