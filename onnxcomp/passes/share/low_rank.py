"""`low-rank`: two thin matrices in the place of one, that lose the least on real inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.data import Batches
from onnxcomp.errors import NoEffectError, UsageError
from onnxcomp.inspect import constants, is_parameter
from onnxcomp.passes.base import Context, Effect, Pass, named, option
from onnxcomp.passes.batchnorm import make_constants
from onnxcomp.passes.prune.alignment import host_block
from onnxcomp.passes.prune.structured import refuse_quantized
from onnxcomp.passes.share import factored, ranks, spectra
from onnxcomp.passes.share.held_out import Judge, Parts
from onnxcomp.passes.share.matrices import Family, find

#: share of the matrices' parameters that stays where nothing else is asked for
_KEEP = 0.75

#: by damage, no rank is below this share of what all would have by even shares: damage is measured at half of the
#: parameters, and says little of a rank of 1 (that of magika's last layer, which then knew no type any more)
_LEAST = 0.25

_PLAIN = (
    "without data this is a plain SVD, which ruins text models (a sentence encoder at 75 % of its weights: cosine "
    "0.5 to the whole one, 0.95 with data): give --data"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Pass):
    """Replace weights by the product of two thin ones: smaller, and faster where the rank is low enough.

    Of all factors of a rank those that change the outputs of the node least, in square, on the inputs that it
    really gets: the singular value decomposition of R W, with R^T R the second moments of the inputs (DRONE, Chen
    et al. 2021; SVD-LLM, Wang et al. 2024, arXiv:2403.07378). Which weight gets which rank is decided by what the
    outputs of the model lose.

    Rules:
        1. MatMul and Gemm by a stored matrix; Conv without groups, whose kernel becomes one with fewer channels
           and one of a single place. Matrices that multiply one tensor (q, k and v) share their first factor.
        2. A weight is factored only up to `limit` of the rank at which both factors have its parameters: above,
           nothing gets faster. Ranks of Conv are multiples of what this host's kernels take at once.
        3. Means are kept by the bias, where there is one: only what varies needs to be approximated.
        4. Left whole, with the reason in `skipped`: other operators, grouped Conv, subgraphs and local functions,
           weights that are also read in another way. Quantized models are refused.
        5. A quarter of the samples makes no factors: it says what each rank loses, chooses ranks, and judges the
           result (`output_error`). A large error there is noted, and so are matrices that got fewer rows of data
           than they have inputs.
        6. `prune-structured` makes a model faster at the same size; what it leaves can be factored too, after it.

    Cosine to the whole MiniLM-L6 on other sentences of the kind that calibrated, 75 % and 50 % of its matrices left:
    a plain SVD 0.58 and 0.36; on data 0.952 and 0.903; with a shared first factor, and ranks by damage on samples
    held out, 0.971 and 0.920. `prune-structured`, at the same size: 0.977 and 0.936; inner neurons alone: 0.981 and
    0.925.
    Magika, 75 %, 48 files: 94 % right of 97 %; with ranks chosen on the files that made the factors it was 43 %.
    """

    name: ClassVar[str] = "low-rank"
    wants_data: ClassVar[bool] = True

    keep: float | None = option(
        None, "share of the parameters of what can be factored that stays; unset: 0.75 without another wish"
    )
    target_size: float | None = option(None, "the same for the bytes of all weights, those of tables too")
    energy: float | None = option(None, "share of the square of each weight's outputs that its factors keep")
    rank: int | None = option(None, "the same rank for all weights")
    limit: float = option(0.8, "highest rank, as a share of that at which nothing is saved, above 0 and below 1")
    allocation: Literal["auto", "uniform", "damage"] = option(
        "auto",
        "how weights share what goes: evenly, or by what each one's factors do to the outputs, measured on 32 "
        "samples that make no factors; auto: damage with data",
    )
    exclude: tuple[str, ...] = option((), "nodes, or torch modules, whose weights stay whole")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (options), NoEffectError (nothing to factor), UnsupportedError (quantized).

        And GateError (a target that cannot be reached), CalibrationError (NaN and infinity on the data).
        """
        self._check(context)
        refuse_quantized(model)
        excluded = {node for nodes in named(model, self.exclude).values() for node in nodes}
        make_constants(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        before = _parameters(model)
        families, skipped = find(model, excluded)
        able = [family for family in families if self._most(family)]
        skipped += [(f.name, "too small: no rank below the limit") for f in families if not self._most(f)]
        if context.data is None and able:
            context.note(_PLAIN)
        parts = None if context.data is None else Parts.of(context.data, context)
        fitted, judging = (None, None) if parts is None else (parts.fitted, parts.judging)
        found = spectra.of(model, able, [self._most(family) for family in able], fitted, context)
        if parts is not None and parts.divided:
            found = spectra.judged(model, found, parts.judging, context)
        curves = [ranks.Curve(s.family, s.lost, self._block(s.family)) for s in found]
        chosen, said = self._choose(model, found, curves, judging, context)
        skipped += [(c.family.name, self._why(c)) for c, r in zip(curves, chosen, strict=True) if r is None]
        for node, reason in skipped:
            context.note(f"not factored: {reason}", node)
        if all(rank is None for rank in chosen):
            raise NoEffectError("no weight was factored", hint="see the reasons in the notes")
        judge = None if parts is None else Judge(model, parts, context)
        made = [_factor(model, s, rank, context) for s, rank in zip(found, chosen, strict=True) if rank is not None]
        details = {
            "removed_parameters": before - _parameters(model),
            "parameters": before,
            **said,
            **({} if judge is None else judge.judge(model)),
            "factored": made,
            "skipped": [{"node": node, "reason": reason} for node, reason in skipped],
        }
        return Effect(True, details)

    def _check(self, context: Context) -> None:
        wishes = [key for key in ("keep", "target_size", "energy", "rank") if getattr(self, key) is not None]
        if len(wishes) > 1:
            raise UsageError(f"{' and '.join(wishes)} do not go together", where=wishes[1])
        for key in ("keep", "target_size", "energy", "limit"):
            share = getattr(self, key)
            if share is not None and not 0 < share < 1:
                raise UsageError(f"{key} {share} is not between 0 and 1", where=key)
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"rank {self.rank} is less than 1", where="rank")
        if self.allocation == "damage" and context.data is None:
            raise UsageError("allocation 'damage' needs data", where="allocation", hint="give --data")
        if self.allocation != "auto" and (self.energy or self.rank):
            raise UsageError("energy and rank leave nothing to allocate", where="allocation")
        if context.data is not None:
            context.data.require_real("low rank")

    def _block(self, family: Family) -> int:
        """Ranks are multiples of it."""
        return host_block() if family.members[0].convolves else 1

    def _most(self, family: Family) -> int:
        """The highest rank; 0 where there is none."""
        block = self._block(family)
        return int(self.limit * family.even / block) * block

    def _choose(
        self,
        model: ir.Model,
        found: Sequence[spectra.Spectrum],
        curves: list[ranks.Curve],
        data: Batches | None,
        context: Context,
    ) -> tuple[list[int | None], dict[str, Any]]:
        """(the rank of each family, None to leave it whole; what the record says of it)."""
        if self.energy is not None:
            return [curve.for_energy(self.energy) for curve in curves], {}
        if self.rank is not None:
            return [c.nearest(self.rank) if self.rank < len(c.lost) else None for c in curves], {}
        dense = sum(c.family.dense * c.family.itemsize for c in curves)
        stored = sum(tensor.nbytes for _, tensor in constants(model))
        keep = _KEEP if self.keep is None else self.keep
        budget = keep * dense if self.target_size is None else self.target_size * stored - (stored - dense)
        kind = self.allocation
        if kind == "auto":
            kind = "damage" if data is not None else "uniform"
        if kind == "uniform":
            share = budget / dense if dense else 0
            return [c.nearest(share * c.family.even) if share <= self.limit else None for c in curves], {
                "allocation": kind
            }
        assert data is not None
        errors = spectra.damage(model, found, curves, data, context)
        weighted = [
            dataclasses.replace(c, weight=w, lowest=int(min(_LEAST * budget / dense * c.family.even, len(c.lost) - 1)))
            for c, w in zip(curves, errors, strict=True)
        ]
        return ranks.within(weighted, budget), {"allocation": kind}

    def _why(self, curve: ranks.Curve) -> str:
        """Why a family that could be factored is not."""
        if self.energy is not None:
            return f"{self.energy:g} of its energy takes a rank above the limit of {len(curve.lost) - 1}"
        if self.rank is not None:
            return f"rank {self.rank} is above its limit of {len(curve.lost) - 1}"
        if self.allocation == "uniform":
            return "the target is above the limit"
        return "the outputs lose least when it stays whole"


