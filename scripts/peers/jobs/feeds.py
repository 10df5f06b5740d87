"""Calibration samples as the peers want them: one dictionary of arrays per run."""

from __future__ import annotations

import argparse

import numpy as np

#: all that calibrate, and how many in a run
_SAMPLES, _BATCH = 512, 32


def parser() -> argparse.ArgumentParser:
    """The options of every job."""
    found = argparse.ArgumentParser()
    found.add_argument("model")
    found.add_argument("calibration", help="an .npz of inputs, samples first")
    found.add_argument("output")
    found.add_argument("--transformer", action="store_true")
    found.add_argument("--reduce-range", action="store_true", help="7-bit weights, for CPUs without VNNI")
    return found


def feeds(options: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    """Batches of the first samples."""
    with np.load(options.calibration) as file:
        arrays = {name: file[name][:_SAMPLES] for name in file.files}
    starts = range(0, len(next(iter(arrays.values()))), _BATCH)
    return [{name: array[i : i + _BATCH] for name, array in arrays.items()} for i in starts]
