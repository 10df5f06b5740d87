"""What ONNX Runtime says about values inside a graph: their types, and how large they get on data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.inspect import infer_shapes

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float64": ir.DataType.DOUBLE,
    "bool": ir.DataType.BOOL,
    **{f"{sign}int{bits}": ir.DataType[f"{sign}int{bits}".upper()] for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def infer_types(model: ir.Model, workdir: Path) -> None:
    """Give every value its element type: onnx infers it, ORT where an operator is not onnx's own.

    Values that ORT cannot tell either (inside bodies of If, Loop and Scan, sequences) keep none.
    """
    infer_shapes(model)
    missing = [v.name for node in model.graph for v in node.outputs if v.name and v.type is None]
    if not missing:
        return
    copy = model.clone()
    for node in copy.graph:
        copy.graph.outputs.extend(v for v in node.outputs if v.name in missing and not v.is_graph_output())
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        session = runtime.open_session(models.write_to(copy, Path(folder), "types"))
    found = {spec.name: _DTYPES.get(spec.dtype) for spec in session.signature.outputs}
    for node in model.graph:
        for value in node.outputs:
            dtype = found.get(value.name or "")
            if value.type is None and dtype is not None:
                value.type = ir.TensorType(dtype)


def largest_values(model: ir.Model, data: Batches, workdir: Path) -> Mapping[str, float]:
    """Largest absolute value of every float32 input, and of what the main graph's nodes make, over `data`.

    The graph reduces each to one number while it runs, so that memory does not grow with them.
    Raises DataError when ORT refuses the data.
    """
    copy = model.clone()
    reduced: dict[str, str] = {}
    for value in [*copy.graph.inputs, *(v for node in copy.graph for v in node.outputs)]:
        if value.name and value.dtype == ir.DataType.FLOAT:
            name = f"onnxcomp_largest_{len(reduced)}"
            reduced[name] = value.name
            nodes = _reduction(value, name)
            copy.graph.extend(nodes)
            copy.graph.outputs.append(nodes[-1].outputs[0])
    largest = dict.fromkeys(reduced.values(), 0.0)
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        session = runtime.open_session(models.write_to(copy, Path(folder), "ranges"))
        done, total = 0, data.samples
        for batch in data:
            worker.report("measuring ranges", done / total)
            done += batch.samples
            found = session.run(batch.feeds)
            for name, original in reduced.items():
                largest[original] = float(np.fmax(largest[original], found[name]))
    return largest


def _reduction(value: ir.Value, name: str) -> tuple[ir.Node, ir.Node]:
    absolute = ir.node("Abs", [value])
    absolute.outputs[0].name = f"{name}_abs"
    largest = ir.node("ReduceMax", absolute.outputs, {"keepdims": 0})
    largest.outputs[0].name = name
    largest.outputs[0].type, largest.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    return absolute, largest
