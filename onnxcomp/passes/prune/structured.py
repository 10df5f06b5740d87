"""`prune-structured`: cut channels, neurons and heads out of a model, so that ONNX Runtime has less to compute."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.data import unpadded
from onnxcomp.errors import InvalidModelError, NoEffectError, UnsupportedError, UsageError
from onnxcomp.inspect import all_nodes, constants, is_parameter
from onnxcomp.passes.base import Context, Effect, Pass, named, option
from onnxcomp.passes.batchnorm import make_constants
from onnxcomp.passes.prune import equivalence, importance, plan, selection
from onnxcomp.passes.prune.allocation import Choice, Goal, choose
from onnxcomp.passes.prune.analysis import Analysis, analyse
from onnxcomp.passes.prune.atoms import RefusedError
from onnxcomp.passes.prune.cut import Kept, cut
from onnxcomp.passes.prune.nothing import no_units, nothing_goes
from onnxcomp.passes.prune.repair import steps as repair
from onnxcomp.passes.prune.repair.elimination import by_elimination
from onnxcomp.passes.prune.repair.steps import Method
from onnxcomp.passes.prune.units import Group
from onnxcomp.passes.simplify import fold_constants

_SPARSITY = 0.3

_QUANTIZED = ("Quantize", "QLinear", "Integer", "NBits", "QGemm", "QAttention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneStructured(Pass):
    """Remove whole units: channels of convolutions, neurons between matrices, heads of attention.

    A unit is what must go together: through residual connections, Concat, Split and Reshape too, and over all
    weights that make or read it. The result is a smaller dense model. What it computes is proven on every
    run: the outputs of the whole model, with the removed parts of its weights at zero, must be the same
    up to rounding.

    Rules:
        1. Counts of channels of a convolution that stay are multiples of what this host's kernels take at once
           (16 with AVX-512): in between nothing gets faster, and a count like 127 is slower than 128. On data, groups
           are rounded up and down by what the next block gives, so that of all units together `sparsity` goes.
        2. Least important first: with data, by what the outputs of the layers behind lose even with weights
           fitted anew, else by the norm of its weights. At least one block of each group stays.
        3. Left whole, with the reason in `refused`: what reaches an input, an output, a normalization over it,
           a subgraph or an operator without a rule. Quantized models are refused.
        4. Before `fuse` and before BatchNormalization is folded: fused operators hide units.
    """

    name: ClassVar[str] = "prune-structured"
    wants_data: ClassVar[bool] = True

    sparsity: float | None = option(None, "share of the units of each group to remove; unset: 0.3 without a target")
    target_macs: float | None = option(None, "remove units until this share of the MACs is left")
    target_size: float | None = option(None, "the same for the bytes of the weights")
    importance: Literal["auto", "activation", "elimination", "first-order", "l2", "l1"] = option(
        "auto",
        "what ranks units: elimination: what --repair lstsq cannot make good on data; activation: what they add there; "
        "l2, l1: norms of weights; auto: elimination where lstsq repairs, else activation, l2 without data; "
        "first-order: how much the outputs change, by gradients (needs torch), for --repair none",
    )
    allocation: Literal["auto", "uniform", "global", "sensitivity"] = option(
        "auto",
        "how groups share what goes: the same share, by one ranking of all, or by what each one's cut does to the "
        "outputs; auto: sensitivity with data and --repair none, else uniform",
    )
    align: int | None = option(
        None, "channels that stay are a multiple; unset: 16, 8 or 4 for convolutions, by this host"
    )
    limit: float = option(0.9, "largest share of a group that may go, above 0 and below 1")
    exclude: tuple[str, ...] = option((), "nodes, or torch modules, whose weights stay whole")
    plan: str | None = option(None, "a plan file, as --plan-out writes it, that says what stays")
    repair: Literal["none", "bias", "lstsq"] | None = option(
        None, "what then makes good on data what is gone: biases, or weights by least squares; unset: lstsq with data"
    )

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (options), NoEffectError (nothing to remove), UnsupportedError (quantized).

        And DataError (a plan that does not fit), AccuracyGateError (the result is not the masked model).
        """
        self._check(context)
        context = _without_padding(context)
        digest = plan.content_hash(model)
        analysis = self.analysed(model)
        before = _parameters(model)
        if self.plan is not None:
            kept, said = plan.read(analysis, plan.Plan.load(self.plan), digest), {"importance": "plan"}
        else:
            kept, said = self._choose(analysis, context)
        groups = [_described(group, kept) for group in analysis.groups]
        removed = sum(entry["units"] - entry["kept"] for entry in groups)
        if not removed:
            raise nothing_goes(analysis, align=self.align, limit=self.limit, planned=self.plan is not None)
        details: dict[str, Any] = {
            "removed_parameters": 0,
            "parameters": before,
            "units": {"removed": removed, "of": sum(len(group) for group in analysis.groups)},
            **said,
            **_costs(analysis, groups),
            "groups": groups,
            "refused": [{"node": node, "reason": reason} for node, reason in analysis.refused],
            "plan": plan.plan_of(kept, digest).to_json(),
        }
        method = self._method(context)
        whole = None if method == "none" else repair.Whole.of(kept)
        details["equivalence_error"] = _cut_and_prove(kept, context)
        if whole is not None:
            details["repair"] = repair.repair(model, whole, method, context)
        details["removed_parameters"] = before - _parameters(model)
        return Effect(True, details)

    def _method(self, context: Context) -> Method:
        return self.repair or ("none" if context.data is None else "lstsq")

    def analysed(self, model: ir.Model) -> Analysis:
        """The units of a model, whose constants become initializers. Raises InvalidModelError for NaN in them."""
        refuse_quantized(model)
        excluded = {node for nodes in named(model, self.exclude).values() for node in nodes}
        make_constants(model)
        fold_constants(model)  # an exported bias of zeros may be computed from the shape of its weight
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        analysis = analyse(model, excluded)
        _finite(analysis)
        return analysis

    def _check(self, context: Context) -> None:
        wishes = [key for key in ("sparsity", "target_macs", "target_size", "plan") if getattr(self, key) is not None]
        if len(wishes) > 1:
            raise UsageError(f"{' and '.join(wishes)} do not go together", where=wishes[1])
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity {self.sparsity} is not in [0, 1)", where="sparsity")
        if self.sparsity == 0:
            raise NoEffectError("a sparsity of 0 removes nothing", where="sparsity")
        for key in ("target_macs", "target_size", "limit"):
            share = getattr(self, key)
            if share is not None and not 0 < share < 1:
                raise UsageError(f"{key} {share} is not between 0 and 1", where=key)
        if self.align is not None and self.align < 1:
            raise UsageError(f"align {self.align} is less than 1", where="align")
        if self.repair in ("bias", "lstsq") and context.data is None:
            raise UsageError(f"repair '{self.repair}' needs data", where="repair", hint="give --data")
        if self.importance in ("activation", "elimination", "first-order") and context.data is None:
            raise UsageError(f"importance '{self.importance}' needs data", where="importance", hint="give --data")

    def choice(self, analysis: Analysis, context: Context) -> tuple[Choice, str]:
        """(what decides which units go, what ranked them). Raises NoEffectError where there are none."""
        if not analysis.groups:
            raise no_units(analysis)
        scores, how = self.scores(analysis, _without_padding(context))
        kind, align, limit = self.allocation, self.align, self.limit
        if kind == "auto":  # once weights are repaired, shares by damage gain nothing: measured on four models
            kind = "sensitivity" if context.data is not None and self.repair == "none" else "uniform"
        losses = how not in ("l1", "l2")
        return choose(analysis, scores, context, kind=kind, align=align, limit=limit, losses=losses), how

    def _choose(self, analysis: Analysis, context: Context) -> tuple[Kept, dict[str, Any]]:
        """(what stays, what the record says of it)."""
        choice, how = self.choice(analysis, context)
        targets = self.target_macs, self.target_size
        open_ = targets == (None, None) and self.sparsity is None
        stay = choice.stay(Goal(_SPARSITY if open_ else self.sparsity, *targets))
        said: dict[str, Any] = {"importance": how, "allocation": choice.kind}
        if choice.curves:
            said["damage"] = [curve.to_json() for curve in choice.curves]
        return choice.kept(stay), said

    def scores(self, analysis: Analysis, context: Context) -> tuple[list[np.ndarray], str]:
        """(importance of each unit, by group; its name). Raises UnsupportedError for "first-order"."""
        if self.importance == "first-order":
            raise UnsupportedError(
                "passes alone know no gradients, which importance 'first-order' needs",
                where="importance",
                hint="run onnxcomp.pytorch.importance.PruneFirstOrder in its place",
            )
        observed: dict[int, np.ndarray] = {}
        eliminated = 0
        if self.importance not in ("l1", "l2") and context.data is not None and analysis.groups:
            context.data.require_real("pruning")
            given = context.data, context.workdir, context.store
            if self.importance == "elimination" or (self.importance == "auto" and self._method(context) == "lstsq"):
                observed |= by_elimination(analysis, *given)
                eliminated = len(observed)
            observed |= importance.by_activations(analysis, *given, known=observed)
        measure: importance.Measure = "l1" if self.importance == "l1" else "l2"
        scores = [
            observed[i] if i in observed else importance.by_weights(analysis, group, measure)
            for i, group in enumerate(analysis.groups)
        ]
        if observed and len(observed) < len(scores):
            context.note(f"{len(scores) - len(observed)} groups are ranked by weights: what reads them is not observed")
        return scores, "elimination" if eliminated else "activation" if observed else measure


