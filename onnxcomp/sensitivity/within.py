"""Quantize all that an accuracy budget allows."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.errors import AccuracyGateError, GateError, InvalidModelError, UnsupportedError, UsageError
from onnxcomp.passes.base import Context, Effect, Pass, drop_unused_initializers, option, transplant
from onnxcomp.passes.quantize import CorrectBias, QuantizeDynamic, QuantizeStatic, common
from onnxcomp.passes.quantize.correct_bias import correct
from onnxcomp.pipeline import optimize_file
from onnxcomp.record import Record
from onnxcomp.sensitivity.judge import EvalData, Judge, Verdict, make_judge, to_json
from onnxcomp.sensitivity.rank import SAMPLES, Ranking, Step, rank_prepared
from onnxcomp.sensitivity.search import Excluded, Found, Tried, drops_when_put_back, search

#: candidates that a search makes at most
TRIES = 40

#: nodes of the ranking that a record shows
_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeWithin(Pass):
    """Run a quantization pass, and leave the fewest nodes in float that keep the drop within the budget.

    The nodes are chosen by their damage on the calibration data; every candidate is really made, and
    judged on `eval`.
    """

    name: ClassVar[str] = "quantize-within"
    wants_data: ClassVar[bool] = True

    step: Step = dataclasses.field(metadata={"doc": "the quantization, with its own options"})
    eval: EvalData = dataclasses.field(metadata={"doc": "samples that judge, with labels; not those that calibrate"})
    max_drop: float = dataclasses.field(metadata={"doc": "largest drop allowed, in the metric's unit"})
    metric: str = option("accuracy", "as `onnxcomp evaluate` takes it; without labels fidelity is measured")
    reference: Path | None = dataclasses.field(
        default=None, metadata={"doc": "the model whose metric counts; unset: what the pass is given"}
    )
    biases: CorrectBias | None = dataclasses.field(
        default=None, metadata={"doc": "corrects the biases of what a candidate quantizes, and no others"}
    )
    samples: int = option(SAMPLES, "samples on which the damage of nodes is measured")
    tries: int = option(TRIES, "candidates that are made at most")
    batch_size: int = option(32, "samples per run where the model leaves it open")

    def options(self) -> dict[str, Any]:
        """Those of the quantization, and the budget."""
        own = {"max_drop": self.max_drop, "metric": self.metric, "samples": self.samples, "tries": self.tries}
        biases = {} if self.biases is None else {"biases": self.biases.options()}
        return {"step": self.step.name, **self.step.options(), **own, **biases}

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises AccuracyGateError when no candidate fits, and what the quantization raises."""
        context = dataclasses.replace(context, store=context.store or context.workdir / "statistics")
        with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
            reference = self.reference or models.write_to(model, Path(folder), "reference")
            judge = make_judge(reference, self.eval, self.metric, batch_size=self.batch_size, folder=Path(folder))
            prepared = model.clone()
            kept, fragile = common.prepare(prepared, context, self.step.exclude)
            changes = {} if self.biases is None else self.biases.measure(prepared, context)
            run = _Run(self, prepared, (*kept, *fragile), judge, changes, context=context, folder=Path(folder))
            return run.into(model)


