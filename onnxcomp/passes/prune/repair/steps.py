"""Repair without training: what reads less than before gets the weights that make the best of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.activations import Moments, observe_moments
from onnxcomp.data import Batches
from onnxcomp.errors import DataError
from onnxcomp.evaluate.fidelity import Fidelity, compare_sessions
from onnxcomp.passes.base import Context, transplant
from onnxcomp.passes.prune.cut import Kept
from onnxcomp.passes.prune.repair import consumers, fit
from onnxcomp.passes.prune.repair.consumers import Consumer
from onnxcomp.passes.prune.repair.means import mean_biases
from onnxcomp.passes.prune.repair.reestimate import normalizations, reestimate
from onnxcomp.passes.prune.repair.sequential import sequential

Method = Literal["none", "bias", "lstsq"]

#: share of the samples that judges repairs and makes none, and the fewest samples that are divided
_JUDGING = 0.2
_FEWEST = 5

#: a repair must take away so much of the error of the best before it
_WORTH = 0.001


@dataclasses.dataclass(frozen=True)
class Whole:
    """A model before its cut.

    Attributes:
        model: a copy.
        sets: the consumers of what will be cut, those with one weight together.
        left: (node, why it is none).
    """

    model: ir.Model
    sets: Sequence[Sequence[Consumer]]
    left: Sequence[tuple[str, str]]

    @staticmethod
    def of(kept: Kept) -> Whole:
        """To be called before the cut."""
        return Whole(kept.analysis.model.clone(), *consumers.find(kept))


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A repaired model.

    Attributes:
        error: relative error of the outputs on samples that judge, the largest over the float outputs.
        fidelity: on these; None where it cannot be compared.
    """

    step: str
    model: ir.Model
    error: float
    fidelity: Fidelity | None


def repair(model: ir.Model, whole: Whole, method: Method, context: Context) -> dict[str, Any]:
    """Repair a cut model in place as far as outputs on other samples get better by it; what was done.

    The steps: biases keep the mean of each output; least squares on each consumer, from what the whole model
    feeds it; where there are convolutions, least squares anew from the first to the last, each from what the
    repaired part before it really feeds it (errors grow from layer to layer in a deep convolutional net; in
    MiniLM it gained nothing and is not tried); the statistics of BatchNormalization. The best of them stays.

    Raises what `observe` raises.
    """
    assert context.data is not None
    context.data.require_real("repair")
    made, judging = _divide(context.data)
    judge = _Judge(whole.model, judging, context)
    plain = judge.candidate("before", model)
    known, errors = _one_shot(whole, method, made, context)
    candidates = [plain]
    for step, fitted in known.items():
        candidates.append(judge.candidate(step, _repaired(model, whole, fitted)))
    sets = [members for members in whole.sets if all(c in known["bias"] for c in members)]
    if method == "lstsq" and any(c.use.node.op_type == "Conv" for c in _each(whole)):
        candidates.append(judge.candidate("sequential", sequential(model, whole.model, sets, made, context)))
    best = _best(candidates)
    if normalizations(best.model):
        candidate = best.model.clone()
        reestimate(candidate, made, context)
        candidates.append(judge.candidate("batchnorm", candidate))
    chosen = _best(candidates)
    if chosen is plain:
        context.note("not repaired: on samples that did not make them, repairs made the outputs no better")
    else:
        transplant(model, chosen.model)
    for node, reason in whole.left:
        context.note(f"not repaired: {reason}", node)
    fidelity = {c.step: _figures(c) for c in candidates}
    return {
        "method": method,
        "chosen": [] if chosen is plain else [best.step, chosen.step] if chosen.step == "batchnorm" else [chosen.step],
        "samples": {"fitted": made.samples, "judged": judging.samples},
        "fidelity": {**fidelity, "after": _figures(chosen)},
        "consumers": [
            {"node": c.name, "kept": len(c.inputs), "of": c.width, "error": errors.get(c, {})} for c in _each(whole)
        ],
        "skipped": [{"node": node, "reason": reason} for node, reason in whole.left],
    }