def refuse_quantized(model: ir.Model) -> None:
    """Raises UnsupportedError for a model with quantized weights or activations."""
    found = sorted({n.op_type for n in all_nodes(model) if any(part in n.op_type for part in _QUANTIZED)})
    if found:
        raise UnsupportedError(
            f"the model is quantized already (it has {', '.join(found)})",
            hint="prune the float model, then quantize",
        )


def _without_padding(context: Context) -> Context:
    return context if context.data is None else dataclasses.replace(context, data=unpadded(context.data))


def _cut_and_prove(kept: Kept, context: Context) -> float:
    """Cut the model in place; the error of the proof."""
    reference = equivalence.masked(kept)
    try:
        cut(kept)
    except RefusedError as refused:
        raise UnsupportedError(f"the cut cannot be written: {refused}", hint="exclude the node") from refused
    return equivalence.prove(reference, kept.analysis.model, context.data, context.workdir)


def _described(group: Group, kept: Kept) -> dict[str, Any]:
    """A group for the record."""
    return {
        "nodes": list(dict.fromkeys(use.node.name or use.node.op_type for use in group.uses)),
        "initializers": list(dict.fromkeys(name for name, _ in group.members)),
        "units": len(group),
        "kept": int(kept.units(group).sum()),
        "channels_per_unit": group.channels,
    }


def _costs(analysis: Analysis, groups: list[dict[str, Any]]) -> dict[str, float]:
    """What is left of the multiply-accumulates."""
    units, stay = [g["units"] for g in groups], [g["kept"] for g in groups]
    return {"macs_ratio": round(selection.ratio(selection.multiplications(analysis), units, stay), 4)}


def _finite(analysis: Analysis) -> None:
    """Raises InvalidModelError for NaN and infinity in what would be cut."""
    for name in dict.fromkeys(name for group in analysis.groups for name, _ in group.members):
        tensor = analysis.model.graph.initializers[name].const_value
        if tensor is not None and not np.all(np.isfinite(tensor.numpy())):
            raise InvalidModelError("a weight holds NaN or infinity", where=f"tensor {name}")


def _parameters(model: ir.Model) -> int:
    return sum(tensor.size for _, tensor in constants(model) if is_parameter(tensor))
