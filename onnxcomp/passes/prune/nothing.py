"""Why nothing of a model goes, and what would change that."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.errors import NoEffectError
from onnxcomp.passes.prune.alignment import step
from onnxcomp.passes.prune.analysis import Analysis
from onnxcomp.passes.prune.selection import uniform

#: groups, nodes and reasons that a message names
_NAMED = 3

_OTHERWISE = "its weights can get smaller in other ways: quantize, or --structure none"


def no_units(analysis: Analysis) -> NoEffectError:
    """For a model without groups: the first nodes with their reasons."""
    by_reason: dict[str, str] = {}
    for node, reason in analysis.refused:
        by_reason.setdefault(reason, node)
    reasons = [f"{node}: {reason}" for reason, node in by_reason.items()][:_NAMED]
    if not reasons:
        return NoEffectError("no unit can be removed: the model has no weights that are summed over")
    more = f"; and {len(by_reason) - _NAMED} more reasons" if len(by_reason) > _NAMED else ""
    excluded = any("it is excluded" in reason for reason in by_reason)
    return NoEffectError(
        f"no unit can be removed: {'; '.join(reasons)}{more}", hint="exclude less" if excluded else _OTHERWISE
    )


def nothing_goes(analysis: Analysis, *, align: int | None, limit: float, planned: bool) -> NoEffectError:
    """For a model whose units all stay: by the plan, since too few were to go, or since a group is one block."""
    if not analysis.groups:
        return no_units(analysis)
    if planned:
        return NoEffectError("nothing is removed: the plan keeps all units", hint="make a plan that cuts", where="plan")
    units = [len(group) for group in analysis.groups]
    steps = [step(group, align) for group in analysis.groups]
    pairs = zip(units, steps, strict=True)
    sizes = _listed([f"{n} in blocks of {block}" if block > 1 else f"{n}" for n, block in pairs])
    if uniform(units, steps, limit, 1.0) != units:
        hint = "more goes with a higher --sparsity, or with a lower target"
    elif max(steps) > 1 and uniform(units, [1] * len(units), limit, 1.0) != units:
        hint = f"a smaller --align than {max(steps)} lets some go, but convolutions may get slower by it"
    else:
        hint = f"the limit of {limit:g} lets none of them go"
    return NoEffectError(f"nothing is removed: rounded to blocks, all units of the groups ({sizes}) stay", hint=hint)


def _listed(parts: Sequence[str]) -> str:
    found = list(dict.fromkeys(parts))
    return ", ".join(found[: _NAMED + 1]) + (", ..." if len(found) > _NAMED + 1 else "")
