"""One model in which blocks are taken out and put back from outside, and what each does to the outputs.

At the end of a block stands an `If` on one element of a bool input: one branch hands on what enters the
block, the other what leaves it. So one loaded model tells every block's damage, alone and beside those
that are gone, and no weight is stored twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batch, Batches
from onnxcomp.evaluate.fidelity import as_array

#: the input that switches: bool, (detours,)
_SWITCH = "onnxcomp.switch"

#: (name of a value, name of the value whose place it takes)
Detour = tuple[str, str]


class Switched:
    """A model in which each detour can be taken.

    Args:
        model: stays as it is.
        detours: in the order of the graph; both values have the same size and type.
        workdir: a private folder.
    """

    def __init__(self, model: ir.Model, detours: Sequence[Detour], workdir: Path) -> None:
        path = models.write_to(_switched(model, detours), workdir, "switched")
        self._session = runtime.open_session(path, settings=runtime.frugal(path))
        path.unlink()
        self._count = len(detours)

    def outputs(self, batch: Batch, taken: Iterable[int] = ()) -> Mapping[str, runtime.Output]:
        """With these detours taken."""
        switch = np.zeros(self._count, bool)
        switch[list(taken)] = True
        return self._session.run({**batch.feeds, _SWITCH: switch})

    def damage(self, data: Batches, choices: Sequence[Iterable[int]], task: tuple[int, int] = (0, 1)) -> list[float]:
        """For each choice of detours the relative error of the outputs against those without any.

        sqrt(sum (r - c)^2 / sum r^2) over all samples, the largest over the outputs; infinite where an output
        is NaN or infinite, or has other sizes. The outputs of one batch are in memory.

        Args:
            data: real samples.
            choices: indices of detours.
            task: (number, of how many) measurements that are one task, for its progress.
        """
        sums = [_Sums() for _ in choices]
        total, done = data.samples, 0
        for batch in data:
            reference = self.outputs(batch)
            for number, (entry, choice) in enumerate(zip(sums, choices, strict=True)):
                share = (done + batch.samples * number / len(sums)) / total
                worker.report("damage of blocks", (task[0] + share) / task[1])
                entry.add(reference, self.outputs(batch, choice))
            done += batch.samples
        return [entry.error() for entry in sums]


class _Sums:
    """Signal and noise of each output over batches."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}

    def add(self, reference: Mapping[str, runtime.Output], candidate: Mapping[str, runtime.Output]) -> None:
        """The outputs of one batch."""
        for name, found in candidate.items():
            expected, array = as_array(reference[name]), as_array(found)
            if expected is None or array is None:
                continue
            r, c = expected.astype(np.float64), array.astype(np.float64)
            noise = math.inf
            if r.shape == c.shape:
                with np.errstate(invalid="ignore"):  # equal infinities
                    noise = float(np.sum(np.where(r == c, 0.0, r - c) ** 2))
            self._noise[name] = self._noise.get(name, 0.0) + noise
            self._signal[name] = self._signal.get(name, 0.0) + float(np.sum(np.where(np.isfinite(r), r, 0.0) ** 2))

    def error(self) -> float:
        """Of the worst output."""
        return max(self._errors(), default=0.0)

    def _errors(self) -> Iterator[float]:
        for name, noise in self._noise.items():
            if noise == 0:
                yield 0.0
            else:
                signal = self._signal[name]
                yield math.sqrt(noise / signal) if math.isfinite(noise) and signal else math.inf


def _switched(model: ir.Model, detours: Sequence[Detour]) -> ir.Model:
    """A copy with the input that switches and an If for each detour."""
    copy = model.clone()
    graph = copy.graph
    values = values_by_name(copy)
    switch = ir.Value(name=_SWITCH, shape=ir.Shape([len(detours)]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(switch)
    for number, (source, target) in enumerate(detours):
        name = f"{_SWITCH}.{number}"
        index = ir.Value(name=f"{name}.index", const_value=ir.tensor(np.array(number, np.int64), name=f"{name}.index"))
        graph.register_initializer(index)
        flag = ir.Node("", "Gather", [switch, index], name=name)
        flag.outputs[0].name = name
        end = values[target]
        maker = end.producer()
        assert maker is not None
        bodies = [_hands_on(values[source], f"{name}.taken"), _hands_on(end, f"{name}.not")]
        chosen = ir.Node(
            "",
            "If",
            [flag.outputs[0]],
            [ir.AttrGraph(key, body) for key, body in zip(("then_branch", "else_branch"), bodies, strict=True)],
            outputs=[ir.Value(name=f"{name}.end", type=end.type, shape=end.shape)],
            name=f"{name}.if",
        )
        replace(end, chosen.outputs[0], kept={bodies[1][0]})
        graph.insert_after(maker, [flag, chosen])
        values[target] = chosen.outputs[0]
    return copy


def values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Inputs and computed values of the main graph."""
    computed = (value for node in model.graph for value in node.outputs)
    return {value.name: value for value in (*model.graph.inputs, *computed) if value.name}


def replace(old: ir.Value, new: ir.Value, kept: Iterable[ir.Node] = ()) -> None:
    """Let all that use a value use another one, but for the nodes `kept`; an output keeps its name."""
    stay = set(kept)
    for node, index in list(old.uses()):
        if node not in stay:
            node.replace_input_with(index, new)
    graph = old.graph
    if old.is_graph_output() and graph is not None:
        name, old.name = old.name, f"{old.name}.inner"
        new.name = name
        for position, value in enumerate(graph.outputs):
            if value is old:
                graph.outputs[position] = new


def _hands_on(value: ir.Value, name: str) -> ir.Graph:
    """The body of an If that hands on a value of the outer graph."""
    node = ir.Node("", "Identity", [value], name=name)
    node.outputs[0].name = f"{name}.value"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return ir.Graph([], node.outputs, nodes=[node], name=name)
