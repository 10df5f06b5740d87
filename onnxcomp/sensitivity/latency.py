"""Prune until a share of the latency is left, measured on this host."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import speed, worker
from onnxcomp.data import Batch, Batches
from onnxcomp.errors import GateError, UsageError
from onnxcomp.passes import Context, Effect, Pass, PruneStructured
from onnxcomp.passes.base import option
from onnxcomp.passes.prune import plan
from onnxcomp.passes.prune.allocation import Goal
from onnxcomp.pipeline import optimize_file
from onnxcomp.record import Record

#: candidates that are cut and timed at most
TRIES = 12

#: shares of the MACs nearer to each other than this are not told apart
_NEAR = 0.01


@dataclasses.dataclass(frozen=True)
class Timed:
    """A candidate.

    Attributes:
        target_macs: the share of the MACs that was asked for.
        kept: units of each group.
        speed: against the whole model; of a candidate that was timed twice, the second time.
        fits: whether the upper end of the interval of the latency was within the target each time.
    """

    target_macs: float
    kept: tuple[int, ...]
    speed: speed.Speed
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """`{target_macs, latency: {value, low, high}, pairs, fits}`; shares of what the whole model takes."""
        return {
            "target_macs": round(self.target_macs, 4),
            "latency": latency(self.speed),
            "pairs": self.speed.pairs,
            "fits": self.fits,
        }


def latency(found: speed.Speed) -> dict[str, float]:
    """The share of the reference's latency, with its interval of 95 %."""
    return {"value": round(1 / found.ratio, 4), "low": round(1 / found.high, 4), "high": round(1 / found.low, 4)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneToLatency(Pass):
    """Run structured pruning with the most MACs left whose latency is within a share of the whole model's.

    The share of the MACs is found by bisection; every candidate is really cut, proven, and timed in turn with
    the whole model: one thread, one sample. It is within the target if the upper end of its 95 % interval is,
    twice: of several measurements the best one flatters.
    """

    name: ClassVar[str] = "prune-to-latency"
    wants_data: ClassVar[bool] = True

    step: PruneStructured = dataclasses.field(metadata={"doc": "the pruning, without a target of its own"})
    target_latency: float = option(0.5, "share of the latency that is left at most")
    tries: int = option(TRIES, "candidates that are timed at most")

    def options(self) -> dict[str, Any]:
        """Those of the pruning, and the target."""
        own = {"target_latency": self.target_latency, "tries": self.tries}
        return {"step": self.step.name, **self.step.options(), **own}

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises GateError when the target is not reached, UsageError, and what the pruning raises."""
        if not 0 < self.target_latency < 1:
            raise UsageError(f"target_latency {self.target_latency} is not between 0 and 1", where="target_latency")
        for key in ("sparsity", "target_macs", "target_size", "plan"):
            if getattr(self.step, key) is not None:
                raise UsageError(f"{key} and target_latency do not go together", where=key)
        context = dataclasses.replace(context, store=context.store or context.workdir / "statistics")
        with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
            tried, best = self._search(model, context, Path(folder))
        if best is None:
            raise _missed(self.target_latency, tried)
        # the units are chosen again, from statistics that are kept; this time weights are repaired too
        effect = dataclasses.replace(self.step, target_macs=best.target_macs).apply(model, context)
        found = {"target": self.target_latency, **best.to_json(), "tried": [t.to_json() for t in tried]}
        return Effect(effect.changed, {**effect.details, "latency_search": found})

    def _search(self, model: ir.Model, context: Context, folder: Path) -> tuple[list[Timed], Timed | None]:
        whole = models.write_to(model, folder, "whole")
        batch = _sample(model, context.data)
        digest = plan.content_hash(model)
        choice, _ = self.step.choice(self.step.analysed(model.clone()), dataclasses.replace(context, notes=[]))
        known: dict[tuple[int, ...], Timed] = {}

        def timed(macs: float) -> Timed:
            stay = choice.stay(Goal(macs=macs))
            kept = tuple(stay)
            if kept in known:
                return dataclasses.replace(known[kept], target_macs=macs)
            worker.report(f"timing a candidate with {macs:.0%} of the MACs", min(len(known) / self.tries, 1.0))
            path = folder / "plan.json"
            path.write_text(json.dumps(plan.plan_of(choice.kept(stay), digest).to_json()))
            cut = dataclasses.replace(self.step, plan=str(path), repair="none", importance="auto", allocation="auto")
            candidate = model.clone()
            cut.apply(candidate, dataclasses.replace(context, notes=[]))
            made = models.write_to(candidate, folder, "candidate")
            for _ in range(2):
                found = speed.compare(whole, made, batch.feeds, batch.samples)
                fits = 1 / found.low <= self.target_latency
                if not fits:
                    break
            known[kept] = Timed(macs, kept, found, fits)
            return known[kept]

        return search(timed, choice.least, self.target_latency, self.tries)


def search(timed: Callable[[float], Timed], least: float, start: float, tries: int) -> tuple[list[Timed], Timed | None]:
    """(all candidates, the one with the most MACs that fits or None), by bisection from `least` to 1.

    `start` is asked first: latency goes about with the MACs.
    """
    low, high, best, tried = least, 1.0, None, list[Timed]()
    ask = min(max(start, least), 1 - _NEAR)
    while len(tried) < tries:
        found = timed(ask)
        tried.append(found)
        if found.fits:
            best, low = found, ask
        elif ask <= least:
            break
        else:
            high = ask
        if high - low >= _NEAR:
            ask = (low + high) / 2
        elif best is None and ask > least:
            ask = least
        else:
            break
    return tried, best


def _missed(target: float, tried: Sequence[Timed]) -> GateError:
    nearest = min(tried, key=lambda t: t.speed.low and 1 / t.speed.low)
    share = latency(nearest.speed)
    return GateError(
        f"no candidate is within {target:g} of the latency for certain: the nearest has {share['value']:.3f} "
        f"[{share['low']:.3f}, {share['high']:.3f}] with {nearest.target_macs:.2f} of the MACs ({len(tried)} tried)",
        where="target_latency",
        hint="nothing was written; a higher --limit, a smaller --align, a higher target, or a quieter machine",
    )


def _sample(model: ir.Model, data: Batches | None) -> Batch:
    """One sample, real where there are some."""
    inputs = models.signature(model).inputs
    if data is not None:
        return next(iter(data.in_batches_of(1)))
    if any(isinstance(d, str) for spec in inputs for d in (spec.shape or ())[1:]):
        raise UsageError(
            "the sizes of the inputs are open: no latency is the right one",
            where="target_latency",
            hint="give --data, whose first sample is timed",
        )
    return next(iter(Batches("random:1", inputs, batch_size=1)))


def prune_to_latency(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    step: PruneStructured,
    *,
    target_latency: float,
    data: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None,
    tries: int = TRIES,
    **options: Any,
) -> Record:
    """`onnxcomp.pipeline.optimize_file` with structured pruning down to a share of the latency on this host.

    Args:
        source: the whole model, which the latency is a share of.
        output: written only when a candidate is within the target.
        step: the pruning, without sparsity, target or plan of its own.
        target_latency: in (0, 1), CPU time on one thread with one sample.
        data: samples that rank and repair; the first one is timed.
        tries: candidates that are timed at most.
        **options: as `optimize_file` takes them.

    The record's pruning has an effect `latency_search`: {target, target_macs, latency: {value, low, high},
    pairs, fits, tried}. Another run on another host, or in other noise, may find another cut: its `plan` repeats
    this one. Raises GateError when no candidate is within the target.
    """
    return optimize_file(
        source,
        output,
        [PruneToLatency(step=step, target_latency=target_latency, tries=tries)],
        data=data,
        **options,
    )
