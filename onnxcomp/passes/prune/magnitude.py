"""`prune-magnitude`: zero the smallest weights. Download size only: to ORT a zero is a number like any."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxcomp import worker
from onnxcomp.errors import InvalidModelError, NoEffectError, UsageError
from onnxcomp.inspect import Weight, all_nodes, stored_origin, weights
from onnxcomp.passes.base import Context, Effect, Pass, named, option
from onnxcomp.passes.prune.zeros.download import LEVEL, Download
from onnxcomp.passes.prune.zeros.patterns import Pattern
from onnxcomp.passes.prune.zeros.scored import scored
from onnxcomp.passes.prune.zeros.smallest import smallest
from onnxcomp.passes.prune.zeros.sums import Summed, uses

_LABEL = "download size only: ORT runs zeros as fast as any number, and the .onnx file keeps its size"

_SPARSITY = 0.5

#: weights from here on are zeroed whenever they are read, so that saving streams
_LAZY_FROM = 1 << 20

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneMagnitude(Pass):
    """Set the weights with the smallest absolute value to zero (Han et al. 2015, arXiv:1506.02626).

    Weights are stored float tensors of rank 2 or more that Conv, MatMul, Gemm, Gather or recurrent
    nodes use; biases and normalization stay. The file shrinks only once compressed: `download_bytes` says
    to what, by zstd.

    Rules:
        1. Exactly round(sparsity * n) of n weights are zero, over all of them or over each tensor; of equal
           magnitudes the first go, by tensor and index. What is zero already counts.
        2. `pattern` N:M instead of a share: in every M neighbours along the axis that is summed over (input
           channels of Conv, rows of a matrix), the N largest stay. The last group may be smaller; N of it stay
           too. Left whole, with the reason: tables that are only looked up, grouped ConvTranspose, weights that
           nodes sum over along different axes.
        3. float16 and bfloat16 are compared as what they hold, with all others.
        4. `score` activation, with data: |w| times the root mean square of what it is multiplied with, compared
           within each output (Wanda, Sun et al. 2023, arXiv:2306.11695). Only weights of MatMul, Gemm and Conv
           without groups; the others stay whole. On a sentence encoder better by far at half the weights
           (cosine 0.86 instead of 0.76 to the whole model's); beyond 70 % on a small classifier it was worse.
    """

    name: ClassVar[str] = "prune-magnitude"

    sparsity: float | None = option(None, "share of zeros among the weights, above 0 and below 1; unset: 0.5")
    scope: Literal["global", "per_tensor"] = option("global", "one threshold for all weights, or one each")
    pattern: str | None = option(None, "N:M, at most N of M neighbours are not zero, instead of a sparsity")
    score: Literal["magnitude", "activation"] = option(
        "magnitude", "what ranks weights: their size, or that times the size of what they meet in the data"
    )
    exclude: tuple[str, ...] = option((), "nodes, or torch modules, whose weights stay as they are")

    @property
    def wants_data(self) -> bool:  # type: ignore[override]  # all of it judges where none ranks
        """Whether samples calibrate."""
        return self.score == "activation"

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (options, unknown node), NoEffectError (no weights), InvalidModelError (NaN)."""
        pattern = self._check(context)
        chosen = self._chosen(model, context)
        changes = self._changes(model, chosen, pattern, context)
        chosen = [w for w in chosen if w.value in changes]
        if not chosen:
            raise NoEffectError("the model has no float weights to prune", hint="see the notes, or 'onnxcomp inspect'")
        before, after = Download(), Download()
        zeros_before = zeros = 0
        for number, weight in enumerate(chosen):
            worker.report("pruning weights", number / len(chosen))
            counts = _zero(weight, changes[weight.value], before, after)
            zeros_before, zeros = zeros_before + counts[0], zeros + counts[1]
        parameters, raw = sum(w.tensor.size for w in chosen), sum(w.tensor.nbytes for w in chosen)
        context.note(_LABEL)
        packed = after.finish()
        details: dict[str, Any] = {
            "removed_parameters": zeros - zeros_before,
            "parameters": parameters,
            "sparsity": zeros / parameters,
            "weights": len(chosen),
            "download_bytes": {"before": before.finish(), "after": packed, "codec": f"zstd -{LEVEL}, of the weights"},
            "download_ratio": packed / raw,
            "label": "download size only",
        }
        return Effect(zeros > zeros_before, details)

    def _check(self, context: Context) -> Pattern | None:
        if self.score == "activation":
            if context.data is None:
                raise UsageError("score 'activation' needs data", where="score", hint="give --data")
            if self.scope != "global":
                raise UsageError("scores compare the weights of one output: they have no scope", where="scope")
        if self.pattern is None:
            if self.sparsity is not None and not 0 < self.sparsity < 1:
                raise UsageError(f"sparsity {self.sparsity} is not between 0 and 1", where="sparsity")
            return None
        if self.sparsity is not None:
            raise UsageError("pattern and sparsity do not go together", where="sparsity")
        if self.scope != "global":
            raise UsageError("a pattern holds everywhere: it has no scope", where="scope")
        return Pattern.parse(self.pattern)

    def _chosen(self, model: ir.Model, context: Context) -> list[Weight]:
        kept = {node for nodes in named(model, self.exclude).values() for node in nodes}
        origins = [stored_origin(v) for n in all_nodes(model) if n.name in kept for v in n.inputs]
        whole = {origin[0] for origin in origins if origin is not None}
        return [weight for weight in weights(model) if _takes(weight, whole, context)]

    def _changes(
        self, model: ir.Model, chosen: list[Weight], pattern: Pattern | None, context: Context
    ) -> dict[ir.Value, Change]:
        """What zeroes each weight; those that stay whole are left out."""
        if pattern is None and self.score == "magnitude":
            return self._by_threshold(chosen)
        used = uses(model)
        if self.score == "magnitude":
            assert pattern is not None
            return dict(_patterned(chosen, pattern, used, context))
        scores = scored(model, chosen, used, context)
        if pattern is None:
            return {value: functools.partial(score.by_share, share=self._share) for value, score in scores.items()}
        axes = dict(_patterned([w for w in chosen if w.value in scores], pattern, used, context))
        return {value: functools.partial(scores[value].by_pattern, pattern=pattern) for value in axes}

    @property
    def _share(self) -> float:
        return _SPARSITY if self.sparsity is None else self.sparsity

    def _by_threshold(self, chosen: list[Weight]) -> dict[ir.Value, Change]:
        """Exactly the share of zeros, over all weights or each."""
        scopes = [chosen] if self.scope == "global" else [[weight] for weight in chosen]
        found: dict[ir.Value, Change] = {}
        for number, scope in enumerate(scopes):

            def looked(done: float, number: int = number) -> None:
                worker.report("ranking weights", (number + done) / len(scopes))

            count = round(self._share * sum(weight.tensor.size for weight in scope))
            cuts = smallest([weight.tensor.numpy for weight in scope], count, looked)
            found.update((weight.value, cut.zeroed) for weight, cut in zip(scope, cuts, strict=True))
        return found


def _takes(weight: Weight, whole: set[ir.Value], context: Context) -> bool:
    node = weight.node.name or weight.node.op_type
    if weight.value in whole:
        context.note("excluded", node)
    elif not weight.tensor.dtype.is_floating_point() or weight.tensor.dtype.bitwidth < 16:
        context.note(f"weight of type {weight.tensor.dtype.name} is not pruned", node)
    elif not np.all(np.isfinite(weight.tensor.numpy())):
        raise InvalidModelError("a weight holds NaN or infinity", where=f"tensor {weight.value.name}")
    else:
        return True
    return False


def _patterned(
    chosen: list[Weight], pattern: Pattern, used: Mapping[ir.Value, list[Summed]], context: Context
) -> Iterator[tuple[ir.Value, Change]]:
    """(weight, what makes its groups), with a note for what stays whole."""
    for weight in chosen:
        node = weight.node.name or weight.node.op_type
        axes = {use.axis for use in used[weight.value] if "Gather" not in use.node.op_type}
        axis = next(iter(axes), None)
        if axis is None or len(axes) > 1:
            context.note(_WHY_WHOLE["several" if len(axes) > 1 else "none"], node)
            continue
        size = int(weight.tensor.shape.numpy()[axis])
        if size <= pattern.kept:
            context.note(f"sums over {size} elements: every group keeps {pattern.kept}", node)
            continue
        if rest := size % pattern.of:
            context.note(
                f"sums over {size} elements: the last group has {rest}, and keeps at most {pattern.kept}", node
            )
        yield weight.value, functools.partial(pattern.zeroed, axis=axis)


_WHY_WHOLE = {
    "none": "no axis of its weight is known to be summed over: no pattern for it",
    "several": "its weight is summed over along different axes: no pattern for it",
}


def _zero(weight: Weight, change: Change, before: Download, after: Download) -> tuple[int, int]:
    """Zero a weight of the model; (zeros before, zeros after)."""
    old, array = weight.tensor, weight.tensor.numpy()
    pruned = change(array)
    before.add(array)
    after.add(pruned)

    def make() -> ir.TensorProtocol:
        return ir.Tensor(change(old.numpy()), name=old.name, dtype=old.dtype)

    tensor: ir.TensorProtocol = ir.Tensor(pruned, name=old.name, dtype=old.dtype)
    if old.nbytes >= _LAZY_FROM:
        tensor = ir.LazyTensor(make, old.dtype, ir.Shape(old.shape.numpy()), name=old.name)
    producer = weight.value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
    weight.value.const_value = tensor
    return array.size - int(np.count_nonzero(array)), array.size - int(np.count_nonzero(pruned))
