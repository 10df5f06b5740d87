"""Which provider takes which share of a model's nodes.

ORT gives the nodes that a provider cannot take to the CPU without a word; here it shows. Counted
are the model's nodes as they are assigned, before ORT fuses them.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from typing import Any

from onnxcomp.runtime import ASSIGNMENT_KEY, PROVIDERS, Session, SessionSettings, open_session


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the nodes of a model run.

    Attributes:
        nodes: node count by provider, short names where there is one.
        ops_on_cpu: operator counts of what fell back to the CPU; empty where the CPU was asked for.
        options: the provider's options in effect, ORT's defaults among them (`use_tf32`, `cudnn_conv_algo_search`).
    """

    nodes: dict[str, int]
    ops_on_cpu: dict[str, int]
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`{provider: {nodes, share}}` under `providers`, `ops_on_cpu`, and `options`; shares sum to 1."""
        total = sum(self.nodes.values())
        return {
            "providers": {name: {"nodes": count, "share": count / total} for name, count in self.nodes.items()},
            "nodes": total,
            "ops_on_cpu": self.ops_on_cpu,
            "options": self.options,
        }


def placement(
    path: str | os.PathLike[str], *, provider: str = "cpu", settings: SessionSettings | None = None
) -> Placement | None:
    """Open the model on this provider and count its nodes by where they land.

    None where this onnxruntime cannot tell. Raises what `open_session` raises.
    """
    settings = settings or SessionSettings()
    settings = dataclasses.replace(settings, config={**settings.config, ASSIGNMENT_KEY: "1"})
    return assigned(open_session(path, provider=provider, settings=settings))


def assigned(session: Session) -> Placement | None:
    """The placement of a session that was opened with `ASSIGNMENT_KEY` set, or None."""
    read = getattr(session.ort, "get_provider_graph_assignment_info", None)
    if read is None:
        return None
    short = {full: name for name, full in PROVIDERS.items()}
    nodes: collections.Counter[str] = collections.Counter()
    on_cpu: collections.Counter[str] = collections.Counter()
    for subgraph in read():
        name = short.get(subgraph.ep_name, subgraph.ep_name)
        for node in subgraph.get_nodes():
            nodes[name] += 1
            if name == "cpu" and session.provider != "cpu":
                on_cpu[f"{node.domain or 'ai.onnx'}::{node.op_type}"] += 1
    options = session.ort.get_provider_options().get(PROVIDERS[session.provider], {})
    return Placement(dict(nodes.most_common()), dict(on_cpu.most_common()), dict(options))
