"""`prune-blocks`: take whole layers out of a model, those whose loss the outputs feel least."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.errors import AccuracyGateError, NoEffectError, UsageError
from onnxcomp.inspect import constants, is_parameter, macs_by_node
from onnxcomp.passes.base import (
    Context,
    Effect,
    Pass,
    drop_inner_shapes,
    drop_unused_initializers,
    named,
    option,
)
from onnxcomp.passes.prune.residual.branches import Block, Branches
from onnxcomp.passes.prune.residual.switches import Switched, replace, values_by_name


@dataclasses.dataclass(frozen=True)
class _Way:
    """One way to take a block out: what enters it takes the place of one of its targets."""

    block: Block
    target: str
    error: float = math.nan

    def to_json(self) -> dict[str, Any]:
        return {
            "module": self.block.module,
            "from": self.block.source,
            "to": self.target,
            "nodes": [node.name for node in self.block.heavy],
            "error": self.error,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneBlocks(Pass):
    """Remove whole layers: those without which the outputs on real samples change least.

    A block is one residual branch, or several in a row: what enters it takes the place of what leaves it. The
    result is a shallower model, faster by what the block cost. Each block is really taken out and the outputs
    measured; the least harmful one goes, and the others are measured anew beside it. After Men et al. 2024
    (ShortGPT, arXiv:2403.03853), who compare what enters a layer with what leaves it; here the outputs decide.

    Rules:
        1. A branch ends in Add(x, f(x)) of the same size as x in every run, as shapes prove, with weights in f.
           What is made of the sum alone (LayerNormalization, Relu) goes with it where that harms less.
        2. A layer is the shortest run of branches that repeats: attention and feed-forward of a transformer.
           Where nothing repeats, each branch is one.
        3. The damage is the relative error of the worst output, over at most `samples` samples.
        4. Left in place, with the reason in `refused`: sums with a projection beside the branch, sizes that are
           not known (`simplify` helps), what stands in subgraphs and local functions.
        5. Before `fuse`: what fused attention gives has no size that can be proven.
    """

    name: ClassVar[str] = "prune-blocks"
    needs_data: ClassVar[bool] = True

    blocks: int = option(1, "how many to remove")
    unit: Literal["layer", "branch"] = option("layer", "remove whole layers, or single residual branches")
    samples: int = option(256, "samples that measure the damage, at most")
    exclude: tuple[str, ...] = option((), "nodes, or torch modules, whose blocks stay")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (options, fewer blocks), NoEffectError (no block), DataError (no real samples).

        And AccuracyGateError where every block makes outputs that are not finite.
        """
        for key in ("blocks", "samples"):
            if getattr(self, key) < 1:
                raise UsageError(f"{key} {getattr(self, key)} is less than 1", where=key)
        assert context.data is not None
        context.data.require_real("pruning")
        found = Branches(model)
        blocks = self._free(model, found, context)
        chosen, ranking = self._choose(model, blocks, context)
        sample = next(iter(context.data.in_batches_of(1)))
        before = last = _weight(model, sample.feeds)
        removed = []
        for way in _without(model, chosen):
            left = _weight(model, sample.feeds)
            removed.append(way.to_json() | {"parameters": last[0] - left[0], "macs": last[1] - left[1]})
            last = left
        details: dict[str, Any] = {
            "blocks": removed,
            "unit": self.unit,
            "ranking": [way.to_json() for way in ranking],
            "removed_parameters": before[0] - last[0],
            "parameters": before[0],
            "macs_ratio": round(last[1] / before[1], 4) if before[1] else 1.0,
            "refused": [{"node": node, "reason": reason} for node, reason in found.refused],
        }
        return Effect(True, details)

    def _free(self, model: ir.Model, found: Branches, context: Context) -> list[Block]:
        """The blocks that may go."""
        kept = {node for nodes in named(model, self.exclude).values() for node in nodes}
        every = found.layers() if self.unit == "layer" else found.branches()
        free = []
        for block in every:
            if kept & {node.name for node in block.nodes}:
                context.note("excluded", block.module or block.source)
            else:
                free.append(block)
        if not free:
            reasons = "; ".join(dict.fromkeys(reason for _, reason in found.refused))
            raise NoEffectError(
                f"no block can be removed: {reasons or 'the model has no residual branches of its own'}",
                hint="where sizes are not known, run 'simplify' first",
            )
        return free

    def _choose(self, model: ir.Model, blocks: list[Block], context: Context) -> tuple[list[_Way], list[_Way]]:
        """(the ways that are taken, in the order in which they were chosen; the first ranking of all blocks)."""
        assert context.data is not None
        order = {value.name: i for i, node in enumerate(model.graph) for value in node.outputs}
        ways = [_Way(block, target) for block in blocks for target in block.targets]
        ways.sort(key=lambda way: order[way.target])
        switched = Switched(model, [(way.block.source, way.target) for way in ways], context.workdir)
        data = context.data.take(self.samples)
        taken: list[int] = []
        chosen: list[_Way] = []
        ranking: list[_Way] = []
        for turn in range(self.blocks):
            gone = {node for way in chosen for node in way.block.nodes}
            left = [i for i, way in enumerate(ways) if not gone.issuperset(way.block.heavy)]
            if not left:
                raise UsageError(f"only {turn} blocks can be removed one after the other", where="blocks")
            errors = switched.damage(data, [[*taken, i] for i in left], (turn, self.blocks))
            measured = [dataclasses.replace(ways[i], error=error) for i, error in zip(left, errors, strict=True)]
            best = min(range(len(left)), key=lambda k: (errors[k], -left[k]))  # of equal ones what removes more
            if not math.isfinite(errors[best]):
                raise AccuracyGateError(
                    "without any of the blocks an output is not finite", where="blocks", hint="nothing was written"
                )
            taken.append(left[best])
            chosen.append(measured[best])
            ranking = ranking or _ranked(measured)
        return chosen, ranking


def _ranked(ways: Sequence[_Way]) -> list[_Way]:
    """The better way of each block, the least harmful block first."""
    best: dict[int, _Way] = {}
    for way in sorted(ways, key=lambda way: way.error):
        best.setdefault(id(way.block), way)
    return list(best.values())


def _without(model: ir.Model, ways: Sequence[_Way]) -> Iterator[_Way]:
    """Take the blocks out of the model, one by one; each way is given when it is done."""
    stands_for: dict[str, str] = {}
    for way in ways:
        values = values_by_name(model)
        source = way.block.source
        while source in stands_for:
            source = stands_for[source]
        end, new = values[way.target], values[source]
        if end.is_graph_output():
            node = ir.Node("", "Identity", [new], name=f"{way.target}.without")
            node.outputs[0].type, node.outputs[0].shape = end.type, end.shape
            maker = end.producer()
            assert maker is not None
            model.graph.insert_after(maker, node)
            new = node.outputs[0]
        replace(end, new)
        stands_for[way.target] = source
        common.RemoveUnusedNodesPass()(model)
        drop_unused_initializers(model)
        yield way


def _weight(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(parameters, multiply-accumulates of one run on the feeds as far as they are known)."""
    parameters = sum(tensor.size for _, tensor in constants(model) if is_parameter(tensor))
    sized = model.clone()
    drop_inner_shapes(sized)
    for value in sized.graph.inputs:
        if value.name and value.name in feeds:
            value.shape = ir.Shape(feeds[value.name].shape)
    return parameters, sum(macs or 0 for _, macs in macs_by_node(sized))
