"""Least squares from the first consumer to the last, each from what the repaired part before it really feeds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxcomp.activations.observe import groups_within
from onnxcomp.data import Batches
from onnxcomp.passes.base import Context
from onnxcomp.passes.prune.repair import fit
from onnxcomp.passes.prune.repair.consumers import Consumer
from onnxcomp.passes.prune.repair.levels import levels
from onnxcomp.passes.prune.repair.together import observe_both

#: bytes of the second moments that one pass over the data fills
_BUDGET = 512 << 20

Sets = Sequence[Sequence[Consumer]]


def sequential(model: ir.Model, reference: ir.Model, sets: Sets, data: Batches, context: Context) -> ir.Model:
    """A copy of a cut model, repaired level by level: each consumer from what it reads in the copy by then.

    Moments that stand in memory together take at most 512 MiB, or are those of one set.

    Args:
        model: the cut model, whose nodes are those of the consumers' uses; stays as it is.
        reference: before the cut; likewise.
        sets: consumers, those with one weight together.
        data: samples.
        context: where statistics are kept.
    """
    candidate = model.clone()
    nodes = dict(zip(model.graph, list(candidate.graph), strict=True))
    ours = list(reference.graph)
    depths = levels(candidate.graph, [nodes[c.use.node] for members in sets for c in members])
    turns = list(_turns(sets, [max(depths[nodes[c.use.node]] for c in members) for members in sets]))
    for number, now in enumerate(turns):
        pairs = [(c, ours[c.place], nodes[c.use.node]) for members in now for c in members]
        part = number, len(turns)
        seen = observe_both(reference, candidate, pairs, data, workdir=context.workdir, store=context.store, part=part)
        moments = {pair[0]: found for pair, found in zip(pairs, seen, strict=True)}
        del seen
        for members in now:
            sums = [fit.Seen.both(moments.pop(c), members[0].width) for c in members]
            fitted = fit.least_squares(members, sums, [c.has_bias(nodes[c.use.node]) for c in members])
            for consumer, each in zip(members, fitted, strict=True):
                consumer.write(nodes[consumer.use.node], each.weight, each.shift)
    return candidate


def _turns(sets: Sets, level: Sequence[int]) -> Iterator[Sets]:
    """The sets of one level, which do not read each other, as many at a time as the budget holds."""
    for stage in sorted(set(level)):
        sizes = {i: sum(map(_bytes, sets[i])) for i, at in enumerate(level) if at == stage}
        for turn in groups_within(sizes, _BUDGET):
            yield [sets[i] for i in turn]


def _bytes(consumer: Consumer) -> int:
    """Of the moments of rows of both models."""
    return 8 * consumer.use.groups * (consumer.width + len(consumer.inputs)) ** 2
