"""Which weights get codes that were chosen on data, and what that gains."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxcomp import worker
from onnxcomp.activations import observe_moments
from onnxcomp.data import unpadded
from onnxcomp.passes.base import Context
from onnxcomp.passes.quantize.layers import Layer, layers
from onnxcomp.passes.quantize.stored import tensor_of
from onnxcomp.passes.share import assign, palette
from onnxcomp.passes.share.palette import Layout, Palette


def choose(
    model: ir.Model, layouts: Mapping[ir.Value, Layout], context: Context
) -> tuple[dict[ir.Value, Palette], dict[str, Any]]:
    """Palettes of the weights for which codes chosen on the data are better there, and the figures of all.

    Only weights that one MatMul, Gemm or Conv without groups multiplies with. One pass over the data for every
    512 MiB of Gram matrices.

    Raises CalibrationError for NaN and infinity.
    """
    assert context.data is not None
    able = {layer.node: layer for layer in layers(model) if layer.stored in layouts and _is_plain(layer)}
    widths = {node: layer.matrix().shape[0] for node, layer in able.items()}
    found: dict[ir.Value, Palette] = {}
    errors: list[tuple[float, float]] = []
    few: list[int] = []
    for part in observe_moments(model, unpadded(context.data), widths, workdir=context.workdir, store=context.store):
        for _, same in itertools.groupby(part.items(), lambda item: id(item[1])):
            items = list(same)
            moments = items[0][1]
            known = assign.Known.of(moments.gram[0]) if moments.count else None
            if known is None:
                for node, _ in items:
                    context.note("nearest codes: its input is zero or not float", node.name or "")
                continue
            if moments.count < len(known.order):
                few.append(moments.count)
            for node, _ in items:
                made, before, after = _best(able[node], layouts[able[node].stored], known)
                errors.append((before, min(before, after)))
                if made is not None:
                    found[able[node].stored] = made
                worker.report("choosing codes", len(errors) / len(able))
    if few:
        context.note(
            f"the data has as few as {min(few)} rows, less than the width of a matrix, for {len(few)} inputs: "
            "more samples would tell more"
        )
    columns = zip(*errors, strict=True) if errors else ([0.0], [0.0])
    nearest, chosen = (float(f"{sum(column) / len(column):.4g}") for column in columns)
    return found, {"weights": len(found), "of": len(able), "output_error": {"nearest": nearest, "chosen": chosen}}


def _is_plain(layer: Layer) -> bool:
    return not layer.shared and layer.node.attributes.get_int("group", 1) == 1


def _best(layer: Layer, layout: Layout, known: assign.Known) -> tuple[Palette | None, float, float]:
    """(the palette if it is better than the nearest codes, error of the outputs with those, and with these)."""
    array = tensor_of(layer.stored).numpy()
    matrix = layer.matrix().T
    turned = Layout(layout.bits, 0, layout.groups)
    near = assign.loss(matrix, palette.fit(matrix, turned), known.gram)
    made = assign.fit(matrix, turned, known)
    chosen = assign.loss(matrix, made, known.gram)
    return (made.along(array, layout.axis) if chosen < near else None), near, chosen
