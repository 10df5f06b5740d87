"""What is fed to prove that a pack gives the model's outputs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import DataError, UsageError
from onnxcomp.model import Signature
from onnxcomp.runtime import Session

#: batches that are fed, samples in each, and runs on noise
_BATCHES, _SAMPLES, _RUNS = 8, 8, 3

#: sizes that noise gives to symbolic axes, one after the other: no model takes all of them
_SIZES = (16, 2, 128, 576)


@dataclasses.dataclass(frozen=True)
class Feeds:
    """Arrays by input name, one dictionary per run, and where they come from."""

    runs: tuple[Mapping[str, np.ndarray], ...]
    source: str


def make(model: Path, data: str | os.PathLike[str] | None, sizes: Mapping[str, int]) -> tuple[Feeds, Signature]:
    """A few batches that the model runs on, and what it takes and gives.

    Args:
        model: opened once, which also proves that it can be.
        data: see `onnxcomp.data.open_source`; None: seeded noise, whose symbolic axes get sizes that run.
        sizes: sizes of symbolic axes, for noise.

    Raises what `open_session` raises; DataError where nothing fits.
    """
    session = runtime.open_session(model, settings=runtime.frugal(model))
    inputs = session.signature.inputs
    if data is not None:
        batches = Batches(data, inputs, batch_size=_SAMPLES, sizes=sizes)
        runs = tuple(batch.feeds for batch in islice(batches, _BATCHES))
        if not runs:
            raise DataError("there are no samples", where=batches.source.name)
        _try(session, runs[0])
        return Feeds(runs, batches.source.name), session.signature
    failed: Exception | None = None
    for noise in _noise(session.signature, sizes):
        try:
            runs = tuple(batch.feeds for batch in noise)
            for feed in runs:
                _try(session, feed)
        except (DataError, UsageError) as error:
            failed = failed or error
            continue
        return Feeds(runs, noise.source.name), session.signature
    raise DataError(f"no made-up input runs on this model: {failed}", where=model, hint="give --data") from failed


def _try(session: Session, feed: Mapping[str, np.ndarray]) -> None:
    """Run without ORT's own words on stderr about what does not fit. Raises what `Session.run` raises."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    try:
        session.ort.run(None, dict(feed), options)
    except Exception as error:
        raise runtime.translate(error, session.path, running=True) from error


def _noise(signature: Signature, sizes: Mapping[str, int]) -> Iterator[Batches]:
    symbols = {d for spec in signature.inputs for d in (spec.shape or ())[1:] if isinstance(d, str)}
    for size in _SIZES if symbols - set(sizes) else _SIZES[:1]:
        for batch in (2, 1):
            chosen = {**dict.fromkeys(symbols, size), **sizes}
            yield Batches(f"random:{_RUNS}", signature.inputs, batch_size=batch, sizes=chosen)
