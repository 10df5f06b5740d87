"""What ORT really ran, from its profile: the nodes after fusion, each with its provider and its time.

The times are of the node alone: what the nodes inside an If or a Loop took is taken off their parent,
so that the parts sum to the whole. On a GPU a node's time is that of its launch on the host, unless
launches block (`placed`).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxcomp.errors import UnsupportedError
from onnxcomp.runtime import PROVIDERS

#: operators that ORT itself puts between a device and the host
MEMCPY: frozenset[str] = frozenset({"MemcpyFromHost", "MemcpyToHost"})

#: operators whose time in the profile holds that of the nodes of their subgraphs
_OUTER = frozenset({"If", "Loop", "Scan", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"})

_SUFFIX = "_kernel_time"


class Kernel(NamedTuple):
    """A kind of node: its operator as ORT runs it ('ai.onnx' and contributed ones alike), and the provider."""

    op: str
    provider: str


@dataclasses.dataclass(frozen=True)
class Profile:
    """Runs of one session.

    Attributes:
        nodes: distinct nodes of each kind that ran.
        ns: int64, one entry per run: time of all nodes of the kind, without nodes inside of them.
        run_ns: int64, one entry per run: the whole run, as the profiler saw it.
        events: nodes in one run, those of a Loop as often as they ran.
    """

    nodes: Mapping[Kernel, int]
    ns: Mapping[Kernel, np.ndarray]
    run_ns: np.ndarray
    events: int


def read(path: str | os.PathLike[str], *, skip: int) -> Profile:
    """The profile that ORT wrote, without its first runs, line by line: it may be large.

    Args:
        path: what `end_profiling` named.
        skip: runs at the start that do not count.

    Raises UnsupportedError where the file is none that this reads.
    """
    short = {full: name for name, full in PROVIDERS.items()}
    seen: dict[Kernel, set[tuple[str, str]]] = collections.defaultdict(set)
    runs: list[dict[Kernel, int]] = []
    run_us: list[int] = []
    one = _Run()
    count = events = 0
    for event in _events(Path(path)):
        name = event["name"]
        if event["cat"] == "Node" and name.endswith(_SUFFIX):
            about = event["args"]
            kernel = Kernel(about["op_name"], short.get(about["provider"], about["provider"]))
            one.add(kernel, event["ts"], event["dur"])
            if count >= skip:
                seen[kernel].add((name, str(about.get("node_index"))))
        elif event["cat"] == "Session" and name == "model_run":
            count += 1
            if count > skip:
                runs.append(one.us)
                run_us.append(event["dur"])
                events = max(events, one.events)
            one = _Run()
    found = dict.fromkeys(kernel for run in runs for kernel in run)
    return Profile(
        nodes={kernel: len(seen[kernel]) for kernel in found},
        ns={kernel: 1000 * np.array([run.get(kernel, 0) for run in runs], dtype=np.int64) for kernel in found},
        run_ns=1000 * np.array(run_us, dtype=np.int64),
        events=events,
    )


class _Run:
    """The nodes of one run, in the order in which they ended."""

    def __init__(self) -> None:
        self.us: dict[Kernel, int] = collections.defaultdict(int)
        self.events = 0
        self._ended: list[tuple[int, int]] = []  # start and duration, without those inside of another

    def add(self, kernel: Kernel, start: int, duration: int) -> None:
        inside = 0
        if kernel.op in _OUTER:
            while self._ended and self._ended[-1][0] >= start:
                inside += self._ended.pop()[1]
        self._ended.append((start, duration))
        self.events += 1
        self.us[kernel] += max(duration - inside, 0)


def _events(path: Path) -> Iterator[Mapping[str, Any]]:
    """ORT writes a JSON array with an event in each line."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                text = line.strip().removeprefix("[").removesuffix("]").strip().removesuffix(",")
                if text:
                    yield json.loads(text)
    except (ValueError, KeyError) as error:
        raise UnsupportedError(f"this onnxruntime's profile cannot be read: {error}", where=path.name) from error
