"""A teacher's answers kept, for inputs that come again: tokenized text, images without augmentation."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from onnxcomp.errors import DataError, UnsupportedError, UsageError
from onnxcomp.pytorch.distillation.answers import Answers
from onnxcomp.pytorch.distillation.teacher import Feeds, Teacher, given

#: version of the file's layout
_FORMAT = 1

#: a sample's answer may differ from its answer alone by this share of the largest value: other kernels, half precision
_TOLERANCE = 5e-3


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a cache holds and has done.

    Attributes:
        samples: stored answers, of earlier runs too.
        bytes: on the disk.
        hits: samples that were answered from the file, since it was opened.
        misses: samples that the teacher answered.
        full: whether the limit, or the end of the disk, was reached: further answers are not stored.
    """

    samples: int
    bytes: int
    hits: int
    misses: int
    full: bool

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


class Cached:
    """A teacher that asks another one once for each sample.

    The key of a sample is the SHA-256 of its exact bytes: name, type, shape and values of its row in every
    input. Where a batch holds a sample that is not there yet, the teacher answers the whole batch, and what is
    new is stored. What comes out has the precision of the file, stored or new: a run that finds the file
    filled learns the same. Augmented samples never come again; they fill the disk for nothing.

    Args:
        teacher: must not change. Each of its answers must follow from one sample alone; the first batch is
            tried (which does not see what only shows in other batches).
        folder: local; made if it is not there.
        dtype: 'float32', or 'float16' for half the disk.
        limit_bytes: of the file. When it is reached, the teacher answers all that is not there.

    Raises:
        DataError: the folder holds answers of another teacher, other tensors or another dtype; it is damaged.
        OutputError: the folder cannot be written.
    """

    def __init__(
        self,
        teacher: Teacher,
        folder: Path,
        dtype: Literal["float32", "float16"] = "float32",
        *,
        limit_bytes: int = 8 << 30,
    ) -> None:
        if dtype not in ("float32", "float16"):
            raise UsageError("answers are stored as float32 or float16", where=f"dtype={dtype}")
        self._teacher, self._dtype = teacher, np.dtype(dtype)
        self._proven = False
        self._hits = self._misses = 0
        self._lock = threading.Lock()
        about = {"format": _FORMAT, "teacher": teacher.sha256, "names": list(teacher.names), "dtype": dtype}
        self._answers = Answers(folder / "answers.sqlite", about, self._dtype, limit_bytes=limit_bytes)

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

    @property
    def usage(self) -> Usage:
        """What the cache holds and has done so far."""
        with self._lock:
            held = self._answers
            return Usage(len(held), held.size_bytes, self._hits, self._misses, held.full)

    def outputs(self, batch: Feeds) -> dict[str, Tensor]:
        """See `Teacher`.

        Raises UnsupportedError for answers that do not belong to single samples, DataError for one beyond the
        range of the file's dtype.
        """
        feeds = {name: given(batch, name) for name in self.inputs}
        keys = _keys(feeds)
        with self._lock:
            found = self._answers.look_up(keys)
            missing = [i for i, key in enumerate(keys) if key not in found]
            if missing:
                answers = self._ask(feeds, len(keys))
                new = {keys[i]: [array[i] for array in answers] for i in missing}
                self._answers.store(new)
                found |= new
            self._hits += len(keys) - len(missing)
            self._misses += len(missing)
        tensors = (np.stack(rows) for rows in zip(*(found[key] for key in keys), strict=True))
        return {name: torch.from_numpy(array).float() for name, array in zip(self.names, tensors, strict=True)}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._answers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, feeds: Feeds, samples: int) -> list[np.ndarray]:
        """The teacher's answers in the file's dtype, in the order of the names."""
        answers = self._teacher.outputs(feeds)
        for name, tensor in answers.items():
            if tensor.ndim == 0 or len(tensor) != samples:
                raise _not_of_samples(name)
        if not self._proven and samples > 1:
            self._prove(feeds, answers)
        return [self._narrow(name, answers[name].numpy()) for name in self.names]

    def _prove(self, feeds: Feeds, answers: dict[str, Tensor]) -> None:
        """The first sample's answer is the same without the others; a teacher of whole batches is not asked."""
        with contextlib.suppress(DataError):
            alone = self._teacher.outputs({name: array[:1] for name, array in feeds.items()})
            for name, tensor in answers.items():
                one, other = tensor[0], alone[name][0]
                if one.shape != other.shape:
                    raise _not_of_samples(name)
                if one.numel() and float((one - other).abs().max()) > _TOLERANCE * float(one.abs().max()):
                    raise _not_of_samples(name)
        self._proven = True

    def _narrow(self, name: str, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            narrow = array.astype(self._dtype)
        if not np.array_equal(np.isfinite(narrow), np.isfinite(array)):
            raise DataError("an answer is beyond the range of float16", where=name, hint="store float32")
        return narrow


def _keys(feeds: Feeds) -> list[bytes]:
    """The SHA-256 of each sample."""
    counts = {array.shape[0] if array.ndim else None for array in feeds.values()}
    count = counts.pop()
    if counts or count is None:
        raise UnsupportedError(
            "the teacher's inputs have no first axis of samples in common", hint="use this teacher without a cache"
        )
    digests = [hashlib.sha256() for _ in range(count)]
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        head = f"{name}|{array.dtype.str}|{array.shape[1:]}|".encode()
        for digest, row in zip(digests, array.reshape(count, -1), strict=True):
            digest.update(head + (repr(row.tolist()).encode() if array.dtype.kind == "O" else row.tobytes()))
    return [digest.digest() for digest in digests]


def _not_of_samples(name: str) -> UnsupportedError:
    return UnsupportedError(
        "the teacher's answer to a sample depends on the rest of the batch",
        where=name,
        hint="dynamic quantization and normalization over a batch do that; use this teacher without a cache",
    )
