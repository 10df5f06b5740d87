"""What cannot run, found before anything does: operators, attributes and types without a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from onnxcomp.errors import UnsupportedError
from onnxcomp.inspect import all_nodes
from onnxcomp.pytorch.graph_module import convolution, recurrent
from onnxcomp.pytorch.graph_module.registry import MICROSOFT, OPSETS, function_of

#: node -> why it cannot run, or None
Check = Callable[[ir.Node], str | None]


def refuse(model: ir.Model) -> None:
    """Raise UnsupportedError that names every node that cannot run, with the reason."""
    reasons: dict[str, list[str]] = {}
    for node in all_nodes(model):
        for reason in _reasons(node, model):
            reasons.setdefault(reason, []).append(node.name or str(node.outputs[0].name))
    found = [f"{reason} ({len(nodes)}x)" for reason, nodes in sorted(reasons.items())]
    opset = model.opset_imports.get("", OPSETS.stop - 1)
    if opset not in OPSETS:
        found.insert(0, f"opset {opset}, outside of {OPSETS.start} to {OPSETS.stop - 1}")
    if found:
        raise UnsupportedError(
            f"torch cannot run this graph: {'; '.join(found)}",
            where=", ".join(name for names in reasons.values() for name in names) or None,
            hint="a part of the model can run: cut off what decodes inputs and outputs; an older opset can be upgraded",
        )


def _reasons(node: ir.Node, model: ir.Model) -> Iterator[str]:
    name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if (node.domain, node.op_type) == ("", "Constant"):
        if "value" not in node.attributes:
            yield "Constant of strings, or sparse"
    elif function_of(node.domain, node.op_type, model.opset_imports.get(node.domain, 1)) is None:
        yield name
    elif (check := _CHECKS.get((node.domain, node.op_type))) is not None and (reason := check(node)) is not None:
        yield f"{name} {reason}"


def _value(node: ir.Node, attribute: str, default: object = None) -> object:
    found = node.attributes.get(attribute)
    return default if found is None else found.value


def _fed(node: ir.Node, *positions: int) -> bool:
    return any(at < len(node.inputs) and node.inputs[at] is not None for at in positions)


def _used(node: ir.Node, position: int) -> bool:
    return position < len(node.outputs) and bool(node.outputs[position].name)


def _pool(node: ir.Node) -> str | None:
    return "with indices" if _used(node, 1) else None


def _resize(node: ir.Node) -> str | None:
    if _value(node, "antialias", 0):
        return "with antialiasing"
    if _value(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return "with tf_crop_and_resize"
    return None


def _recurrent(node: ir.Node) -> str | None:
    names = _value(node, "activations") or ()
    unknown = {str(name) for name in names if str(name).lower() not in recurrent.ACTIVATIONS}  # type: ignore[attr-defined]
    return f"with activation {', '.join(sorted(unknown))}" if unknown else None


def _fused_conv(node: ir.Node) -> str | None:
    name = _value(node, "activation")
    return None if name in convolution.ACTIVATIONS else f"with activation {name}"


def _quantize(node: ir.Node) -> str | None:
    types = {value.dtype for value in node.inputs[2:3] if value is not None and value.dtype is not None}
    declared = _value(node, "output_dtype", 0)
    types |= {ir.DataType(declared)} if isinstance(declared, int) and declared else set()
    if any(not dtype.is_integer() for dtype in types):
        return "to float8"
    return "in blocks" if _value(node, "block_size", 0) and node.op_type == "QuantizeLinear" else None


def _multi_head(node: ir.Node) -> str | None:
    if not _fed(node, 1) or not _fed(node, 2):
        return "with packed inputs"
    return "with a past" if _fed(node, 6, 7) or _used(node, 1) else None


def _packed(node: ir.Node) -> str | None:
    if _value(node, "do_rotary", 0):
        return "with rotary positions"
    return "with a past" if _fed(node, 4, 6) or _used(node, 1) else None


def _blocks(node: ir.Node) -> str | None:
    if _value(node, "bits", 4) not in (4, 8):
        return f"of {_value(node, 'bits')} bits"
    return "with a group index" if _fed(node, 4) else None


def _table(node: ir.Node) -> str | None:
    if _value(node, "gather_axis", 0):
        return "along another axis than the first"
    return None if _value(node, "bits", 4) in (4, 8) else f"of {_value(node, 'bits')} bits"


def _batch_norm(node: ir.Node) -> str | None:
    return "with statistics as outputs" if _used(node, 1) else None


_CHECKS: Mapping[tuple[str, str], Check] = {
    ("", "BatchNormalization"): _batch_norm,
    ("", "GRU"): _recurrent,
    ("", "LSTM"): _recurrent,
    ("", "MaxPool"): _pool,
    ("", "QuantizeLinear"): _quantize,
    ("", "RNN"): _recurrent,
    ("", "Resize"): _resize,
    (MICROSOFT, "Attention"): _packed,
    (MICROSOFT, "FusedConv"): _fused_conv,
    (MICROSOFT, "GatherBlockQuantized"): _table,
    (MICROSOFT, "MatMulNBits"): _blocks,
    (MICROSOFT, "MultiHeadAttention"): _multi_head,
}
