"""Give the optimized model that ORT has written its final place and names; same model, same bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx

from onnxcomp.errors import from_os_error
from onnxcomp.model import external, walk
from onnxcomp.model.fingerprint import sha256_of
from onnxcomp.model.load import read_proto

#: the end of the name that ORT gives a node it has put in; the number follows the order of a hash table
_COUNTED = re.compile(r"_token_\d+$")

#: such nodes, one of which gets its type as its name
_PUT_IN = ("ReorderInput", "ReorderOutput")


def settle(written: Path, target: Path) -> None:
    """Move a model and its one data file to `target` and `STEM.HASH.data` beside it.

    ORT 1.32 numbers the nodes that it puts in, and orders branches, by the order of a hash table. Such
    names are dropped (nothing refers to them) and nodes sorted, so that the same model gives the same
    file. Raises what `read_proto` raises.
    """
    proto = read_proto(written)
    try:
        names = external.locations(proto)
        for name in names:
            digest, _ = sha256_of(written.parent / name)
            final = f"{target.stem}.{digest[:16]}.data"
            os.rename(written.parent / name, target.parent / final)
            for tensor in external.tensors(proto):
                for entry in tensor.external_data:
                    if (entry.key, entry.value) == ("location", name):
                        entry.value = final
        for node in walk.nodes(proto):
            if _COUNTED.search(node.name) or node.op_type in _PUT_IN:
                node.ClearField("name")
        _sort(proto.graph)
        target.write_bytes(proto.SerializeToString(deterministic=True))
        os.unlink(written)
    except OSError as error:
        raise from_os_error(error, target) from error


def _sort(graph: onnx.GraphProto) -> None:
    """Order the nodes depth first from the graph's outputs, as ORT does at load; nodes of no use come last."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    order: dict[int, None] = {}
    wanted = [*(value.name for value in graph.output), *sorted(maker)]
    # a node is entered twice: first its inputs are put on top of it, then it is taken
    stack = [maker[name] for name in reversed(wanted) if name in maker]
    entered: set[int] = set()
    while stack:
        index = stack[-1]
        if index in order or index in entered:
            order.setdefault(stack.pop())
            continue
        entered.add(index)
        stack += [
            maker[name] for name in reversed(_needs(graph.node[index])) if name in maker and maker[name] not in order
        ]
    nodes = [graph.node[i] for i in order]
    rest = [node for i, node in enumerate(graph.node) if i not in order]
    copies = [type(node).FromString(node.SerializeToString()) for node in (*nodes, *rest)]
    del graph.node[:]
    graph.node.extend(copies)


def _needs(node: onnx.NodeProto) -> list[str]:
    """What a node reads, also inside its bodies; names that a body makes itself are made nowhere else."""
    bodies = [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]
    inner = [name for body in bodies for each in body.node for name in _needs(each)]
    return [*node.input, *inner, *(value.name for body in bodies for value in body.output)]


def packed_bytes(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Bytes of weights in data files, and of the copies of them that ORT has packed for its kernels."""
    plain = packed = 0
    for tensor in external.tensors(read_proto(Path(path))):
        for entry in tensor.external_data:
            if entry.key == "length":
                plain += int(entry.value)
            elif entry.key.startswith("prepacked"):
                # KEY|OFFSET;LENGTH;CHECK|OFFSET;LENGTH;CHECK ...
                packed += sum(int(size) for size in re.findall(r"\|\d+;(\d+);", entry.value))
    return plain, packed
