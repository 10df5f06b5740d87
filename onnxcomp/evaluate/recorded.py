"""Outputs of a model kept on the disk, so that two large models never are in memory together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches
from onnxcomp.evaluate.fidelity import as_array


class Recorded:
    """What a model answered to batches, played back in the same order.

    Attributes:
        path: of the model.
        signature: its inputs and outputs.
    """

    def __init__(self, path: str | os.PathLike[str], folder: Path) -> None:
        self.path, self.signature = Path(path), models.signature(models.load(path))
        self._folder, self._next = folder, itertools.count()

    @classmethod
    def record(cls, path: str | os.PathLike[str], batches: Batches, folder: Path) -> Recorded:
        """Run the model on the batches, and write what it answers into the folder."""
        session = runtime.open_session(path, settings=runtime.frugal(path))
        total, done = batches.samples, 0
        for index, batch in enumerate(batches):
            worker.report(f"running {session.path.name}", done / total)
            done += batch.samples
            for position, value in enumerate(session.run(batch.feeds).values()):
                if (array := as_array(value)) is not None:
                    np.save(folder / f"{index}-{position}.npy", array)
        return cls(path, folder)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | None]:
        """The outputs of the next batch; what holds no numbers is None."""
        index = next(self._next)
        found: dict[str, np.ndarray | None] = {}
        for position, spec in enumerate(self.signature.outputs):
            file = self._folder / f"{index}-{position}.npy"
            found[spec.name] = np.load(file) if file.exists() else None
        return found
