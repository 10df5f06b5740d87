"""From torch's program to an ONNX graph with the user's names, and a map back to torch's."""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from onnxcomp.errors import GateError, UnsupportedError, UsageError
from onnxcomp.inspect import MODULE, all_nodes
from onnxcomp.passes.base import drop_inner_shapes
from onnxcomp.passes.simplify import simplify
from onnxcomp.pytorch.capture import Subject, quiet, refusal

#: key of the model's metadata: {torch parameter: {initializer, transposed} or null}
PARAMETERS = "onnxcomp.parameters"

_FOLD = 1 << 18


def convert(subject: Subject, opset: int, names: Sequence[str], *, serving: bool) -> ir.Model:
    """The ONNX model, with input, output and axis names, module paths and the parameter map.

    serving: constants and BatchNormalization are folded, equal tensors merged; else the graph stays
    as torch wrote it, every parameter under its own name.

    Raises UnsupportedError where an operator has no ONNX form, UsageError for names that do not fit,
    GateError where axes of two names must have one size.
    """
    with quiet():
        try:
            made = torch.onnx.export(
                subject.program, (), dynamo=True, opset_version=opset, optimize=False, verbose=False
            )
        except Exception as error:
            raise refusal(error) from error
    if made is None:
        raise UnsupportedError("torch exported nothing")
    model: ir.Model = made.model
    held = list(model.graph.initializers.values())
    common.OutputFixPass()(model)  # an input that is also an output gets an Identity between
    _keep_modules(model)
    common.RemoveUnusedNodesPass()(model)
    _rename(model, [one.name for one in subject.inputs], names or _default_names(subject, len(model.graph.outputs)))
    _name_axes(model, subject)
    if serving:
        _transpose_lazily(model)
        simplify(model, constant_bytes=_FOLD, trust_shapes=True)
    drop_inner_shapes(model)
    _strip(model)
    model.metadata_props[PARAMETERS] = json.dumps(parameter_map(subject.program, model), sort_keys=True)
    result = model.clone()
    for value in [*held, *model.graph.initializers.values()]:
        value.const_value = None  # onnxscript's rules remember the last graph that they saw
    return result


def parameter_map(program: torch.export.ExportedProgram, model: ir.Model) -> dict[str, dict[str, Any] | None]:
    """Where each torch parameter and buffer went: {name: {initializer, transposed}}, None when it was folded.

    By value, never by name alone: a Conv whose BatchNormalization was folded keeps its name.
    """
    stored: dict[tuple[Any, ...], str] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            stored.setdefault(_key(value.const_value.numpy()), name)
    found: dict[str, dict[str, Any] | None] = {}
    tensors = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        array = ir.tensor(tensor.detach().cpu().contiguous()).numpy()
        own = model.graph.initializers.get(name)
        if own is not None and own.const_value is not None and _key(own.const_value.numpy()) == _key(array):
            found[name] = {"initializer": name, "transposed": False}
            continue
        straight = stored.get(_key(array))
        turned = stored.get(_key(array.T)) if array.ndim == 2 else None
        initializer = straight or turned
        found[name] = None if initializer is None else {"initializer": initializer, "transposed": straight is None}
    return found


