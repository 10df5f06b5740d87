"""Rank nodes by the damage that each does when it alone is quantized."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.errors import NoEffectError
from onnxcomp.evaluate.fidelity import as_array
from onnxcomp.passes.base import Context, temporary_context
from onnxcomp.passes.quantize import QuantizeStatic, calibrate, common
from onnxcomp.sensitivity.emulate import SWITCH, Rounding, emulate
from onnxcomp.sensitivity.targets import Step, Target, op_types, per_channel, targets

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
    found = targets(model, step, kept)
    if not found:
        raise NoEffectError("the pass would quantize no node of this model", where=step.name)
    ends: calibrate.Ranges = {}
    if isinstance(step, QuantizeStatic):
        # asked as the pass asks, so that a store answers both
        ends = calibrate.measure(model, op_types(step), data, context, step.calibration)
    reduce_range = common.resolve_reduce_range(step.reduce_range, context)
    rounding = Rounding(per_channel(step), reduce_range, ends)
    path = models.write_to(emulate(model, found, rounding), context.workdir, "emulated")
    # the emulation is not to run as int8, nor its rounded weights to be kept beside the others
    config = {"session.disable_quant_qdq": "1"}
    config |= {"session.disable_prepacking": "1"} if runtime.is_large(path) else {}
    settings = runtime.SessionSettings(
        threads=0, optimization="basic", config=config, disabled_optimizers=("ConstantFolding",)
    )
    session = runtime.open_session(path, settings=settings)
    chosen = data if data.samples <= samples else data.split(samples / data.samples)[0]
    sums = [_Sums() for _ in found]
    _measure(session, chosen, sums)
    nodes = [Sensitivity(target, s.error, s.flipped) for target, s in zip(found, sums, strict=True)]
    return Ranking(tuple(sorted(nodes, key=lambda n: -n.error)), chosen.samples)


def _measure(session: runtime.Session, data: Batches, sums: Sequence[_Sums]) -> None:
    """Run each batch once in float and once for each target; only one batch's outputs are in memory."""
    off = np.zeros(len(sums), bool)
    total, done = data.samples, 0
    for batch in data:
        reference = session.run({**batch.feeds, SWITCH: off})
        for number, entry in enumerate(sums):
            worker.report("sensitivity of nodes", (done + batch.samples * number / len(sums)) / total)
            on = off.copy()
            on[number] = True
            for name, array in session.run({**batch.feeds, SWITCH: on}).items():
                entry.add(name, as_array(reference[name]), as_array(array), batch.samples)
        done += batch.samples


class _Sums:
    """Signal and noise of each output over batches, and flipped classes of the first that holds scores."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._scores: str | None = None
        self._flips = self._voted = 0

    def add(self, name: str, reference: np.ndarray | None, candidate: np.ndarray | None, samples: int) -> None:
        """One output of one batch."""
        if reference is None or candidate is None or not reference.size:
            return
        r, c = reference.astype(np.float64), candidate.astype(np.float64)
        if r.shape != c.shape:  # sizes that depend on the values: something else was found
            noise = float(np.sum(r**2))
        else:
            with np.errstate(invalid="ignore"):
                noise = float(np.sum(np.where(r == c, 0.0, r - c) ** 2))
        self._signal[name] = self._signal.get(name, 0.0) + float(np.sum(np.where(np.isfinite(r), r, 0.0) ** 2))
        self._noise[name] = self._noise.get(name, 0.0) + noise
        scores = r.ndim == 2 and len(r) == samples and r.shape[1] > 1 and reference.dtype.kind == "f"
        if scores and r.shape == c.shape and self._scores in (None, name):
            self._scores = name
            self._flips += int(np.sum(r.argmax(1) != c.argmax(1)))
            self._voted += samples

    @property
    def error(self) -> float:
        """The largest relative error of an output."""
        return max(self._errors(), default=0.0)

    @property
    def flipped(self) -> float | None:
        """Share of samples with another class."""
        return self._flips / self._voted if self._voted else None

    def _errors(self) -> Iterator[float]:
        for name, noise in self._noise.items():
            signal = self._signal[name]
            if noise == 0:
                yield 0.0
            else:
                yield math.sqrt(noise / signal) if math.isfinite(noise) and signal else math.inf
