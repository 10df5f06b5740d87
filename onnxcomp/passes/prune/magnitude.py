"""`prune-magnitude`: zero the smallest weights. Download size only: to ORT a zero is a number like any."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxcomp.errors import InvalidModelError, NoEffectError, UsageError
from onnxcomp.inspect import Weight, weights
from onnxcomp.passes.base import Context, Effect, Pass, named, option

_LABEL = "download size only: ORT runs zeros as fast as any number, and the .onnx file keeps its size"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneMagnitude(Pass):
    """Set the weights with the smallest absolute value to zero (Han et al. 2015).

    Weights are stored float tensors of rank 2 or more that Conv, MatMul, Gemm, Gather or recurrent
    nodes use; biases and normalization stay. The file shrinks only once compressed.
    """

    name: ClassVar[str] = "prune-magnitude"

    sparsity: float = option(0.5, "share of zeros among the weights, above 0 and below 1")
    scope: Literal["global", "per_tensor"] = option("global", "one threshold for all weights, or one each")
    exclude: tuple[str, ...] = option((), "nodes, or torch modules, whose weights stay as they are")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (sparsity, unknown node), NoEffectError (no weights), InvalidModelError (NaN)."""
        if not 0 < self.sparsity < 1:
            raise UsageError(f"sparsity {self.sparsity} is not between 0 and 1", where="sparsity")
        kept = {node for nodes in named(model, self.exclude).values() for node in nodes}
        chosen = [w for w in weights(model) if self._takes(w, kept, context)]
        if not chosen:
            raise NoEffectError("the model has no float weights to prune", hint="see the notes, or 'onnxcomp inspect'")
        thresholds = self._thresholds(chosen)
        before = after = zeros_before = zeros = parameters = 0
        for weight, threshold in zip(chosen, thresholds, strict=True):
            array = weight.tensor.numpy()
            pruned = np.where(np.abs(array) > threshold, array, np.zeros((), array.dtype))
            parameters += array.size
            zeros_before += array.size - int(np.count_nonzero(array))
            zeros += pruned.size - int(np.count_nonzero(pruned))
            before += len(zlib.compress(np.ascontiguousarray(array).tobytes(), 6))
            after += len(zlib.compress(np.ascontiguousarray(pruned).tobytes(), 6))
            _store(weight, pruned)
        context.note(_LABEL)
        details: dict[str, Any] = {
            "removed_parameters": zeros - zeros_before,
            "parameters": parameters,
            "sparsity": zeros / parameters,
            "weights": len(chosen),
            "download_bytes": {"before": before, "after": after, "codec": "zlib, of the weights"},
            "label": "download size only",
        }
        return Effect(zeros > zeros_before, details)

    def _takes(self, weight: Weight, kept: set[str], context: Context) -> bool:
        node = weight.node.name or weight.node.op_type
        if weight.node.name in kept:
            context.note("excluded", node)
        elif not weight.tensor.dtype.is_floating_point() or weight.tensor.dtype.bitwidth < 16:
            context.note(f"weight of type {weight.tensor.dtype.name} is not pruned", node)
        elif not np.all(np.isfinite(weight.tensor.numpy())):
            raise InvalidModelError("a weight holds NaN or infinity", where=f"tensor {weight.value.name}")
        else:
            return True
        return False

    def _thresholds(self, chosen: list[Weight]) -> list[float]:
        """The largest magnitude that is still zeroed, per weight; equal magnitudes fall together."""
        if self.scope == "per_tensor":
            return [_quantile(np.abs(w.tensor.numpy()).ravel(), self.sparsity) for w in chosen]
        # one float32 copy of all magnitudes: a quarter of what float64 would take
        every = np.concatenate([np.abs(w.tensor.numpy()).ravel().astype(np.float32) for w in chosen])
        return [_quantile(every, self.sparsity)] * len(chosen)


def _quantile(magnitudes: np.ndarray, share: float) -> float:
    rank = int(share * magnitudes.size)
    if rank == 0:
        return -1.0
    return float(np.partition(magnitudes, rank - 1)[rank - 1])


def _store(weight: Weight, array: np.ndarray) -> None:
    tensor = ir.Tensor(array, name=weight.tensor.name, dtype=weight.tensor.dtype)
    producer = weight.value.producer()
    if producer is None:
        weight.value.const_value = tensor
    else:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
        weight.value.const_value = tensor
