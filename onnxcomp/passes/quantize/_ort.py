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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime import quantization
from onnxruntime.quantization import calibrate, registry

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.errors import (
    CalibrationError,
    InvalidModelError,
    OnnxcompError,
    UnsupportedError,
    UsageError,
    nearest,
)
from onnxcomp.passes.base import Context, drop_inner_shapes, muted

#: a tensor whose type onnx cannot infer, behind an operator of com.microsoft, is float32
_EXTRA = {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT}

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
    """Weights to int8, activations quantized while running."""

    def write(source: Path, target: Path, exclude: tuple[str, ...]) -> None:
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(request.op_types),
            per_channel=request.per_channel,
            reduce_range=request.reduce_range,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            use_external_data_format=_is_large(model),
            extra_options=dict(_EXTRA),
        )

    return _until_it_loads(model, request, context, write)


def static(model: ir.Model, request: Request, context: Context, data: Batches) -> ir.Model:
    """Weights to int8, activations to uint8 with ranges from `data`, as Q/DQ pairs."""
    with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        source = models.write_to(model, Path(folder), "calibrate")
        ranges = _ranges(source, request.op_types, data, Path(folder))
    cache = context.workdir / "ranges.json"
    _save_ranges(ranges, cache)

    def write(source: Path, target: Path, exclude: tuple[str, ...]) -> None:
        quantization.quantize_static(
            source,
            target,
            None,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(request.op_types),
            per_channel=request.per_channel,
            reduce_range=request.reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            use_external_data_format=_is_large(model),
            calibrate_method=quantization.CalibrationMethod.MinMax,
            calibration_cache_path=cache,
            extra_options=dict(_EXTRA),
        )

    return _until_it_loads(model, request, context, write)


def _is_large(model: ir.Model) -> bool:
    held = (v.const_value for v in model.graph.initializers.values())
    return sum(t.nbytes for t in held if t is not None) > models.EXTERNAL_ABOVE


def _until_it_loads(model: ir.Model, request: Request, context: Context, write: Any) -> ir.Model:
    """Quantize, load in ORT; leave the node that the error names in float and try again."""
    nodes = [n.name for n in model.graph if n.name]
    exclude = list(request.exclude)
    for _ in range(_RETRIES):
        with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
            source = models.write_to(model, Path(folder), "source")
            target = Path(folder) / "quantized.onnx"
            with _typed_errors():
                # ORT first turns Gemm into MatMul and Add, and forgets that it was excluded
                write(source, target, (*exclude, *(f"{name}_MatMul" for name in exclude)))
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


Ranges = Mapping[str, tuple[np.ndarray, np.ndarray]]


def _ranges(source: Path, op_types: tuple[str, ...], data: Batches, folder: Path) -> Ranges:
    """Smallest and largest value of every activation over the data: {tensor: (low, high)}.

    ORT's calibrator adds ReduceMin and ReduceMax to the graph, so that two numbers per tensor and
    batch are kept, not the tensors.
    """
    reader = _Reader(data)
    with _typed_errors():
        calibrator = calibrate.create_calibrator(
            source,
            list(op_types),
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=quantization.CalibrationMethod.MinMax,
            use_external_data_format=False,
        )
        calibrator.collect_data(reader)
        found = calibrator.compute_data()
    ranges = {}
    for name, entry in found.data.items():
        low, high = np.asarray(entry.lowest), np.asarray(entry.highest)
        if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
            raise CalibrationError(
                "an activation is NaN or infinite on the calibration data",
                where=f"tensor {name}",
                hint="look at the samples, or at the layer that makes it",
            )
        ranges[name] = (low, high)
    return ranges


def _save_ranges(ranges: Ranges, path: Path) -> None:
    data = {
        name: calibrate.TensorData(lowest=np.asarray(low, np.float32), highest=np.asarray(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    tensors = calibrate.TensorsData(quantization.CalibrationMethod.MinMax, data)
    calibrate.save_tensors_data(tensors, path, smooth_quant=False)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds our batches to ORT, checked and counted."""

    def __init__(self, data: Batches) -> None:
        self._batches = iter(data)
        self._total, self._done = data.samples, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        worker.report("calibrating", self._done / self._total)
        self._done += batch.samples
        return dict(batch.feeds)
