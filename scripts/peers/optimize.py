"""Nodes and bytes after `onnxcomp optimize`, beside onnxslim and onnxsim, for every model of a folder.

Every tool runs as a process with a time limit, from file to file, at its defaults. Nodes are those of the
graph, its subgraphs and functions, but for Constant: stored numbers are no work, whoever stores them how.
Outputs are compared with the input model's in ONNX Runtime, on seeded noise. A model that onnxcomp refuses
because there is nothing to gain (exit 5) stands as it was; seconds and memory include starting Python.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import DataError, GateError, OnnxcompError, UsageError
from onnxcomp.evaluate import compare_sessions
from peers import environments, process

TOOLS = ("onnxslim", "onnxsim")
PEER = environments.Peer("simplifiers", ("onnxslim==0.1.98", "onnxsim==0.8.1", "onnx", "onnxruntime"))

#: largest difference, relative to the largest output; float16 models round coarser
ALLOWED = {"float16": 1e-2}
ALLOWED_DEFAULT = 1e-5


@dataclasses.dataclass(frozen=True)
class Result:
    """What one tool made of one model.

    Attributes:
        verdict: 'equal', 'unchanged', 'not checked', or what is wrong.
        error: largest relative difference of the outputs; None where not compared.
        unused: initializers that nothing uses.
    """

    tool: str
    verdict: str
    nodes: int | None = None
    bytes: int | None = None
    error: float | None = None
    unused: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None

    @property
    def good(self) -> bool:
        """Whether the result may be compared with others."""
        return self.verdict in ("equal", "unchanged", "not checked")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this comparison."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, default=environments.CACHE / "optimize.json")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one tool on one model")


def run(options: argparse.Namespace) -> int:
    """Print the table; 1 where onnxcomp has more nodes than the best peer, more bytes than the input, or is wrong."""
    environments.make(PEER)
    found: dict[str, list[Result]] = {}
    for path in sorted(options.folder.glob("*.onnx")):
        print(f"{path.stem} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found[path.stem] = list(results(path, Path(folder), options.timeout))
    show(found)
    worse = {name: why for name, tools in found.items() if (why := shortfall(tools))}
    for name, why in worse.items():
        print(f"{name}: {why}")
    document = {name: [dataclasses.asdict(tool) for tool in tools] for name, tools in found.items()}
    versions = environments.versions(PEER)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"versions": versions, "models": document, "worse": worse}, indent=2) + "\n")
    return 1 if worse else 0


def results(path: Path, folder: Path, timeout: float) -> Iterator[Result]:
    """The input, onnxcomp, and the peers."""
    before = onnx.load(path)
    yield Result("input", "unchanged", count_nodes(before), path.stat().st_size, unused=count_unused(before))
    ours = [sys.executable, "-m", "onnxcomp", "optimize", path, "--quiet", "-o"]
    commands: dict[str, list[Any]] = {"onnxcomp": ours, **{tool: [PEER.folder / "bin" / tool, path] for tool in TOOLS}}
    for tool, command in commands.items():
        output = folder / f"{tool}.onnx"
        ran = process.run([*command, output], timeout)
        nothing = "changed nothing" in ran.text or "larger" in ran.text
        if tool == "onnxcomp" and ran.code == GateError.code and nothing:
            verdict, error, made = "unchanged", None, path
        elif ran.code or not output.exists():
            yield Result(tool, f"failed: {ran.last_line[:80]}", seconds=ran.seconds, peak_bytes=ran.peak_bytes)
            continue
        else:
            (verdict, error), made = judge(path, output), output
        model = onnx.load(made)
        figures = count_nodes(model), made.stat().st_size, error, count_unused(model)
        yield Result(tool, verdict, *figures, ran.seconds, ran.peak_bytes)


def judge(reference: Path, candidate: Path) -> tuple[str, float | None]:
    """(verdict, largest relative difference)."""
    try:
        first = runtime.open_session(reference)
    except OnnxcompError:
        return "not checked", None
    try:
        second = runtime.open_session(candidate)
    except OnnxcompError as error:
        return f"wrong: does not load: {error.message[:80]}", None
    inputs = first.signature.inputs
    for size in (2, 16, 128, 576):
        sizes = {d: size for spec in inputs for d in (spec.shape or ())[1:] if isinstance(d, str)}
        try:
            first.run(next(iter(Batches("random:3", inputs, batch_size=2, sizes=sizes))).feeds)
        except (DataError, UsageError):
            continue
        try:
            found = compare_sessions(first, second, Batches("random:3", inputs, batch_size=2, sizes=sizes))
        except DataError as error:
            return f"wrong: {error.message[:80]}", None
        worst = max((output.max_rel for output in found.outputs.values()), default=0.0)
        dtypes = {spec.dtype for spec in (*inputs, *first.signature.outputs)}
        allowed = max((ALLOWED.get(dtype, ALLOWED_DEFAULT) for dtype in dtypes), default=ALLOWED_DEFAULT)
        return ("equal" if worst <= allowed else f"wrong: differs by {worst:.1g}"), worst
    return "not checked", None


def count_nodes(model: onnx.ModelProto) -> int:
    """Nodes but for Constant, of all graphs and functions."""
    return sum(node.op_type != "Constant" for node in nodes(model))


def count_unused(model: onnx.ModelProto) -> int:
    """Initializers of the main graph that no node and no output of any graph names."""
    used = {output.name for output in model.graph.output}
    for node in nodes(model):
        used.update(node.input)
        used.update(output.name for attribute in node.attribute for output in attribute.g.output)
    return sum(tensor.name not in used for tensor in model.graph.initializer)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node."""
    stack = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            stack += attribute.g.node
            stack += [inner for graph in attribute.graphs for inner in graph.node]


def shortfall(tools: list[Result]) -> str | None:
    """In what onnxcomp is worse than the best peer, or not as promised."""
    before, ours, *peers = tools
    if not ours.good:
        return ours.verdict if any(peer.verdict == "equal" for peer in peers) else None
    assert ours.nodes is not None
    assert ours.bytes is not None
    assert before.bytes is not None
    if ours.bytes > before.bytes:
        return f"{ours.bytes} bytes, the input has {before.bytes}"
    if ours.unused and ours.verdict != "unchanged":
        return f"{ours.unused} unused initializers"
    best = min((peer.nodes for peer in peers if peer.good and peer.nodes is not None), default=ours.nodes)
    return f"{ours.nodes} nodes, the best peer has {best}" if ours.nodes > best else None


def show(found: dict[str, list[Result]]) -> None:
    """One row per model: nodes, bytes, what is wrong; seconds and MiB."""
    table = Table(title="nodes / bytes after each tool (seconds, peak MiB)")
    table.add_column("model", no_wrap=True)
    for tool in ("input", "onnxcomp", *TOOLS):
        table.add_column(tool)
    for name, tools in found.items():
        table.add_row(name, *map(cell, tools))
    Console(width=170).print(table)


def cell(result: Result) -> str:
    """'369 / 3660092 (1.2 s, 210 MiB)'."""
    figures = f"{result.nodes} / {result.bytes}" if result.nodes is not None else ""
    note = "" if result.verdict == "equal" or result.tool == "input" else f" {result.verdict}"
    cost = f" ({result.seconds:.1f}, {(result.peak_bytes or 0) >> 20})" if result.seconds is not None else ""
    return f"{figures}{note}{cost}".strip()
