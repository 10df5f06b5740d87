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

#: rounds over all pairs; chains of a dozen layers need fewer
_ROUNDS = 20

#: a channel that asks for more than two to this power is as good as dead, and its bias may be all it says
_FURTHEST = 20

#: |log2| of a scale that still counts as one, where scales are not powers of two
_SETTLED = 0.01

#: tensors of this many bytes and more are read when they are needed, and computed when they are written
_LAZY_FROM = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Scale channels between two layers so that both use their ranges evenly; run it before int8.

    A weight with one scale per tensor loses channels that are far smaller than the largest one.
    What one layer divides by, the next multiplies with: the model computes the same.

    Rules:
        1. Pairs: Conv, Gemm or MatMul, a bias by Add, then Relu, LeakyRelu, PRelu, Identity, max or
           average pools, Flatten, then Conv (grouped and depthwise too), Gemm or MatMul. The value
           between has one user; the weights are stored in float32 and belong to one node each.
        2. Channel i of the first layer is divided by sqrt(r1 r2) / r2, with r1 and r2 the largest weights
           of the channel in the two layers; over all pairs until nothing changes, at most 20 times.
        3. BatchNormalization is folded first. Clip (Relu6) stands in the way, with a note: it does
           not scale. So do Sigmoid, Tanh and all others, and sums of two branches.

    After Nagel et al. 2019 (arXiv:1906.04721), section 4.1. It helps weights with one scale per
    tensor; with one per channel, activations may even lose.
    """

    name: ClassVar[str] = "equalize"
    exact: ClassVar[bool] = True

    powers_of_two: bool = option(True, "scales that change no mantissa, so that the outputs stay the same bits")
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
        before = state.largest_ratio()
        settled = any(state.round(self.powers_of_two) for _ in range(_ROUNDS))
        equalized = state.store()
        details = {
            "pairs": len(pairs),
            "equalized": equalized,
            "batch_normalizations_folded": folded,
            "largest_ratio_before": before,
            "largest_ratio_after": state.largest_ratio(),
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

    def round(self, powers_of_two: bool) -> bool:
        """Even out each pair once; whether all were even already."""
        even = True
        for pair in self._pairs:
            first, second = pair.first.node, pair.second.node
            one, two = self._ranges(pair)
            both = (one > 0) & (two > 0)
            step = np.zeros(len(one))
            step[both] = (np.log2(two[both]) - np.log2(one[both])) / 2
            if powers_of_two:  # a half stays, so that a second run finds nothing to do
                step = np.sign(step) * np.ceil(np.abs(step) - 0.5)
            step[(np.abs(step) <= _SETTLED) | (np.abs(step) > _FURTHEST)] = 0
            if np.any(step):
                even = False
                self._out[first] += step
                self._into[second] -= np.repeat(step, pair.repeat)
        return even

    def largest_ratio(self) -> float | None:
        """Over all layers before a pair's middle: largest channel over smallest, zeros left out; None without."""
        ratios = []
        for pair in self._pairs:
            one = self._ranges(pair)[0]
            one = one[one > 0]
            ratios.append(float(one.max() / one.min()) if len(one) else 1.0)
        return max(ratios, default=None)

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
