"""The command of a reference model: make it, and write what export, quantize and evaluate read."""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from onnxcomp.errors import OnnxcompError, from_os_error
from onnxcomp.model import refuse_target, write_file

#: samples that calibrate; ranges settle with some hundred
CALIBRATION = 512


@dataclasses.dataclass(frozen=True)
class Made:
    """What a model's command has made.

    Attributes:
        network: its weights are written.
        calibration: inputs from training data, (samples, ...) each.
        test: inputs that nothing was fitted to, and `labels`.
        accuracy: in [0, 1], measured in torch on `test`.
        words: what was measured, '9312 of 10000 test images'.
        files: further files by name.
    """

    network: nn.Module
    calibration: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    accuracy: float
    words: str
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def parser(name: str, description: str, *, epochs: int | None = None) -> argparse.ArgumentParser:
    """The options that the models have in common; `epochs` and the seed only where there is training."""
    found = argparse.ArgumentParser(f"python -m onnxcomp_models.{name}", description=description)
    found.add_argument("--data", required=True, metavar="FOLDER", help="where the data set lies")
    found.add_argument("-o", "--output", required=True, metavar="OUTFOLDER", type=Path, help="made if missing")
    found.add_argument("--force", action="store_true", help="replace existing outputs")
    if epochs is not None:
        found.add_argument("--epochs", type=positive, default=epochs, help="default %(default)s")
        found.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return found


def run(options: argparse.Namespace, make: Callable[[argparse.Namespace], Made], files: Sequence[str] = ()) -> int:
    """Make the model and write it into `options.output`; the exit code, with errors on stderr.

    The outputs are `weights.safetensors`, `calibration.npz`, `test.npz` and `files`; existing ones are
    refused before any work is done.
    """
    place: Path = options.output
    names = ["weights.safetensors", "calibration.npz", "test.npz", *files]
    try:
        _prepare(place, names, force=options.force)
        made = make(options)
        for name, content in zip(names, [*_contents(made), *(made.files[f] for f in files)], strict=True):
            write_file(place / name, content, force=options.force)
    except OnnxcompError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command prints
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201 - same
        return error.code
    print(f"accuracy {made.accuracy:.4f} ({made.words})")  # noqa: T201 - same
    return 0


def say(text: str, fraction: float) -> None:
    """A line of progress on stderr."""
    print(f"{fraction:4.0%} {text}", file=sys.stderr, flush=True)  # noqa: T201 - same


def rows(count: int, wanted: int | None = None) -> np.ndarray:
    """Indices of `CALIBRATION` samples, or of `wanted`: drawn with a fixed seed, in order."""
    wanted = CALIBRATION if wanted is None else wanted
    drawn = np.random.default_rng(0).choice(count, min(count, wanted), replace=False)
    return np.sort(drawn)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as the content of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def positive(text: str) -> int:
    """An option's number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _prepare(place: Path, names: Sequence[str], *, force: bool) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, place) from error
    for name in names:
        refuse_target(place / name, force=force)


def _contents(made: Made) -> list[bytes]:
    from safetensors.torch import save

    weights: bytes = save(dict(made.network.state_dict()))
    return [weights, npz(made.calibration), npz(made.test)]
