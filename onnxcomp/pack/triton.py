"""A pack as a model of NVIDIA's Triton Inference Server: `NAME/config.pbtxt`, `NAME/1/model.onnx`.

Fields are those of `inference.ModelConfig` (model_config.proto of Triton 2.x, unchanged from 2.0 on) and
of the parameters in the README of its ONNX Runtime backend. Instances of one server process open the
same file, and share its pages as worker processes do.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxcomp import documents
from onnxcomp.errors import DataError, UnsupportedError
from onnxcomp.model import InputSpec, Signature
from onnxcomp.settings.host import Host

_TYPES = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "string": "TYPE_STRING",
    **{f"{u}int{b}": f"TYPE_{u.upper()}INT{b}" for u in ("", "u") for b in (8, 16, 32, 64)},
}

#: where no plan says more: what Triton's own completion of a configuration takes
_MAX_BATCH = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the server is told.

    Attributes:
        workers: instances.
        threads: intra-op threads of each.
        batch: largest batch; None: no plan was given, and requests are not collected into batches.
        queue_delay_ms: how long a request may wait for others.
    """

    workers: int
    threads: int = 1
    batch: int | None = None
    queue_delay_ms: float = 0.0


def read_plan(path: str | os.PathLike[str] | None, workers: int) -> Plan:
    """The plan in a JSON file; keys it does not know are for others.

    Its object, or the one under `best`, may name `workers`, `threads`, `batch` and `queue_delay_ms`.
    Raises OutputError (unreadable), DataError (not numbers that make sense).
    """
    if path is None:
        return Plan(workers=workers)
    found: Any = documents.read(Path(path))
    found = found.get("best", found)
    if not isinstance(found, Mapping):
        raise DataError("'best' is not an object", where=path)

    def whole(key: str, default: int) -> int:
        value = found.get(key, default)
        if type(value) is not int or value < 1:
            raise DataError(f"'{key}' must be a whole number of at least 1", where=path)
        return value

    delay = found.get("queue_delay_ms", 0.0)
    if type(delay) not in (int, float) or not 0 <= delay < 1e6:
        raise DataError("'queue_delay_ms' must be a number of at least 0", where=path)
    return Plan(
        workers=whole("workers", workers),
        threads=whole("threads", 1),
        batch=whole("batch", 1),
        queue_delay_ms=float(delay),
    )


def config(name: str, signature: Signature, plan: Plan, host: Host) -> str:
    """The text of `config.pbtxt`. Raises UnsupportedError for what Triton cannot pass (maps, sequences)."""
    batched = _is_batched(signature)
    largest = (plan.batch or _MAX_BATCH) if batched else 0
    lines = [
        f"# Made for ONNX Runtime {host.onnxruntime} on this CPU: a server that brings another version opens the",
        "# model, if at all, without sharing. Then serve portable/ instead.",
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {largest}",
        *(line for spec in signature.inputs for line in _tensor("input", spec, batched=batched)),
        *(line for spec in signature.outputs for line in _tensor("output", spec, batched=batched)),
        f"instance_group [ {{ count: {plan.workers} kind: KIND_CPU }} ]",
    ]
    if batched and plan.batch is not None and plan.batch > 1:
        delay = round(plan.queue_delay_ms * 1000)
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: [ {plan.batch} ] max_queue_delay_microseconds: {delay} }}"
        )
    for key, value in (("intra_op_thread_count", plan.threads), ("inter_op_thread_count", 1)):
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


def _is_batched(signature: Signature) -> bool:
    """Whether the first axis of every input and output is the same symbolic one."""
    firsts = {spec.shape[0] if spec.shape else None for spec in (*signature.inputs, *signature.outputs)}
    return len(firsts) == 1 and isinstance(firsts.pop(), str)


def _tensor(kind: str, spec: InputSpec, *, batched: bool) -> Iterator[str]:
    if spec.dtype not in _TYPES or spec.shape is None:
        what = spec.dtype if spec.shape is not None else "tensor of unknown rank"
        raise UnsupportedError(f"Triton cannot pass a {what}", where=f"{kind} {spec.name}", hint="use --layout plain")
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape[1 if batched else 0 :]]
    # Triton knows no scalars: one element there, none of its axes here
    reshape = "" if dims else " reshape { shape: [ ] }"
    text = ", ".join(map(str, dims or [1]))
    yield f"{kind} [ {{ name: {_quoted(spec.name)} data_type: {_TYPES[spec.dtype]} dims: [ {text} ]{reshape} }} ]"


def _quoted(text: str) -> str:
    """A protobuf text string; JSON's escapes are valid there, once nothing beyond ASCII is escaped."""
    return json.dumps(text, ensure_ascii=False)
