"""Which weights are rounded with error feedback, on what data, and what that gains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcomp import worker
from onnxcomp.activations import Moments, observe_moments
from onnxcomp.errors import CalibrationError
from onnxcomp.passes.base import Context
from onnxcomp.passes.quantize import _nbits, rounding

#: {MatMul or Gemm of the main graph: its matrix, (out, in)}
Matrices = Mapping[ir.Node, Callable[[], np.ndarray]]


def round_on_data(
    model: ir.Model,
    matrices: Matrices,
    context: Context,
    *,
    bits: int,
    size: int,
    symmetric: bool,
    search: bool,
) -> tuple[dict[ir.Node, _nbits.Blocks], dict[str, Any]]:
    """Blocks for the matrices on which feedback gains on the data, and the figures of all.

    One pass over the data for every 512 MiB of Gram matrices; one of them is factorized at a time.

    Raises CalibrationError for NaN and infinity, and for random data.
    """
    if context.data is None:
        raise CalibrationError("rounding with error feedback needs data", where="data", hint="give --data")
    context.data.require_real("rounding with error feedback")
    form: dict[str, Any] = {"bits": bits, "size": size, "symmetric": symmetric, "search": search}
    widths = {node: matrix().shape[1] for node, matrix in matrices.items()}
    found: dict[ir.Node, _nbits.Blocks] = {}
    layers: list[dict[str, Any]] = []
    few: list[int] = []
    for part in observe_moments(model, context.data, widths, workdir=context.workdir, store=context.store):
        for moments, nodes in _same(part):
            known = rounding.feedback(moments.gram[0]) if moments.count else None
            if known is None:
                for node in nodes:
                    context.note("rounded to the nearest: its input is zero or not float", node.name or "")
                continue
            if moments.count < len(known.costs):
                few.append(moments.count)
            for node in nodes:
                matrix = matrices[node]()
                loss = rounding.loss(matrix, moments.gram[0], known, **form)
                if loss.gptq < loss.nearest:
                    found[node] = rounding.fit(matrix, known, **form)
                layers.append({"node": node.name, "nearest": _figure(loss.nearest), "gptq": _figure(loss.gptq)})
                worker.report("rounding", len(layers) / len(matrices))
    if few:
        context.note(
            f"GPTQ saw as few as {min(few)} rows, less than the width of a matrix, for {len(few)} inputs: "
            "more samples would tell it more"
        )
    return found, {"weights": len(found), "of": len(matrices), "output_error": _mean(layers), "layers": layers}


def _same(part: dict[ir.Node, Moments]) -> Iterator[tuple[Moments, list[ir.Node]]]:
    """Moments with the nodes that share them; `part` is emptied, so that each can go when it is done."""
    while part:
        moments = part.pop(first := next(iter(part)))
        nodes = [first, *(node for node, others in part.items() if others is moments)]
        for node in nodes[1:]:
            del part[node]
        yield moments, nodes


def _mean(layers: list[dict[str, Any]]) -> dict[str, float]:
    """Of the relative errors of all layers."""
    count = max(len(layers), 1)
    return {way: _figure(sum(layer[way] for layer in layers) / count) for way in ("nearest", "gptq")}


def _figure(number: float) -> float:
    return float(f"{number:.4g}")
