"""Checkpoints: one safetensors file with all tensors, and what else there is as JSON in its header; no pickles.

The file is replaced as a whole, so that a run that is killed finds its last one. What follows from
the step alone (order of samples, learning rate, random numbers) is not in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onnxcomp import model as models
from onnxcomp.errors import DataError, OutputError, UsageError, from_os_error

NAME = "checkpoint.safetensors"
_HEADER = "onnxcomp"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A run at one step.

    Attributes:
        tensors: by name, 'student/...', 'best/...', 'average/...', 'objective/...', 'optimizer/INDEX/KEY'.
        progress: step, sums of the epoch so far, history; plain JSON.
    """

    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with 'PREFIX/', without it."""
        cut = len(prefix) + 1
        return {name[cut:]: tensor for name, tensor in self.tensors.items() if name.startswith(f"{prefix}/")}


class Checkpoints:
    """The checkpoint of a run in a folder.

    Args:
        folder: made where it is not there.
        run: what makes the run what it is, as plain JSON: options, data, teacher, student.
        resume: go on from the checkpoint, where there is one.

    Raises UsageError: without `resume`, the folder holds a checkpoint; OutputError.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self._run = folder / NAME, json.loads(json.dumps(run))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, folder) from error
        if self.path.exists() and not resume:
            raise UsageError(
                "there is a checkpoint already", where=self.path, hint="add --resume to go on, or name another folder"
            )

    def load(self) -> Checkpoint | None:
        """The last one, on the CPU; None where there is none yet.

        Raises DataError (damaged), UsageError (of another run, naming what differs).
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                header = json.loads((file.metadata() or {})[_HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            version, run, progress = header["format"], header["run"], header["progress"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the checkpoint cannot be read: {error}", where=self.path, hint="remove it to start anew"
            ) from error
        except OSError as error:
            raise from_os_error(error, self.path) from error
        if version != _FORMAT:
            raise DataError(f"a checkpoint of format {version}, this onnxcomp reads {_FORMAT}", where=self.path)
        if different := [key for key in self._run if run.get(key) != self._run[key]]:
            raise UsageError(
                f"the checkpoint is of a run with another {', '.join(different)}",
                where=self.path,
                hint=_difference(run.get(different[0]), self._run[different[0]]),
            )
        return Checkpoint(tensors, progress)

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the last one. Raises OutputError: the disk is full."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
        header = {"format": _FORMAT, "run": self._run, "progress": checkpoint.progress}
        with models.stage(self.path, force=True) as staged:
            made = staged.folder / NAME
            try:
                save_file(tensors, made, {_HEADER: json.dumps(header, allow_nan=False)})
            except SafetensorError as error:
                raise OutputError(f"the checkpoint cannot be written: {error}", where=self.path) from error
            with made.open("rb+") as file:
                os.fsync(file.fileno())
            made.replace(self.path)


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in now if before.get(key) != now[key])
        return f"{key} was {before.get(key)}, now it is {now[key]}"
    return f"it was {before}, now it is {now}"
