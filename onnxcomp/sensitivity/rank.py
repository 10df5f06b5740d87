"""Rank nodes by the damage that each does when it alone is quantized."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp.data import Batches
from onnxcomp.errors import NoEffectError
from onnxcomp.passes.base import Context, temporary_context
from onnxcomp.passes.quantize import QuantizeDynamic, QuantizeStatic, calibrate, common, policy, static
from onnxcomp.passes.quantize.damage import Emulation
from onnxcomp.passes.quantize.emulate import Rounding
from onnxcomp.passes.quantize.targets import Target, dynamic_targets, static_targets

Step = QuantizeDynamic | QuantizeStatic

#: samples on which damage is measured
SAMPLES = 64


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What one node does when it alone is quantized.

    Attributes:
        target: the node.
        error: relative error of the outputs, sqrt(sum (r - c)^2 / sum r^2), the largest over the outputs;
            infinite when an output is NaN or infinite.
        flipped: share of samples with another largest entry in an output of class scores; None without one.
    """

    target: Target
    error: float
    flipped: float | None

    def to_json(self) -> dict[str, Any]:
        """`{node, module, op, damage, flipped, weight_bytes, nested}`; an infinite damage is null."""
        return {
            "node": self.target.node,
            "module": self.target.module,
            "op": self.target.op,
            "damage": self.error if math.isfinite(self.error) else None,
            "flipped": self.flipped,
            "weight_bytes": self.target.weight_bytes,
            "nested": self.target.nested,
        }


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Nodes by falling damage.

    Attributes:
        samples: on how many samples it was measured.
    """

    nodes: tuple[Sensitivity, ...]
    samples: int

    def to_json(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The first `limit` nodes."""
        return [node.to_json() for node in self.nodes[:limit]]


def rank(
    model: str | os.PathLike[str] | ir.Model,
    step: Step,
    data: Batches | str | os.PathLike[str] | Mapping[str, np.ndarray],
    *,
    samples: int = SAMPLES,
    batch_size: int = 32,
    store: Path | None = None,
) -> Ranking:
    """Quantize one node after the other, each alone, in one emulated model, and measure the outputs.

    Args:
        model: float; stays as it is.
        step: the pass whose quantization is emulated, with its options.
        data: real samples; a static pass takes its ranges from all of them.
        samples: how many of them the damage is measured on.
        batch_size: samples per run where the model leaves it open.
        store: a folder that keeps the statistics of activations.

    Raises what the pass raises for models that it refuses, DataError for random data, NoEffectError when the
    pass would quantize nothing.
    """
    prepared = models.load(model) if not isinstance(model, ir.Model) else model.clone()
    if not isinstance(data, Batches):
        data = Batches(data, models.signature(prepared).inputs, batch_size=batch_size)
    data.require_real("a ranking by damage")
    with temporary_context(data, store) as context:
        kept, fragile = common.prepare(prepared, context, step.exclude)
        return rank_prepared(prepared, step, data, context, {*kept, *fragile}, samples=samples)


def rank_prepared(
    model: ir.Model, step: Step, data: Batches, context: Context, kept: set[str], *, samples: int = SAMPLES
) -> Ranking:
    """`rank` for a model that `common.prepare` has prepared; `kept` are the nodes that stay in float."""
    ends: calibrate.Ranges = {}
    types = _op_types(step)
    if isinstance(step, QuantizeStatic):
        idle = policy.float_nodes(model, types, kept) if step.op_types is None else []
        found = static_targets(model, types, {*kept, *idle})
    else:
        found = dynamic_targets(model, types, kept)
    if not found:
        raise NoEffectError("the pass would quantize no node of this model", where=step.name)
    if isinstance(step, QuantizeStatic):
        # asked as the pass asks, so that a store answers both
        ends = calibrate.measure(model, types, data, context, step.calibration)
    rounding = Rounding(_per_channel(step), common.resolve_reduce_range(step.reduce_range, context), ends)
    chosen = data if data.samples <= samples else data.split(samples / data.samples)[0]
    damages = Emulation(model, found, rounding, context).alone(chosen)
    nodes = [Sensitivity(target, d.error, d.flipped) for target, d in zip(found, damages, strict=True)]
    return Ranking(tuple(sorted(nodes, key=lambda n: -n.error)), chosen.samples)


def _per_channel(step: Step) -> set[str]:
    """The operator types whose weights get one scale per output channel."""
    if not step.per_channel:
        return {"Gather"}  # tables have a scale for each column in any case
    types = set(_op_types(step))
    # ConvInteger has one scale, whatever was asked for
    return types if isinstance(step, QuantizeStatic) else types - {"Conv"}


def _op_types(step: Step) -> tuple[str, ...]:
    """The operator types that the step takes, its default where the user gave none."""
    return static.OP_TYPES if step.op_types is None else step.op_types
