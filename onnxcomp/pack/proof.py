"""What is proven of a pack before it is published: the same outputs, and weights that are really shared.

ONNX Runtime falls back without a word where it cannot use saved weights, so only real processes tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from onnxcomp import model as models
from onnxcomp import replicas, worker
from onnxcomp.errors import AccuracyGateError, GateError, OnnxcompError, UnsupportedError
from onnxcomp.replicas import Replicas
from onnxcomp.settings import SessionSettings

#: share of what workers can have in common that they must have in common
_ENOUGH = 0.5

#: share of the packed weights that a worker may hold of its own: it packs them to compare, one after the other
_PACKED_AGAIN = 0.5

#: bytes; a process of Python and ONNX Runtime varies by so much from start to start
_NOISE = 1 << 20

#: a plain worker holds its weights, packed copies of them, and for a moment the file
_COPIES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharing:
    """Memory of real worker processes after the model was opened, on the pack and on the plain model.

    Attributes:
        workers: how many at a time.
        plain_pss_bytes, pack_pss_bytes: of all of them together, with interpreters and libraries.
        base_pss_bytes: of all of them before a model was opened.
        plain_private_bytes, pack_private_bytes: that opening the model adds to each, in no file.
        least_private_bytes: the same where no weight is packed and all are mapped, so that nothing can
            be less; None where the model does not run so.
        packed_bytes: of weights that the pack holds packed.
    """

    workers: int
    plain_pss_bytes: int
    pack_pss_bytes: int
    base_pss_bytes: int
    plain_private_bytes: int
    pack_private_bytes: int
    least_private_bytes: int | None
    packed_bytes: int

    @property
    def shared(self) -> float | None:
        """Share of the shareable bytes per worker that are shared; None where there are next to none."""
        shareable = self.plain_private_bytes - (self.least_private_bytes or 0)
        if shareable < _NOISE // 2:
            return None
        return (self.plain_private_bytes - self.pack_private_bytes) / shareable

    @property
    def effective(self) -> bool:
        """Whether workers hold in common most of what they can, the packed weights among it."""
        if self.shared is None or self.shared < _ENOUGH:
            return False
        if not self.packed_bytes or self.least_private_bytes is None:
            return True
        return self.pack_private_bytes - self.least_private_bytes < max(_PACKED_AGAIN * self.packed_bytes, _NOISE)

    @property
    def larger(self) -> bool:
        """Whether the workers together need more memory than on the plain model."""
        return self.pack_pss_bytes > self.plain_pss_bytes + self.workers * _NOISE

    def to_json(self) -> dict[str, Any]:
        """The fields, and `shared`."""
        return {**dataclasses.asdict(self), "shared": self.shared}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found.

    Attributes:
        identical: whether every output is the plain model's, bit for bit; None: the model gives other
            outputs each time it runs.
        runs: on how many feeds.
        sharing: see `Sharing`.
        warnings: what the user should know.
    """

    identical: bool | None
    runs: int
    sharing: Sharing
    warnings: tuple[str, ...]

    def to_json(self, source: str) -> dict[str, Any]:
        """`{verification: {outputs, sharing}, sharing_effective, warnings}`; `source` names the feeds."""
        return {
            "verification": {
                "outputs": {"identical": self.identical, "runs": self.runs, "data": source},
                "sharing": self.sharing.to_json(),
            },
            "sharing_effective": self.sharing.effective,
            "warnings": list(self.warnings),
        }


def prove(
    plain: Path,
    packed: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    workers: int,
    settings: SessionSettings | None = None,
) -> Proof:
    """Run workers on the plain model, then on the packed one, with the same settings and feeds, one thread each.

    Raises AccuracyGateError (an output differs in a bit), GateError (more memory than before),
    UnsupportedError (the system does not tell memory); what `replicas.run` raises.
    """
    able = _affordable(workers, models.total_bytes(plain))
    warnings = [] if able == workers else [f"sharing was measured with {able} workers: memory allows no more"]
    alone = dataclasses.replace(settings or SessionSettings(), threads=1)
    worker.report("measuring plain workers")
    before = replicas.run(plain, able, feeds=feeds, settings=alone)
    worker.report("measuring workers on the pack")
    after = replicas.run(packed, able, feeds=feeds, settings=alone, trim=True)
    worker.report("measuring what can be shared")
    identical = _identical(before, after)
    if identical is None:
        warnings.append("the model's outputs differ from run to run: the pack's were not compared")
    sharing = Sharing(
        workers=able,
        plain_pss_bytes=_pss(before, "loaded"),
        pack_pss_bytes=_pss(after, "loaded"),
        base_pss_bytes=_pss(after, "imported"),
        plain_private_bytes=_private(before),
        pack_private_bytes=_private(after),
        least_private_bytes=_least(packed, feeds[:1], alone),
        packed_bytes=models.packed_bytes(packed)[1],
    )
    if sharing.larger:
        raise GateError(
            f"{able} workers need {sharing.pack_pss_bytes} bytes on the pack, {sharing.plain_pss_bytes} on the model",
            where=packed.name,
            hint="nothing was written; serve the model as it is",
        )
    if not sharing.effective:
        warnings.append(_why_not(sharing))
    return Proof(identical=identical, runs=len(feeds), sharing=sharing, warnings=tuple(warnings))


def _identical(before: Replicas, after: Replicas) -> bool | None:
    """Raises AccuracyGateError where outputs that are always the same are not the same on the pack."""
    if before.outputs == after.outputs and before.outputs_equal and after.outputs_equal:
        return True
    if not before.outputs_equal:
        return None
    raise AccuracyGateError(
        "the pack's outputs are not bit-identical to the model's",
        where=Path(after.model).name,
        hint="nothing was written; please report the model",
    )


def _least(packed: Path, feeds: Sequence[Mapping[str, np.ndarray]], settings: SessionSettings) -> int | None:
    mapped = dataclasses.replace(settings, config={**settings.config, "session.disable_prepacking": "1"})
    try:
        return _private(replicas.run(packed, 1, feeds=feeds, settings=mapped, trim=True))
    except OnnxcompError:
        return None  # a kernel that cannot do without its packed weights


def _affordable(workers: int, size: int) -> int:
    """How many plain workers fit into half of the free memory, two at least."""
    fitting = psutil.virtual_memory().available // 2 // max(size * _COPIES, 1)
    return max(min(workers, fitting), 2)


def _pss(found: Replicas, point: str) -> int:
    return _known(found.memory(point).pss_bytes)


def _private(found: Replicas) -> int:
    """Anonymous bytes that opening the model has added to each worker."""
    loaded, imported = found.memory("loaded").anonymous_bytes, found.memory("imported").anonymous_bytes
    return (_known(loaded) - _known(imported)) // len(found.replicas)


def _known(value: int | None) -> int:
    if value is None:
        raise UnsupportedError("this system does not tell what processes share", where="/proc/PID/smaps_rollup")
    return value


def _why_not(sharing: Sharing) -> str:
    if sharing.shared is None:
        return "there is next to nothing to share: a worker's own memory is the interpreter and the runtime"
    return (
        f"sharing is not effective: of what workers could share they share {max(sharing.shared, 0):.0%}; each holds "
        f"{sharing.pack_private_bytes / 1e6:.1f} MB of its own, {sharing.plain_private_bytes / 1e6:.1f} MB on the "
        "model as it was"
    )
