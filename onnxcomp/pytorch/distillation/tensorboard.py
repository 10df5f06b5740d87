"""Epochs as curves in TensorBoard, where that is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

from onnxcomp.errors import UnsupportedError


class TensorBoard:
    """Writes the figures of every epoch into a folder that `tensorboard --logdir` shows.

    Args:
        folder: made where it is not there.

    Raises UnsupportedError when the package tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UnsupportedError(
                "tensorboard is not installed", where="--tensorboard", hint="pip install tensorboard, or leave it out"
            ) from error
        self._writer: Any = SummaryWriter(os.fspath(folder))

    def epoch(self, facts: Mapping[str, Any], step: int) -> None:
        """An entry of the history, at a step of the optimizer."""
        figures = {f"validation/{name}": value for name, value in facts["validation"].items()}
        figures |= {name: facts[name] for name in ("loss", "lr", "seconds") if facts[name] is not None}
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
