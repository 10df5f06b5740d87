"""Which of ORT's graph optimizers really change a model: only those are worth switching off one by one.

ORT's log names every transformer that changed the graph; the rewrite rules inside of its rule-based
transformers it does not name. So each suspect is left out once, and counts where the graph that ORT then
runs is another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.errors import OnnxcompError
from onnxcomp.settings import OPTIMIZERS, SessionSettings, session_options
from onnxcomp.settings.known import RULES

_RULE_BASED = re.compile(r"Level\d_RuleBasedTransformer")


def effective(path: Path, settings: SessionSettings) -> list[str]:
    """Optimizers without which ORT runs another graph on the CPU, one name for each such graph.

    Args:
        path: a model; one above 1 GiB is not written so often, and what the log names is taken as it is.
        settings: whose optimization level counts.

    Without one optimizer another may do its work: then the graph is the same, and the name is not here.
    """
    named = _logged(path, settings)
    suspects = [name for name in named if not _RULE_BASED.fullmatch(name)]
    if runtime.is_large(path):
        return suspects
    if len(suspects) < len(named):
        suspects += sorted(RULES)
    seen = {_graph(path, settings)}
    found = []
    for name in suspects:
        without = dataclasses.replace(settings, disabled_optimizers=(*settings.disabled_optimizers, name))
        try:
            graph = _graph(path, without)
        except OnnxcompError:
            continue  # ORT needs it: without, some node has no kernel
        if graph not in seen:
            seen.add(graph)
            found.append(name)
    return found


def _logged(path: Path, settings: SessionSettings) -> list[str]:
    """The transformers that say that they changed the graph; known names only."""
    options = session_options(settings)
    options.log_severity_level = 1
    with tempfile.TemporaryFile() as log:
        # ORT writes to the file behind stderr, not to Python's
        before = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise runtime.translate(error, path, running=False) from error
        finally:
            os.dup2(before, 2)
            os.close(before)
        log.seek(0)
        text = log.read().decode(errors="replace")
    changed = re.findall(r"GraphTransformer (\S+) modified: 1", text)
    return [name for name in dict.fromkeys(changed) if name in OPTIMIZERS]


def _graph(path: Path, settings: SessionSettings) -> str:
    """A digest of the graph that ORT runs: operators with their attributes, and what is stored, without values."""
    with tempfile.TemporaryDirectory() as folder:
        proto = models.read_proto(runtime.optimized(path, Path(folder), settings=settings))
    digest = hashlib.sha256()
    for node in proto.graph.node:
        digest.update(f"{node.domain} {node.op_type} {len(node.input)} {len(node.output)};".encode())
        for attribute in _sorted(node.attribute):
            digest.update(attribute.SerializeToString(deterministic=True))
    stored = sorted(f"{tensor.data_type} {tuple(tensor.dims)}" for tensor in proto.graph.initializer)
    digest.update("\n".join(stored).encode())
    return digest.hexdigest()


def _sorted(attributes: Sequence[Any]) -> list[Any]:
    return sorted(attributes, key=lambda attribute: attribute.name)
