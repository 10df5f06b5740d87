"""The answers to the samples that judge, which come as they are after every epoch: asked for once."""

from __future__ import annotations

import hashlib

from torch import Tensor

from onnxcomp.pytorch.distillation.teacher import Feeds, Teacher

#: bytes of answers that are kept
LIMIT = 256 << 20


class Remembered:
    """A teacher that knows its answers to whole batches, by the SHA-256 of their exact bytes, as far as they fit.

    For batches that come again as they were; the order of samples within one counts, so nothing is asked of the
    teacher but to answer the same to the same. `Cached` keeps answers of single samples, on the disk.

    Args:
        teacher: asked for what is not known.
        limit: bytes of answers; beyond them the teacher is asked each time.
    """

    def __init__(self, teacher: Teacher, limit: int = LIMIT) -> None:
        self._teacher, self._left = teacher, limit
        self._known: dict[bytes, dict[str, Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the teacher."""
        return self._teacher.names

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of the teacher."""
        return self._teacher.inputs

    @property
    def sha256(self) -> str:
        """The teacher's."""
        return self._teacher.sha256

    def outputs(self, batch: Feeds) -> dict[str, Tensor]:
        """See `Teacher`."""
        key = _digest({name: batch[name] for name in self.inputs if name in batch})
        if key in self._known:
            return dict(self._known[key])
        found = self._teacher.outputs(batch)
        size = sum(tensor.nbytes for tensor in found.values())
        if size <= self._left:
            self._left -= size
            self._known[key] = dict(found)
        return found


def _digest(feeds: Feeds) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(feeds.items()):
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.digest()
