"""What is worth knowing about how a model runs: what, why, and what to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from onnxcomp import runtime
from onnxcomp.explain.costs import Costs
from onnxcomp.explain.explanation import Finding
from onnxcomp.explain.running import Running, accuracy_level, name_of

_RANKS = ("high", "medium", "low")

_SHOWN = 4

#: share of a run's estimated time that makes a cost worth removing, and one that eats what int8 gains
_MEDIUM, _HIGH = 0.05, 0.2


def findings(running: Running, costs: Costs | None) -> tuple[Finding, ...]:
    """All findings, worst first."""
    found = itertools.chain(
        _conv_integer(running),
        _blocks(running),
        _signed(running),
        _dequantized(running, costs),
        _round_trips(running, costs),
        _boundaries(running, costs),
        _in_float(running, costs),
        _fused_norms(running),
        _saturating(running),
    )
    return tuple(sorted(found, key=lambda finding: _RANKS.index(finding.severity)))


def _conv_integer(running: Running) -> Iterator[Finding]:
    nodes = [name_of(node) for node in running.kernels if node.op_type == "ConvInteger"]
    if nodes:
        yield Finding(
            "high",
            f"{_count(nodes, 'convolution')} run as ConvInteger: {_some(nodes)}",
            "ORT's ConvInteger is several times slower than its convolution in float, "
            "and the range of its input is taken at each run",
            "quantize statically, or leave convolutions out of dynamic quantization",
        )


def _blocks(running: Running) -> Iterator[Finding]:
    nodes = [
        name_of(node)
        for node in running.kernels
        if node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == 8 and accuracy_level(node) != 4
    ]
    if nodes:
        yield Finding(
            "high",
            f"{_count(nodes, 'MatMulNBits')} of 8 bits without accuracy_level 4: {_some(nodes)}",
            "ORT turns their weights into float block by block: 3 to 16 times as slow as float",
            "set accuracy_level 4, or use 4 bits",
        )


def _signed(running: Running) -> Iterator[Finding]:
    nodes = [name_of(node) for node in running.signed]
    if nodes and "avx2" in runtime.cpu_features():
        yield Finding(
            "high",
            f"{_count(nodes, 'integer kernel')} have signed activations: {_some(nodes)}",
            "x86 multiplies unsigned by signed numbers; for two signed ones ORT's kernels take several times as long",
            "quantize with uint8 activations and int8 weights",
        )


def _dequantized(running: Running, costs: Costs | None) -> Iterator[Finding]:
    if not running.dequantized:
        return
    severity = _severity(None if costs is None else costs.dequantized / costs.total)
    by_use: dict[bool, list[str]] = {}
    for node, value, _ in running.dequantizers:
        lookup = any("Gather" in use.node.op_type for use in node.outputs[0].uses())
        by_use.setdefault(lookup, []).append(value.name or "")
    for lookup, tensors in sorted(by_use.items()):
        yield Finding(
            severity,
            f"{_count(tensors, 'stored tensor')} turned into float at each run: {_some(tensors)}",
            "a few rows are looked up, and the whole table is dequantized for them"
            if lookup
            else "ORT has no integer kernel for how they are used, and does not keep the result",
            "place the DequantizeLinear behind the Gather, or leave the table in float"
            if lookup
            else "quantize their inputs too, or leave these weights in float",
        )


def _round_trips(running: Running, costs: Costs | None) -> Iterator[Finding]:
    nodes = [one.node for one in running.unfused if one.kind == "round trip"]
    if nodes:
        yield Finding(
            _severity(None if costs is None else costs.round_trips / costs.total),
            f"{_count(nodes, 'Q/DQ node')} only round numbers that are used in float: {_some(nodes)}",
            "ORT found no integer kernel for the operator between them: not all of its inputs, its weight and "
            "its output are quantized, or their types have none",
            "leave these operators out of quantization, or quantize all of their inputs and the output",
        )


def _boundaries(running: Running, costs: Costs | None) -> Iterator[Finding]:
    nodes = [one.node for one in running.unfused if one.kind == "boundary"]
    share = None if costs is None else costs.boundaries / costs.total
    severity = _severity(share)
    if not nodes or severity == "low":
        return
    types = [f"{name} {count}" for name, count in running.between.items()]
    yield Finding(
        severity,
        f"{_count(nodes, 'Q/DQ node')} stand between float and 8-bit operators; "
        f"the float operators beside them: {_some(types)}",
        "each reads and writes a whole activation" + ("" if share is None else f"; about {share:.0%} of the time"),
        "fold BatchNormalization into the convolutions before quantizing (`onnxcomp optimize`)"
        if "BatchNormalization" in running.between
        else "quantize these operators too where accuracy allows it",
    )


def _in_float(running: Running, costs: Costs | None) -> Iterator[Finding]:
    share = None if costs is None else costs.kernels.get("", 0.0) / costs.total
    floats = sorted((node for node in running.float_nodes if "Gather" not in node.op), key=lambda node: -node.bytes)
    if not running.kernels or not floats or (share is not None and share < _MEDIUM):
        return
    nodes = [node.node for node in floats]
    yield Finding(
        "medium",
        f"{_count(nodes, 'node')} with stored weights multiply in float: {_some(nodes)}",
        "they gain nothing from int8"
        if costs is None
        else f"{1 - costs.macs.share:.0%} of the multiplications are in float, about {share:.0%} of the time",
        "quantize them too where accuracy allows it",
    )


def _fused_norms(running: Running) -> Iterator[Finding]:
    count = running.skip_layer_normalizations
    if count:
        yield Finding(
            "low",
            f"{count} LayerNormalization fused with the addition before them (SkipLayerNormalization)",
            "on some CPUs, servers with AVX-512 among them, the fused kernel is slower than the two nodes",
            "drop the shapes of inner values, as `onnxcomp optimize` does: the fusion then does not happen; measure",
        )


def _saturating(running: Running) -> Iterator[Finding]:
    if running.kernels and runtime.saturates_int8():
        yield Finding(
            "medium",
            "this CPU has no VNNI",
            "its int8 kernels are slower, and sums of uint8 by int8 products can saturate: outputs differ by CPU",
            "quantize weights to 7 bits (reduce_range), and judge accuracy on the CPU that serves",
        )


def _severity(share: float | None) -> str:
    if share is None:
        return "medium"
    return "high" if share >= _HIGH else "medium" if share >= _MEDIUM else "low"


def _count(nodes: list[str], noun: str) -> str:
    plural = "" if len(nodes) == 1 or noun.endswith("s") else "s"
    return f"{len(nodes)} {noun}{plural}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
