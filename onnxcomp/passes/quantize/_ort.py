"""The one adapter to `onnxruntime.quantization`.

ORT's quantizer writes beside its input, ignores misspelt options and node names, and reports
success for files that do not load. Here it works in a private folder, with checked arguments, and
what it wrote is loaded before anyone sees it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxruntime import quantization
from onnxruntime.quantization import calibrate as ort_calibrate
from onnxruntime.quantization import registry

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.errors import (
    InvalidModelError,
    OnnxcompError,
    UnsupportedError,
    UsageError,
    nearest,
)
from onnxcomp.inspect import all_nodes
from onnxcomp.passes.base import Context, drop_inner_shapes, muted
from onnxcomp.passes.quantize import calibrate

#: a tensor whose type onnx cannot infer, behind an operator of com.microsoft, is float32
_EXTRA = {"MatMulConstBOnly": True, "DefaultTensorType": int(ir.DataType.FLOAT)}

#: the next float32 after 1, for `alpha`
_MARK = 1 + 2.0**-23

#: how many nodes that make the result unloadable are given up before the pass gives up
_RETRIES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the quantizer is asked for.

    Attributes:
        op_types: operators to quantize.
        exclude: names of nodes that stay in float.
        per_channel: one scale per output channel of a weight instead of one per tensor.
        reduce_range: 7-bit weights, for CPUs whose kernels saturate.
    """

    op_types: tuple[str, ...]
    exclude: tuple[str, ...]
    per_channel: bool
    reduce_range: bool

    def without(self, nodes: Iterable[str]) -> Request:
        """The same, with these nodes in float too."""
        return dataclasses.replace(self, exclude=(*self.exclude, *nodes))


def check_op_types(op_types: tuple[str, ...], *, static: bool) -> None:
    """Raise UsageError for an operator that ORT's quantizer does not know (it would ignore it)."""
    known = {*registry.QDQRegistry, *registry.QLinearOpsRegistry} if static else registry.IntegerOpsRegistry
    names = {*known, *registry.CommonOpsRegistry, "Gemm", "MatMul"}
    for op in op_types:
        if op not in names:
            raise UsageError(
                f"ORT's quantizer does not know the operator type '{op}'",
                where="op_types",
                hint=nearest(op, names) or f"it knows {', '.join(sorted(names))}",
            )


def dynamic(model: ir.Model, request: Request, context: Context) -> ir.Model:
    """Weights to int8, activations quantized while running; not of MatMul, Gemm and Gather."""

    def write(source: Path, target: Path, exclude: tuple[str, ...]) -> None:
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=[op for op in request.op_types if op not in {"Gather", "Gemm", "MatMul"}],
            per_channel=request.per_channel,
            reduce_range=request.reduce_range,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            use_external_data_format=_is_large(model),
            extra_options=dict(_EXTRA),
        )

    kept = model.clone()
    _mark_gemm(kept)
    made = _until_it_loads(kept, request, context, write)
    _unmark(made)
    return made


def static(model: ir.Model, request: Request, context: Context, ranges: calibrate.Ranges) -> ir.Model:
    """Weights to int8, activations to uint8 with these ranges, as Q/DQ pairs."""
    cache = context.workdir / "ranges.json"
    _save_ranges(ranges, cache)

    def write(source: Path, target: Path, exclude: tuple[str, ...]) -> None:
        quantization.quantize_static(
            source,
            target,
            None,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[op for op in request.op_types if op != "Gather"],  # `embedding` did those
            per_channel=request.per_channel,
            reduce_range=request.reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            use_external_data_format=_is_large(model),
            calibrate_method=quantization.CalibrationMethod.MinMax,
            calibration_cache_path=cache,
            extra_options={**_EXTRA, "OpTypesToExcludeOutputQuantization": list(calibrate.FLOAT_OUTPUT)},
        )

    return _until_it_loads(model, request, context, write)


def _is_large(model: ir.Model) -> bool:
    held = (v.const_value for v in model.graph.initializers.values())
    return sum(t.nbytes for t in held if t is not None) > models.EXTERNAL_ABOVE


def _mark_gemm(model: ir.Model) -> None:
    """Make each Gemm one that ORT does not make a MatMul of: it would store the matrix anew."""
    for node in all_nodes(model):
        if node.op_type == "Gemm" and node.attributes.get_float("alpha", 1.0) == 1.0:
            node.attributes["alpha"] = ir.AttrFloat32("alpha", _MARK)


def _unmark(model: ir.Model) -> None:
    for node in all_nodes(model):
        if node.op_type == "Gemm" and node.attributes.get_float("alpha", 1.0) == _MARK:
            del node.attributes["alpha"]


def _until_it_loads(model: ir.Model, request: Request, context: Context, write: Any) -> ir.Model:
    """Quantize, load in ORT; leave the node that the error names in float and try again."""
    nodes = [n.name for n in model.graph if n.name]
    exclude = list(request.exclude)
    for _ in range(_RETRIES):
        with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
            source = models.write_to(model, Path(folder), "source")
            target = Path(folder) / "quantized.onnx"
            with _typed_errors():
                write(source, target, tuple(exclude))
            try:
                runtime.check_loads(target)
            except InvalidModelError as error:
                culprit = _named_node(error.message, nodes, exclude)
                if culprit is None:
                    raise UnsupportedError(
                        f"ORT's quantizer wrote a model that does not load: {error.message}",
                        hint="leave nodes out with --exclude, or use another mode",
                    ) from error
                context.note("left in float: quantized, the model does not load", culprit)
                exclude.append(culprit)
                continue
            made = models.load(target)
            ir.external_data.load_to_model(made)  # the private folder goes away
            drop_inner_shapes(made)
            return made
    raise UnsupportedError(
        f"the model does not load even with {len(exclude)} nodes left in float",
        hint="leave more nodes out with --exclude, or use another mode",
    )


def _named_node(message: str, nodes: list[str], excluded: list[str]) -> str | None:
    """The node of the float model that a load error is about: the longest name that occurs in it."""
    quoted = re.findall(r"[Nn]ode ?(?:\(|name: |: )'?([^)'\s]+)", message)
    found = [n for n in nodes if n not in excluded and any(q == n or q.startswith(n) for q in quoted)]
    if not found:
        found = [n for n in nodes if n not in excluded and n in message]
    return max(found, key=len, default=None)


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    """ORT's quantizer logs advice that we follow already, and raises bare exceptions."""
    try:
        with muted(None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OnnxcompError:
        raise
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            raise runtime.translate(error, None, running=False) from error
        text = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise UnsupportedError(
            f"ORT's quantizer cannot do this model: {text}",
            hint="leave nodes out with --exclude, or use another mode",
        ) from error


def _save_ranges(ranges: calibrate.Ranges, path: Path) -> None:
    data = {
        name: ort_calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    tensors = ort_calibrate.TensorsData(quantization.CalibrationMethod.MinMax, data)
    ort_calibrate.save_tensors_data(tensors, path, smooth_quant=False)
