"""What cutting one group alone does to the outputs, measured on samples in one session with switches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.evaluate.fidelity import as_array
from onnxcomp.passes.base import Context
from onnxcomp.passes.prune.analysis import Analysis
from onnxcomp.passes.prune.equivalence import stored_type
from onnxcomp.passes.prune.selection import least_important

#: shares of a group that are cut
SHARES = (0.125, 0.25, 0.5, 0.75)

#: samples that it is measured on
SAMPLES = 32

#: an error that counts for any larger one, and for outputs that are not finite
_RUINED = 1e3

#: the input that switches units off: float32, (units of all groups + 1,), zeros for what is cut; the last is 1
SWITCH = "onnxcomp.units"


@dataclasses.dataclass(frozen=True)
class Curve:
    """The damage of cutting a group alone.

    Attributes:
        counts: units that are cut, from 0 on, ascending: int64, (points,).
        errors: relative error of the outputs, sqrt(sum (r - c)^2 / sum r^2), the largest over the outputs;
            never falling: float64, (points,).
    """

    counts: np.ndarray
    errors: np.ndarray

    def at(self, count: float) -> float:
        """The square of the error with so many units cut, by straight lines between the points."""
        return float(np.interp(count, self.counts, np.square(np.minimum(self.errors, _RUINED))))

    def to_json(self) -> dict[str, list[float | None]]:
        """`{counts, errors}`; an infinite error is null."""
        errors = [round(e, 4) if math.isfinite(e) else None for e in self.errors.tolist()]
        return {"counts": self.counts.tolist(), "errors": errors}


def measured(
    analysis: Analysis, scores: Sequence[np.ndarray], limit: float, data: Batches, context: Context
) -> list[Curve]:
    """The curve of each group, its least important units cut; the outputs of one batch are in memory.

    One thread: the same numbers, and the same cut, on every run. After Li et al. 2017 (arXiv:1608.08710), on
    outputs in place of labels.
    """
    path = models.write_to(switched(analysis), context.workdir, "switched")
    session = runtime.open_session(path, settings=dataclasses.replace(runtime.frugal(path), threads=1))
    starts = np.cumsum([0, *map(len, analysis.groups)])
    points = [sorted({max(int(len(s) * share), 1) for share in (*SHARES, limit)}) for s in scores]
    runs = [
        (starts[g] + least_important(score, count), _Error()) for g, score in enumerate(scores) for count in points[g]
    ]
    some = data.take(min(SAMPLES, data.samples))
    done, total = 0, some.samples
    for batch in some:
        everything = np.ones(starts[-1] + 1, np.float32)
        reference = session.run({**batch.feeds, SWITCH: everything})
        for number, (gone, error) in enumerate(runs):
            worker.report("sensitivity of groups", (done + batch.samples * number / len(runs)) / total)
            left = everything.copy()
            left[gone] = 0
            error.add(reference, session.run({**batch.feeds, SWITCH: left}))
        done += batch.samples
    path.unlink()
    errors = iter([error.value() for _, error in runs])
    return [
        Curve(np.array([0, *counts]), np.maximum.accumulate([0.0, *(next(errors) for _ in counts)]))
        for counts in points
    ]


def switched(analysis: Analysis) -> ir.Model:
    """A copy of the analysed model with the input `SWITCH`, which multiplies what is summed over."""
    model = analysis.model.clone()
    graph, places = model.graph, dict(zip(analysis.model.graph, list(model.graph), strict=True))
    count = sum(map(len, analysis.groups))
    switch = ir.Value(name=SWITCH, shape=ir.Shape([count + 1]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(switch)
    position = np.full(len(analysis.group_of), count)
    position[np.concatenate([group.units for group in analysis.groups])] = np.arange(count)
    for number, use in enumerate(dict.fromkeys(u for group in analysis.groups for u in group.uses)):
        node, name = places[use.node], f"{SWITCH}.{number}"
        index = list(use.node.inputs).index(use.activation)
        source = node.inputs[index]
        assert source is not None
        rank = analysis.atoms.rank(use.activation)
        indices = position[analysis.axis_labels(use.activation, use.activation_axis)]
        shape = [1] * rank
        shape[use.activation_axis] = len(indices)
        stored = ir.Value(name=f"{name}.indices", const_value=ir.tensor(indices.reshape(shape)))
        graph.register_initializer(stored)
        picked = ir.node("Gather", [switch, stored])
        cast = ir.node("Cast", [picked.outputs[0]], {"to": int(stored_type(use.weight))})
        product = ir.node("Mul", [source, cast.outputs[0]])
        for part, new in (("picked", picked), ("cast", cast), ("product", product)):
            new.outputs[0].name = f"{name}.{part}"
            graph.insert_before(node, new)
        node.replace_input_with(index, product.outputs[0])
    return model


class _Error:
    """Signal and noise of each output over batches."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}

    def add(self, reference: Mapping[str, runtime.Output], candidate: Mapping[str, runtime.Output]) -> None:
        """The outputs of one batch."""
        for name, output in reference.items():
            r, c = as_array(output), as_array(candidate[name])
            if r is None or c is None or not r.size:
                continue
            r, c = r.astype(np.float64), c.astype(np.float64)
            finite = np.isfinite(r)
            noise = np.sum((r - c)[finite] ** 2) if r.shape == c.shape else np.sum(r[finite] ** 2)
            self._sums[name] = self._sums.get(name, np.zeros(2)) + np.array([np.sum(r[finite] ** 2), noise])

    def value(self) -> float:
        """The largest of the relative errors."""
        return max(map(_relative, self._sums.values()), default=0.0)


def _relative(sums: Iterable[float]) -> float:
    signal, noise = sums
    return math.sqrt(noise / signal) if signal and math.isfinite(noise) else math.inf if noise else 0.0