def _divide(data: Batches) -> tuple[Batches, Batches]:
    """(samples that make repairs, samples that judge them)."""
    if data.samples >= _FEWEST:
        parts = data.split(1 - _JUDGING)
        if all(any(True for _ in part) for part in parts):  # a fixed batch may be larger
            return parts
    return data, data


class _Judge:
    """Compares candidates with the whole model."""

    def __init__(self, reference: ir.Model, data: Batches, context: Context) -> None:
        self._data, self._context = data, context
        self._reference = self._open(reference)
        self._floats = {spec.name for spec in models.signature(reference).outputs if "float" in spec.dtype}

    def candidate(self, step: str, model: ir.Model) -> _Candidate:
        """The model with its fidelity."""
        try:
            fidelity = compare_sessions(self._reference, self._open(model), self._data)
        except DataError:  # sizes of outputs that depend on values, others here
            return _Candidate(step, model, math.inf, None)
        errors = [
            10 ** (-output.sqnr_db / 20) if math.isfinite(output.max_abs) else math.inf
            for name, output in fidelity.outputs.items()
            if name in self._floats
        ]
        return _Candidate(step, model, max(errors, default=math.inf), fidelity)

    def _open(self, model: ir.Model) -> runtime.Session:
        path = models.write_to(model, self._context.workdir, "judged")
        try:
            return runtime.open_session(path, settings=runtime.frugal(path))
        finally:
            path.unlink()


def _best(candidates: Sequence[_Candidate]) -> _Candidate:
    """The last of those that are better than all before."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.error < best.error * (1 - _WORTH):
            best = candidate
    return best


def _one_shot(
    whole: Whole, method: Method, data: Batches, context: Context
) -> tuple[dict[str, dict[Consumer, fit.Fitted]], dict[Consumer, dict[str, float]]]:
    """({step: what it found}, {consumer: square error of its outputs, relative, by step}), from the whole model."""
    if method == "bias":
        return {"bias": mean_biases(whole.model, whole.sets, data, context)}, {}
    ours = list(whole.model.graph)
    known: dict[str, dict[Consumer, fit.Fitted]] = {"bias": {}, "lstsq": {}}
    errors: dict[Consumer, dict[str, float]] = {}
    waiting: dict[Consumer, Moments] = {}
    widths = {ours[c.place]: c.width for members in whole.sets for c in members}
    for found in observe_moments(whole.model, data, widths, workdir=context.workdir, store=context.store):
        waiting |= {c: found[ours[c.place]] for c in _each(whole) if ours[c.place] in found}
        for members in whole.sets:
            if not all(c in waiting for c in members):
                continue  # those of one weight that come in other turns wait for each other
            moments = [waiting.pop(c) for c in members]
            if not all(m.count for m in moments):
                continue
            seen = [fit.Seen.before(m, members[0].inputs) for m in moments]
            biased = [c.has_bias(c.use.node) for c in members]
            steps: dict[str, Callable[..., list[fit.Fitted]]] = {"bias": fit.biases, "lstsq": fit.least_squares}
            share = {"cut": fit.error(members, moments, None)}
            for step, fits in known.items():
                fitted = steps[step](members, seen, biased)
                fits.update(zip(members, fitted, strict=True))
                share[step] = fit.error(members, moments, fitted)
            errors |= {c: {step: round(value, 6) for step, value in share.items()} for c in members}
    return known, errors


def _repaired(model: ir.Model, whole: Whole, fitted: dict[Consumer, fit.Fitted]) -> ir.Model:
    """A copy of a cut model with what was found."""
    candidate = model.clone()
    nodes = dict(zip(model.graph, list(candidate.graph), strict=True))
    for consumer in _each(whole):
        if consumer in fitted:
            consumer.write(nodes[consumer.use.node], fitted[consumer].weight, fitted[consumer].shift)
    return candidate


def _each(whole: Whole) -> Iterator[Consumer]:
    return (consumer for members in whole.sets for consumer in members)


def _figures(candidate: _Candidate) -> dict[str, Any] | None:
    """The fidelity of a candidate as JSON, without where the samples come from."""
    if candidate.fidelity is None:
        return None
    found = candidate.fidelity.to_json()
    return {key: found[key] for key in ("outputs", "agreement")}
