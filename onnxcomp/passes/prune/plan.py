"""A plan: which indices of which initializers stay, as JSON that fits the model and its torch weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcomp.errors import DataError, UnsupportedError, from_os_error
from onnxcomp.inspect import constants
from onnxcomp.passes.prune.analysis import Analysis
from onnxcomp.passes.prune.cut import Kept

_HINT = "a plan is what --plan-out writes: {model, cuts: [{initializer, axis, kept}]}"


@dataclasses.dataclass(frozen=True)
class Cut:
    """One axis of one initializer.

    Attributes:
        size: of the axis before the cut; None where the plan does not say.
        kept: the indices that stay, ascending.
    """

    initializer: str
    axis: int
    size: int | None
    kept: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All cuts of a model.

    Attributes:
        model: `content_hash` of the model that it was made for.
    """

    model: str
    cuts: tuple[Cut, ...]

    def to_json(self) -> dict[str, Any]:
        """`{model, cuts: [{initializer, axis, size, kept}]}`."""
        return {"model": self.model, "cuts": [{**dataclasses.asdict(c), "kept": list(c.kept)} for c in self.cuts]}

    @staticmethod
    def from_json(tree: Any, *, where: object = "plan") -> Plan:
        """Check and read a plan. Raises DataError naming the key."""
        if (
            not isinstance(tree, dict)
            or not isinstance(tree.get("model"), str)
            or not isinstance(tree.get("cuts"), list)
        ):
            raise DataError("not a pruning plan: it has no model or no cuts", where=where, hint=_HINT)
        return Plan(tree["model"], tuple(_cut(entry, f"{where}: cuts[{i}]") for i, entry in enumerate(tree["cuts"])))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan from a file. Raises OutputError when unreadable, DataError when it is no plan."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise from_os_error(error, path) from error
        except (ValueError, RecursionError) as error:  # too long a number, nested too deep
            raise DataError(f"the plan is not JSON: {error}", where=path, hint=_HINT) from error
        return Plan.from_json(tree, where=path)


def content_hash(model: ir.Model) -> str:
    """SHA-256 (hex) of a model's stored tensors, operators and names of inputs and outputs.

    However the file was written, with its weights inside or beside it, the hash is the same.
    """
    digest = hashlib.sha256()
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        digest.update(f"{value.name}|".encode())
    for node in graph.all_nodes():
        if node.op_type != "Constant":
            names = [value.name if value is not None else "" for value in (*node.inputs, *node.outputs)]
            digest.update(f"{node.domain}:{node.op_type} {names}|".encode())
    for name, tensor in sorted((value.name or "", tensor) for value, tensor in constants(model)):
        digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}|".encode())
        if tensor.dtype == ir.DataType.STRING:
            digest.update(repr(tensor.numpy().tolist()).encode())
        else:
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def plan_of(kept: Kept, model: str) -> Plan:
    """The plan of a cut; `model` is the hash of the model before it."""
    cuts = []
    for name, axes in kept.of_initializers().items():
        value = kept.analysis.model.graph.initializers[name]
        for axis, indices in axes.items():
            size = kept.analysis.atoms.dims(value)[axis].factor
            cuts.append(Cut(name, axis, size, tuple(indices.tolist())))
    return Plan(model, tuple(cuts))


def read(analysis: Analysis, plan: Plan, model: str) -> Kept:
    """What a plan leaves of the analysed model.

    Raises DataError for a plan of another model (naming both), for a cut that the model does not have, and
    for cuts that do not go together.
    """
    if plan.model != model:
        raise DataError(
            f"the plan was made for another model: {plan.model}, not {model}",
            where="plan",
            hint="apply it to the file that it was made from, before any other pass",
        )
    gone = []
    for cut in plan.cuts:
        value = analysis.model.graph.initializers.get(cut.initializer)
        rank = len(analysis.atoms.sizes.of(value) or ())
        where = f"plan: {cut.initializer}, axis {cut.axis}"
        size = analysis.atoms.dims(value)[cut.axis].factor if value is not None and cut.axis < rank else 0
        if value is None or not size or cut.size not in (None, size):
            raise DataError("the model has no such axis", where=where)
        if cut.kept[-1] >= size:
            raise DataError(f"the indices must lie between 0 and {size - 1}", where=where)
        away = np.ones(size, bool)
        away[list(cut.kept)] = False
        gone.append(analysis.axis_labels(value, cut.axis)[away])
    units = np.unique(np.concatenate(gone)) if gone else np.zeros(0, np.int64)
    known = np.concatenate([group.units for group in analysis.groups]) if analysis.groups else units[:0]
    kept = Kept.without(analysis, units)
    for group in analysis.groups:
        if not kept.units(group).any():
            name, axis = group.members[0]
            raise DataError("a group of units would vanish", where=f"plan: {name}, axis {axis}")
    said = {(cut.initializer, cut.axis): cut.kept for cut, away in zip(plan.cuts, gone, strict=True) if len(away)}
    found = {
        (name, axis): tuple(indices.tolist())
        for name, axes in kept.of_initializers().items()
        for axis, indices in axes.items()
    }
    if not np.isin(units, known).all() or said != found:
        raise DataError(
            "the cuts do not go together: they take parts of units, or what has to stay",
            where="plan",
            hint="do not edit single cuts; make the plan anew",
        )
    return kept


def cut_state(
    state: Mapping[str, Any], plan: Plan, parameters: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Any]:
    """A torch state dict without what the plan cuts, to fine-tune the narrower module.

    Args:
        state: arrays by parameter name; numpy's, or torch's.
        plan: of the exported model.
        parameters: where each parameter went in the export, {name: {initializer, transposed} or None}: the
            entry 'onnxcomp.parameters' of the exported model's metadata.

    Raises UnsupportedError for a cut initializer that is no parameter: BatchNormalization was folded into it.
    """
    by_initializer: dict[str, list[Cut]] = {}
    for cut in plan.cuts:
        by_initializer.setdefault(cut.initializer, []).append(cut)
    held = {where["initializer"] for where in parameters.values() if where is not None}
    lost = sorted(set(by_initializer) - held)
    if lost:
        raise UnsupportedError(
            f"{len(lost)} of the cut tensors are no parameters of the module",
            where=f"initializer {lost[0]}",
            hint="export with purpose='training', which folds nothing, and prune that",
        )
    result = dict(state)
    for name, where in parameters.items():
        for cut in by_initializer.get(where["initializer"], ()) if where is not None and name in state else ():
            axis = 1 - cut.axis if where and where["transposed"] else cut.axis
            result[name] = result[name][(slice(None),) * axis + (list(cut.kept),)]
    return result


def _cut(entry: Any, where: str) -> Cut:
    if not isinstance(entry, dict):
        raise DataError("a cut is a table", where=where, hint=_HINT)
    name, axis, size, kept = (entry.get(key) for key in ("initializer", "axis", "size", "kept"))
    if not isinstance(name, str):
        raise DataError("a cut names no initializer", where=f"{where}.initializer", hint=_HINT)
    if type(axis) is not int or (size is not None and type(size) is not int) or axis < 0:
        raise DataError("axis and size are whole numbers", where=where, hint=_HINT)
    if not isinstance(kept, list) or not all(type(k) is int for k in kept):
        raise DataError("not a list of whole numbers", where=f"{where}.kept", hint=_HINT)
    if not kept:
        raise DataError("nothing of the axis would stay", where=f"{where}.kept")
    if kept != sorted(set(kept)) or kept[0] < 0:
        raise DataError("the indices must ascend from 0 on", where=f"{where}.kept")
    return Cut(name, axis, size, tuple(kept))