def _factor(model: ir.Model, spectrum: spectra.Spectrum, rank: int, context: Context) -> dict[str, Any]:
    """Factor one family in place; its entry in the record."""
    family, width = spectrum.family, spectrum.family.shape[0]
    if 0 < spectrum.rows < width:
        context.note(f"made from {spectrum.rows} rows of {width} inputs: more samples would tell more", family.name)
    nodes = [node.name for node in family.nodes]
    trial = spectrum.trial(rank)
    factored.write(model, family, trial.left, trial.right)
    for node, added in trial.shifts.items():
        factored.shift(model, node, added)
    on_data: dict[str, Any] = {"rows": spectrum.rows} if spectrum.rows else {}
    if spectrum.lost is not spectrum.fitted:
        on_data["held_out_energy"] = _share(spectrum.lost, rank)
    return {
        "node": family.name,
        "nodes": nodes,
        "rank": rank,
        "of": min(family.shape),
        "energy": _share(spectrum.fitted, rank),
        **on_data,
    }


def _share(lost: np.ndarray, rank: int) -> float:
    return round(1 - float(lost[rank]), 6)


def _parameters(model: ir.Model) -> int:
    used = {value for node in model.graph.all_nodes() for value in node.inputs}
    return sum(t.size for value, t in constants(model) if is_parameter(t) and (value in used or value.uses()))
