"""Calibration samples as the peers want them: one dictionary of arrays per run."""

from __future__ import annotations

import argparse

import numpy as np


def parser() -> argparse.ArgumentParser:
    """The options of every job."""
    found = argparse.ArgumentParser()
    found.add_argument("model")
    found.add_argument("calibration", help="an .npz of inputs, samples first")
    found.add_argument("output")
    found.add_argument("--transformer", action="store_true")
    found.add_argument("--reduce-range", action="store_true", help="7-bit weights, for CPUs without VNNI")
    found.add_argument("--samples", type=int, default=512)
    found.add_argument("--batch", type=int, default=32)
    found.add_argument("--unpadded", action="store_true", help="each sample alone, without its padding")
    return found


def feeds(options: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    """Batches of the first samples."""
    with np.load(options.calibration) as file:
        arrays = {name: file[name][: options.samples] for name in file.files}
    if not options.unpadded:
        starts = range(0, len(next(iter(arrays.values()))), options.batch)
        return [{name: array[i : i + options.batch] for name, array in arrays.items()} for i in starts]
    lengths = arrays["attention_mask"].sum(1)
    return [{name: array[i : i + 1, :n] for name, array in arrays.items()} for i, n in enumerate(lengths)]