def _key(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _keep_modules(model: ir.Model) -> None:
    """Reduce torch's notes on a node, which hold paths of the user's sources, to its module's path."""
    for node in all_nodes(model):
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        path = ""
        if scopes:
            parts = ast.literal_eval(scopes)
            path = parts[-2] if len(parts) > 1 else ""
        node.metadata_props.clear()
        if path and not path.startswith("_empty_nn_module_stack"):
            node.metadata_props[MODULE] = path


def _transpose_lazily(model: ir.Model) -> None:
    """Make transposed weights that are computed when they are written; folding would copy all at once."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" and not node.domain else None
        if source is None or source.const_value is None or len(source.const_value.shape) != 2:
            continue
        tensor = source.const_value
        output = node.outputs[0]
        rows, columns = tensor.shape.numpy()
        turned = ir.LazyTensor(
            functools.partial(_turned, tensor), dtype=tensor.dtype, shape=ir.Shape((columns, rows)), name=output.name
        )
        value = ir.Value(name=output.name, type=ir.TensorType(tensor.dtype), shape=turned.shape, const_value=turned)
        output.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(value)


def _turned(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(tensor.numpy().T), dtype=tensor.dtype)


def _strip(model: ir.Model) -> None:
    """Nothing but module paths may stay: metadata and doc strings name files of this machine."""
    modules = {id(node): node.metadata_props.get(MODULE) for node in all_nodes(model)}
    common.ClearMetadataAndDocStringPass()(model)
    for node in all_nodes(model):
        if path := modules[id(node)]:
            node.metadata_props[MODULE] = path


def _default_names(subject: Subject, count: int) -> list[str]:
    found = list(subject.outputs)
    if len(found) != count or len(set(found)) != count or not all(found):
        return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    return [f"output_{name}" if name[0].isdigit() else name for name in found]


def _rename(model: ir.Model, inputs: Sequence[str], names: Sequence[str]) -> None:
    """Give inputs and outputs their names; an inner value that has one of them already steps aside.

    torch writes an invalid file when an output is named like an operator used inside.
    """
    graph = model.graph
    count = len(graph.outputs)
    if len(names) != count or len({*names, *inputs}) != count + len(inputs):
        raise UsageError(
            f"the model has {count} outputs, {len(names)} names were given"
            if len(names) != count
            else "names of inputs and outputs must differ",
            where="--output-names",
        )
    faces = dict(zip([*graph.inputs, *graph.outputs], [*inputs, *names], strict=True))
    wanted = set(faces.values())
    taken = {v.name for node in graph.all_nodes() for v in node.outputs} | set(graph.initializers)
    for value in [*(v for node in graph.all_nodes() for v in node.outputs), *graph.initializers.values()]:
        if value.name in wanted and value not in faces:
            fresh = f"{value.name}_inner"
            while fresh in taken or fresh in wanted:
                fresh += "_"
            taken.add(fresh)
            value.name = fresh
    for i, value in enumerate(faces):
        value.name = f"onnxcomp.face.{i}"  # first out of each other's way
    for value, name in faces.items():
        value.name = name


def _name_axes(model: ir.Model, subject: Subject) -> None:
    """Call torch's symbols (s77) what the user called the axes, in inputs and outputs."""
    symbols: dict[str, str] = {}
    for value, one in zip(model.graph.inputs, subject.inputs, strict=True):
        for axis, name in one.dims.items():
            size = value.shape[axis] if value.shape is not None else None
            symbol = size.value if isinstance(size, ir.SymbolicDim) else None
            if symbol is not None and symbols.setdefault(symbol, name) != name:
                raise GateError(
                    f"'{symbols[symbol]}' and '{name}' are one size to the module",
                    where=f"input {one.name}",
                    hint="give both axes the same name",
                )
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is not None:
            value.shape = ir.Shape(_axis(size, symbols) for size in value.shape)


def _axis(size: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return symbols.get(size.value or "")


def loosen(model: ir.Model, shapes: Sequence[Sequence[tuple[int, ...]]]) -> None:
    """Open the sizes of outputs that torch's export states as constants and that are none.

    shapes: of every output, for every size that was tried.
    """
    for value, seen in zip(model.graph.outputs, zip(*shapes, strict=True), strict=True):
        if value.shape is None or any(len(s) != len(value.shape) for s in seen):
            value.shape = None
            continue
        moving = [len(set(sizes)) > 1 for sizes in zip(*seen, strict=True)]
        value.shape = ir.Shape(
            None if moves and isinstance(d, int) else d for d, moves in zip(value.shape, moving, strict=True)
        )


def release(model: ir.Model) -> None:
    """Let go of the weights, once they are on the disk."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = None
    gc.collect()  # torch's programs refer to themselves