class _Run:
    """One search: makes candidates from the prepared model and keeps the best."""

    def __init__(
        self,
        options: QuantizeWithin,
        prepared: ir.Model,
        kept: tuple[str, ...],
        judge: Judge,
        changes: Mapping[str, np.ndarray],
        *,
        context: Context,
        folder: Path,
    ) -> None:
        self._options, self._prepared, self._kept = options, prepared, kept
        self._judge, self._context, self._folder = judge, context, folder
        self._changes = changes
        self._ranking = Ranking((), 0)
        self._float: set[str] = set()
        self._best: tuple[Excluded, ir.Model, Effect, Context] | None = None

    def into(self, model: ir.Model) -> Effect:
        found = search(self._rank, self._attempt, weight_bytes=self._weight_bytes, tries=self._options.tries)
        if found.best is None or self._best is None:
            raise self._failure(found)
        _, made, effect, context = self._best
        known = set(self._context.notes)
        self._context.notes.extend(note for note in context.notes if note not in known)
        explained = self._explain(found.best, found)
        high, allowed = explained["high"], self._options.max_drop
        if high is not None and high > allowed:
            self._context.note(
                f"the drop of {self._judge.metric} is {explained['drop']:.4g}, but up to {high:.4g} is possible "
                f"(95 %): {self._judge.samples} samples do not show for certain that it is within {allowed:g}"
            )
        transplant(model, made)
        reasons = {n["node"]: _why(n) for n in explained["excluded"]}
        skipped = [{**s, "reason": reasons.get(s["node"], s["reason"])} for s in effect.details["skipped"]]
        return Effect(True, {**effect.details, "skipped": skipped, "search": explained})

    def _rank(self) -> list[str]:
        data = self._context.data
        if data is None:
            inputs = models.signature(self._prepared).inputs
            data = Batches(self._options.eval, inputs, batch_size=self._options.batch_size)
            self._context.note("no data was given: the damage of nodes was measured on the samples that judge")
        self._ranking = rank_prepared(
            self._prepared, self._options.step, data, self._context, set(self._kept), samples=self._options.samples
        )
        # what stays in float anyway is no choice
        return [n.target.node for n in self._ranking.nodes if not n.target.nested and n.target.node not in self._float]

    def _attempt(self, excluded: Excluded) -> Tried:
        worker.report(f"quantizing with {len(excluded)} nodes in float")
        step = dataclasses.replace(self._options.step, exclude=(*self._kept, *sorted(excluded)))
        candidate = self._prepared.clone()
        context = dataclasses.replace(self._context, notes=[])
        try:
            # where a weight stays in float, the mean of the outputs is right as it is
            corrected = correct(candidate, self._changes, {*self._kept, *excluded, *self._float})
            effect = step.apply(candidate, context)
            if self._options.biases is not None:
                effect = dataclasses.replace(effect, details={**effect.details, "biases": corrected})
            ir_passes.RemoveUnusedNodesPass()(candidate)
            drop_unused_initializers(candidate)
            path = models.write_to(candidate, self._folder, "candidate")
            runtime.check_loads(path)
        except (GateError, UnsupportedError, InvalidModelError) as error:
            if not excluded:
                raise  # not a matter of nodes
            return Tried(excluded, None, False, error.message)
        if not excluded:
            self._float = {entry["node"] for entry in effect.details["skipped"]}
        verdict = self._judge.verdict(path)
        fits = verdict.fits(self._options.max_drop)
        if fits and (self._best is None or len(excluded) < len(self._best[0])):
            self._best = excluded, candidate, effect, context
        return Tried(excluded, verdict, fits)

    def _weight_bytes(self, node: str) -> int:
        return next(n.target.weight_bytes for n in self._ranking.nodes if n.target.node == node)

    def _explain(self, best: Tried, found: Found) -> dict[str, Any]:
        back = drops_when_put_back(found)
        nodes = []
        for entry in self._ranking.nodes:
            target = entry.target
            if target.node in best.excluded:
                nodes.append(
                    {
                        **entry.to_json(),
                        "bytes_lost": target.weight_bytes * 3 // 4,
                        "drop_if_quantized": back.get(target.node),
                    }
                )
        verdict = best.verdict
        return {
            "metric": self._judge.metric,
            "max_drop": self._options.max_drop,
            **to_json(verdict),
            "certain": _certain(verdict, self._options.max_drop),
            "samples": self._judge.samples,
            "data": self._judge.data,
            "excluded": nodes,
            "complete": found.complete,
            "tried": [t.to_json() for t in found.tried],
            "ranking": self._ranking.to_json(_SHOWN),
            "ranked_nodes": len(self._ranking.nodes),
            "ranked_on_samples": self._ranking.samples,
        }

    def _failure(self, found: Found) -> AccuracyGateError:
        nearest = found.nearest
        drop = "none could be judged"
        if nearest is not None and nearest.verdict is not None:
            left = len(nearest.excluded)
            drop = f"the best loses {nearest.verdict.drop:.4g} with {left} nodes in float"
        worst = ", ".join(n.target.module or n.target.node for n in self._ranking.nodes[:3])
        tried, metric = len(found.tried), self._judge.metric
        return AccuracyGateError(
            f"none of {tried} candidates keeps {metric} within {self._options.max_drop:g}: {drop}",
            where=f"most harmful nodes: {worst}" if worst else None,
            hint="nothing was written; allow a larger drop, choose fewer --op-types or another mode",
        )


def _why(node: Mapping[str, Any]) -> str:
    """Why a node of `search.excluded` stays in float."""
    damage = "no finite outputs" if node["damage"] is None else f"a relative error of {node['damage']:.3g}"
    drop = node["drop_if_quantized"]
    worth = "" if drop is None else f"; quantized too, the drop would be {drop:.4g}"
    return f"left in float to stay within the budget: alone it causes {damage}{worth}"


def _certain(verdict: Verdict | None, max_drop: float) -> bool:
    """Whether even the upper end of the interval is within the budget."""
    return verdict is not None and verdict.high is not None and verdict.high <= max_drop


def quantize_within(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    steps: Sequence[Pass],
    *,
    eval: EvalData,  # noqa: A002 - the option's name
    max_drop: float,
    metric: str = "accuracy",
    data: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None,
    samples: int = SAMPLES,
    tries: int = TRIES,
    batch_size: int = 32,
    **options: Any,
) -> Record:
    """`onnxcomp.pipeline.optimize_file`, with the quantization among `steps` kept within an accuracy budget.

    Args:
        source: the float model; the drop is measured against it.
        output: written only when a candidate fits.
        steps: passes, one of them QuantizeDynamic or QuantizeStatic; CorrectBias before it becomes part of it.
        eval: samples that judge every candidate; with labels by `metric`, without by fidelity.
        max_drop: largest drop, in the metric's unit.
        metric: see `onnxcomp.evaluate`.
        data: samples that calibrate, and that the damage of nodes is measured on.
        samples: how many of them for the damage.
        tries: candidates that are made at most.
        batch_size: samples per run where the model leaves it open.
        **options: as `optimize_file` takes them.

    The record's quantization has an effect `search`: {metric, max_drop, drop, low, high, certain, excluded,
    tried, ranking, ...}, and `biases` {corrected, of, layers} with CorrectBias. Raises AccuracyGateError when
    nothing fits, UsageError without a quantization.
    """
    found = [step for step in steps if isinstance(step, (QuantizeDynamic, QuantizeStatic))]
    if len(found) != 1:
        raise UsageError("an accuracy budget needs one quantization", hint="quantize-dynamic or quantize-static")
    # its biases are those of what is quantized in the end, which no step before can know
    corrections = [step for step in steps[: steps.index(found[0])] if isinstance(step, CorrectBias)]
    step = found[0]
    if isinstance(step, QuantizeStatic):
        step = dataclasses.replace(step, max_node_error=None)  # the search chooses the nodes
    within = QuantizeWithin(
        step=step,
        biases=corrections[-1] if corrections else None,
        eval=eval,
        max_drop=max_drop,
        metric=metric,
        reference=Path(source),
        samples=samples,
        tries=tries,
        batch_size=batch_size,
    )
    passes = [within if step is found[0] else step for step in steps if step not in corrections]
    return optimize_file(source, output, passes, data=data, batch_size=batch_size, **options)
