"""The parts of an explanation, as records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing worth knowing about how the model runs.

    Attributes:
        severity: 'high' (may cost more than int8 gains), 'medium' (gain left lying), 'low' (to know).
        what, why, remedy: plain sentences.
    """

    severity: str
    what: str
    why: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class FloatNode:
    """A node of the model whose stored weight is used in float.

    Attributes:
        node: its name, or its operator's where it has none.
        module: path of the torch module that it came from, '' where unknown.
        stored: element type of its weight in the file: 'int8' where ORT did not fuse its Q/DQ.
        bytes: of its weights in the file.
    """

    node: str
    op: str
    module: str
    stored: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Unfused:
    """A QuantizeLinear or DequantizeLinear of activations that is left in the graph that runs.

    Attributes:
        kind: 'boundary' between float and 8-bit operators; 'round trip' for numbers that are
            rounded and computed with in float; 'lookup' for rows of a stored table.
        before, after: names of the nodes (or of the graph's inputs and outputs) around it.
    """

    node: str
    op: str
    kind: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """A stored tensor of two or more axes that is turned into float at each run.

    Attributes:
        tensor: its name.
        elements: how many numbers it has.
        after: names of the nodes that use them.
    """

    tensor: str
    elements: int
    after: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one sample.

    Attributes:
        integer, other: those in integer kernels, and those in float.
        assumed: sizes taken for symbolic axes.
    """

    integer: int
    other: int
    assumed: Mapping[str, int]

    @property
    def share(self) -> float:
        """Of those in integer kernels, in [0, 1]."""
        return self.integer / max(self.integer + self.other, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """What ORT makes of a model on this host; see the classes of the parts.

    Attributes:
        host: onnxruntime's version, machine and int8 features of the CPU.
        integer_kernels: how many of each type run.
        float_nodes: nodes with stored weights that are used in float.
        unfused: Q/DQ of activations that are left.
        dequantized: weights that are turned into float at each run.
        signed_activations: integer kernels whose activations are signed, which x86 is slow with.
        skip_layer_normalizations: normalizations that ORT fused with the addition before them.
        macs: None where sizes are unknown, or where kernels could not be matched to the model's nodes.
        findings: worst first.
        expectation: 'faster', 'about equal', 'slower' than the model in float, or 'unknown'.
        reason: of the expectation.
    """

    host: Mapping[str, str]
    integer_kernels: Mapping[str, int]
    float_nodes: tuple[FloatNode, ...]
    unfused: tuple[Unfused, ...]
    dequantized: tuple[Dequantized, ...]
    signed_activations: int
    skip_layer_normalizations: int
    macs: Macs | None
    findings: tuple[Finding, ...]
    expectation: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The attributes; `expectation` is `{speed, reason}`."""
        found = dataclasses.asdict(self)
        reason = found.pop("reason")
        if self.macs is not None:
            found["macs"]["share"] = self.macs.share
        for key in ("float_nodes", "unfused", "dequantized", "findings"):
            found[key] = [{k: list(v) if isinstance(v, tuple) else v for k, v in one.items()} for one in found[key]]
        return {**found, "expectation": {"speed": self.expectation, "reason": reason}}
