"""Residual branches of a graph, and the layers that they make up: what can go so that what enters it stays."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.inspect import MODULE, WEIGHT_INPUTS, all_nodes, stored_origin
from onnxcomp.passes.fusions.sizes import Sizes
from onnxcomp.passes.prune.residual.meeting import bodies, joins, needed, users

_ALONE = "the sum of two branches of which none is the value that both start from"
_SIZE = "its size is not known to be that of the value that would take its place"
_NESTED = "sums in subgraphs and local functions are not looked at"


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive residual branches that can go together.

    Attributes:
        source: name of the value that takes the block's place.
        targets: names of the values that it can take the place of: the sum, and what normalizes it.
        nodes: all that nothing would use any more, were the last target replaced; of the analysed copy.
        heavy: those of them that multiply with weights, in the order of the graph.
    """

    source: str
    targets: tuple[str, ...]
    nodes: frozenset[ir.Node]
    heavy: tuple[ir.Node, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """Operators and sizes of weights: equal for branches that do the same in other layers."""
        return tuple((node.op_type, tuple(_weight_sizes(node))) for node in self.heavy)

    @property
    def module(self) -> str:
        """Path of the torch module that holds all of it, '' where the export recorded none."""
        paths = [node.metadata_props.get(MODULE, "").split(".") for node in self.heavy]
        same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        return ".".join(parts[0] for parts in same)

    def followed_by(self, other: Block) -> Block:
        """Both as one."""
        nodes = self.nodes | other.nodes
        return Block(self.source, other.targets, nodes, self.heavy + other.heavy)


class Branches:
    """The residual branches of the main graph: sums `Add(x, f(x))` of the same size as x.

    Args:
        model: stays as it is.

    Attributes:
        refused: (node, reason) of sums that are none.
    """

    def __init__(self, model: ir.Model) -> None:
        copy = model.clone()
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
        self._sizes = Sizes(copy)
        self._graph = copy.graph
        self._order = {node: i for i, node in enumerate(self._graph)}
        self._users = users(self._graph)
        self._joins = joins(self._graph, self._users)
        self.refused: list[tuple[str, str]] = []
        self._found = [block for node in self._graph if node.op_type == "Add" for block in self._at(node)]
        nested = [n for n in all_nodes(copy) if n.op_type == "Add" and n.graph is not self._graph]
        if any(all(stored_origin(value) is None for value in node.inputs) for node in nested):
            self.refused.append(("", _NESTED))

    def branches(self) -> list[Block]:
        """All, each as a block of its own, in the order of the graph."""
        return self._found

    def layers(self) -> list[Block]:
        """The shortest runs of branches that repeat: attention and feed-forward of a transformer.

        A branch of a run that does not repeat is a layer of its own.
        """
        found = []
        for chain in self._chains():
            length = _period([block.kind for block in chain])
            for start in range(0, len(chain) - length + 1, length):
                whole = chain[start]
                for block in chain[start + 1 : start + length]:
                    whole = whole.followed_by(block)
                found.append(whole)
        return found

    def _at(self, node: ir.Node) -> Iterator[Block]:
        """The branch that ends in a sum."""
        if node.domain or len(node.inputs) != 2 or any(stored_origin(value) is not None for value in node.inputs):
            return
        first, second = node.inputs
        assert first is not None
        assert second is not None
        end, name = node.outputs[0], node.name or node.op_type
        started = [x for x, other in ((first, second), (second, first)) if self._makes(x, other)]
        if not started:
            both = [self._heavy(self._gone(end, x)) for x in (first, second)]
            if all(both) and self._sizes.of(first) == self._sizes.of(second):
                self.refused.append((name, _ALONE))
            return
        source = started[0]
        heavy = self._heavy(self._gone(end, source))
        if not heavy:
            return
        if not self._alike(source, end):
            if not self._differ(source, end):
                self.refused.append((name, _SIZE))
            return
        last = self._normalized(end, source)
        targets = (end,) if last is end else (end, last)
        yield Block(_name(source), tuple(map(_name, targets)), frozenset(self._gone(last, source)), tuple(heavy))

    def _normalized(self, end: ir.Value, source: ir.Value) -> ir.Value:
        """The last value of the same size that all users of the sum come through, before the next weights."""
        last = end
        node = end.producer()
        while node is not None and (node := self._joins.get(node)) is not None:
            made = [value for value in node.outputs if self._users.get(value) or value.is_graph_output()]
            if len(made) != 1 or not self._only_from(end, self._gone(made[0], end)):
                break
            if self._alike(source, made[0]):
                last = made[0]
        return last

    def _only_from(self, end: ir.Value, nodes: set[ir.Node]) -> bool:
        """Whether nodes read nothing but `end`, constants and each other, and multiply with no weights."""
        read = {value for node in nodes for value in needed(node)}
        inner = {value for node in nodes for value in node.outputs}
        fed = [value for value in read - inner - {end} if stored_origin(value) is None]
        return not fed and not self._heavy(nodes)

    def _chains(self) -> Iterator[list[Block]]:
        """Branches of which each begins where the one before it ends; of several, the smallest follows."""
        begins: dict[str, list[Block]] = {}
        for block in self._found:
            begins.setdefault(block.source, []).append(block)
        following = {
            id(block): min(after, key=lambda b: len(b.nodes), default=None)
            for block in self._found
            for after in [[b for target in block.targets for b in begins.get(target, ())]]
        }
        later = {id(after) for after in following.values()}
        for block in self._found:
            if id(block) in later:
                continue
            chain, after = [block], following[id(block)]
            while after is not None:
                chain.append(after)
                after = following[id(after)]
            yield chain

    def _makes(self, value: ir.Value, other: ir.Value) -> bool:
        """Whether `other` is computed from `value`."""
        start = value.producer()
        low = -1 if start is None else self._order[start]
        seen: set[ir.Node] = set()
        stack = [other.producer()]
        while stack:
            node = stack.pop()
            if node is None or node in seen or self._order.get(node, -1) <= low:
                continue
            seen.add(node)
            read = list(needed(node))
            if value in read:
                return True
            stack += [v.producer() for v in read]
        return False

    def _gone(self, end: ir.Value, source: ir.Value) -> set[ir.Node]:
        """What nothing uses any more where `source` takes the place of `end`."""
        gone: set[ir.Node] = set()
        stack = [end.producer()]
        while stack:
            node = stack.pop()
            if node is None or node in gone or node not in self._order:
                continue
            if all(value is end or (value is not source and self._unused(value, gone)) for value in node.outputs):
                gone.add(node)
                stack += [value.producer() for value in needed(node)]
        return gone

    def _unused(self, value: ir.Value, gone: set[ir.Node]) -> bool:
        return not value.is_graph_output() and all(user in gone for user in self._users.get(value, ()))

    def _heavy(self, nodes: set[ir.Node]) -> list[ir.Node]:
        return sorted(filter(_is_heavy, nodes), key=self._order.__getitem__)

    def _alike(self, first: ir.Value, second: ir.Value) -> bool:
        """Whether both have the same size in every run, and the same type."""
        known = self._sizes.of(first)
        return known is not None and known == self._sizes.of(second) and first.dtype == second.dtype

    def _differ(self, first: ir.Value, second: ir.Value) -> bool:
        """Whether they have different sizes in every run: a mask, not a branch."""
        one, other = self._sizes.of(first), self._sizes.of(second)
        if one is None or other is None:
            return False
        numbers = ((a.number, b.number) for a, b in zip(one, other, strict=False))
        return len(one) != len(other) or any(a != b and a is not None and b is not None for a, b in numbers)


def _period(kinds: Sequence[object]) -> int:
    """The shortest length after which all repeats; 1 where nothing does."""
    for length in range(1, len(kinds) // 2 + 1):
        if all(a == b for a, b in zip(kinds, kinds[length:], strict=False)):
            return length
    return 1


def _is_heavy(node: ir.Node) -> bool:
    """Whether it multiplies with stored weights; bodies of If and Loop may."""
    return bool(_weight_sizes(node)) or any(True for _ in bodies(node))


def _weight_sizes(node: ir.Node) -> list[tuple[int, ...]]:
    if "Gather" in node.op_type:
        return []
    slots = WEIGHT_INPUTS.get((node.domain, node.op_type), ())
    origins = [stored_origin(node.inputs[i]) for i in slots if i < len(node.inputs)]
    return [tuple(origin[1].shape.numpy()) for origin in origins if origin is not None]


def _name(value: ir.Value) -> str:
    assert value.name
    return value.name
