"""`equalize`: even out the ranges of channels between neighbouring layers, before quantization."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.inspect import all_nodes
from onnxcomp.passes.base import Context, Effect, Pass, named, option
from onnxcomp.passes.batchnorm import fold, make_constants
from onnxcomp.passes.quantize import _pairs
from onnxcomp.passes.quantize._pairs import Layer, Pair
from onnxcomp.passes.quantize.common import finite

#: rounds over all pairs; chains of 35 layers need 20 to 50
_ROUNDS = 100

#: a channel that asks for more than two to this power is as good as dead, and its bias may be all it says
_FURTHEST = 20

#: |log2| of a scale that still counts as one
_SETTLED = 0.01

#: tensors of this many bytes and more are read when they are needed, and computed when they are written
_LAZY_FROM = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Scale channels between two layers so that both use their ranges evenly; run it before int8.

    A weight with one scale per tensor loses channels that are far smaller than the largest one.
    What one layer divides by, the next multiplies with: the model computes the same, but for the
    rounding of the scaled weights. How near it comes is reported, not judged: eight real models
    differed by 6e-8 to 1.6e-5 of the largest value.

    Rules:
        1. Pairs: Conv, Gemm or MatMul, a bias by Add, then Relu, LeakyRelu, PRelu, Identity, max or
           average pools, Flatten, then Conv (grouped and depthwise too), Gemm or MatMul. The value
           between has one user; the weights are stored in float32 and belong to one node each.
        2. Channel i of the first layer is divided by sqrt(r1 r2) / r2, with r1 and r2 the largest weights
           of the channel in the two layers; over all pairs until nothing changes, at most 100 times.
        3. BatchNormalization is folded first. Clip (Relu6) stands in the way, with a note: it does
           not scale. So do Sigmoid, Tanh and all others, and sums of two branches.

    After Nagel et al. 2019 (arXiv:1906.04721), section 4.1. For int8 with one scale per tensor, and
    networks whose channels differ much. Scales per channel, the default of `quantize-static`, need no
    such help, and ranges of activations may lose by it: compare both.
    """

    name: ClassVar[str] = "equalize"
    near: ClassVar[bool] = True

    exclude: tuple[str, ...] = option((), "nodes, or torch modules ('encoder.layer.3'), whose weights stay")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (an unknown node in `exclude`), InvalidModelError (NaN or infinite weights)."""
        kept = {node for nodes in named(model, self.exclude).values() for node in nodes}
        make_constants(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        folded, left = fold(model)
        for node, reason in left:
            context.note(f"BatchNormalization stands in the way: {reason}", node)
        pairs, blocked = _pairs.find(list(all_nodes(model)), kept)
        for node, reason in blocked:
            context.note(reason, node)
        for layer in {x.node: x for pair in pairs for x in (pair.first, pair.second)}.values():
            finite(layer.weight, layer.tensor)
        state = _State(pairs)
        before = state.precision()
        settled = any(state.round() for _ in range(_ROUNDS))
        equalized = state.store()
        details = {
            "pairs": len(pairs),
            "equalized": equalized,
            "batch_normalizations_folded": folded,
            "precision_before": before,
            "precision_after": state.precision(),
            "settled": settled,
        }
        return Effect(equalized > 0, details)


class _State:
    """Magnitudes of all layers of the pairs, and by how much each channel is scaled so far."""

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs
        self._layers: dict[ir.Node, Layer] = {x.node: x for pair in pairs for x in (pair.first, pair.second)}
        self._magnitudes = {n: x.magnitudes() for n, x in self._layers.items() if x.tensor.nbytes < _LAZY_FROM}
        self._out = {node: np.zeros(layer.outputs) for node, layer in self._layers.items()}  # log2
        self._into = {node: np.zeros(layer.inputs) for node, layer in self._layers.items()}

    def round(self) -> bool:
        """Even out each pair once; whether all were even already."""
        even = True
        for pair in self._pairs:
            first, second = pair.first.node, pair.second.node
            one, two = self._ranges(pair)
            both = (one > 0) & (two > 0)
            step = np.zeros(len(one))
            step[both] = (np.log2(two[both]) - np.log2(one[both])) / 2
            step[(np.abs(step) <= _SETTLED) | (np.abs(step) > _FURTHEST)] = 0
            if np.any(step):
                even = False
                self._out[first] += step
                self._into[second] -= np.repeat(step, pair.repeat)
        return even

    def precision(self) -> float:
        """Mean of r1 r2 / (R1 R2) over the channels of all pairs, R the largest r of a layer; in [0, 1].

        The paper's aim (eq. 9); 1 without pairs.
        """
        shares = [r / max(r.max(), np.finfo(np.float32).tiny) for pair in self._pairs for r in self._ranges(pair)]
        products = [one * two for one, two in zip(shares[::2], shares[1::2], strict=True)]
        return float(np.mean(np.concatenate(products))) if products else 1.0

    def store(self) -> int:
        """Write the scaled weights and biases into the model: how many pairs changed."""
        for node, layer in self._layers.items():
            out, into = self._out[node], self._into[node]
            if np.any(out) or np.any(into):
                _store(layer.weight, partial(layer.scaled, out=np.exp2(out), into=np.exp2(into)))
        changed = [pair for pair in self._pairs if np.any(self._out[pair.first.node])]
        for pair in changed:
            factor = np.exp2(self._out[pair.first.node])
            for bias in pair.biases:
                _store(bias, partial(_times, factor=factor))
        return len(changed)

    def _ranges(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Largest weight of each channel, as output of the first layer and as input of the second."""
        one = self._current(pair.first).max(axis=2).reshape(-1)
        two = self._current(pair.second).max(axis=1).reshape(len(one), -1).max(axis=1)
        return one, two

    def _current(self, layer: Layer) -> np.ndarray:
        held = self._magnitudes[layer.node] if layer.node in self._magnitudes else layer.magnitudes()
        out, into = np.exp2(self._out[layer.node]), np.exp2(self._into[layer.node])
        product: np.ndarray = held * out.reshape(layer.groups, -1, 1) * into.reshape(layer.groups, 1, -1)
        return product


def _times(array: np.ndarray, *, factor: np.ndarray) -> np.ndarray:
    product: np.ndarray = array.astype(np.float64) * factor.reshape(array.shape)
    return product


def _store(value: ir.Value, scaled: Callable[[np.ndarray], np.ndarray]) -> None:
    """Put the scaled tensor in the place of the old one; a large one is computed when it is written."""
    old = value.const_value
    assert old is not None

    def make() -> ir.TensorProtocol:
        return ir.Tensor(scaled(old.numpy()).astype(np.float32), name=old.name)

    large = old.nbytes >= _LAZY_FROM
    shape = ir.Shape(old.shape.numpy())
    value.const_value = ir.LazyTensor(make, old.dtype, shape, name=old.name) if large else make()
