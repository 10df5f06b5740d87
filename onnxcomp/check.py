"""Judge a file that passes made against the file they began with, before it is published."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import AccuracyGateError, DataError, NoEffectError, UsageError
from onnxcomp.evaluate.fidelity import Fidelity, compare_sessions
from onnxcomp.evaluate.recorded import Recorded
from onnxcomp.inspect import constants
from onnxcomp.model import ModelFile
from onnxcomp.passes.base import Pass
from onnxcomp.speed import Speed
from onnxcomp.speed import compare as compare_speed

#: largest difference, relative to the largest output, that an exact pass may cause, by the model's coarsest type
_EXACT = {"float16": 1e-2, "bfloat16": 5e-2}
_EXACT_DEFAULT = 1e-5

#: a float output that is this far from the reference's, or this little alike, is warned of
_USELESS_DB = 5.0
_USELESS_COSINE = 0.5


class Check:
    """Judges a staged file against its source; publication stops on what it raises.

    Attributes:
        fidelity, equivalence, speed, warnings: what was found, for the record.
    """

    def __init__(
        self,
        source: Path,
        before: ModelFile,
        passes: Sequence[Pass],
        judging: Batches | None,
        *,
        allow_larger: bool,
        tolerance: float,
        measure: bool,
    ) -> None:
        self._source, self._before, self._judging, self._tolerance = source, before, judging, tolerance
        self._exact = all(step.exact for step in passes)
        self._near = all(step.exact or step.near for step in passes)
        self._allow_larger, self._measure = allow_larger, measure
        self.fidelity: Fidelity | None = None
        self.equivalence: float | None = None
        self.speed: Speed | None = None
        self.warnings: list[str] = []

    def __call__(self, path: Path) -> None:
        """Raises NoEffectError for a larger file, InvalidModelError, and AccuracyGateError."""
        size = models.fingerprint(path).bytes
        if size > self._before.bytes and not self._allow_larger:
            raise NoEffectError(
                f"the result is larger than the input ({size} > {self._before.bytes} bytes)",
                where=self._source,
                hint="nothing was written; --allow-larger keeps such a result",
            )
        runtime.check_loads(path)
        if self._judging is not None:
            self.fidelity = self._compare(path, self._judging)
            _finite(self.fidelity)
            self.warnings.extend(self._useless(self.fidelity))
        else:
            self.warnings.append("no data was given: the outputs were not compared on real inputs")
        if self._near:
            self._prove(path)
        if self._measure:
            self._compare_speed(path)

    def _prove(self, path: Path) -> None:
        compared = self.fidelity
        if compared is None:
            compared = self._on_noise(path)
        if compared is None:
            self.warnings.append("equivalence was not checked: no made-up input runs on this model; give --data")
            return
        _finite(compared)
        worst = max(compared.outputs.items(), key=lambda item: item[1].max_rel, default=None)
        if worst is None:
            self.warnings.append("equivalence was not checked: no output holds numbers")
            return
        name, fidelity = worst
        if self._exact and not fidelity.max_rel <= self._tolerance:
            raise AccuracyGateError(
                f"outputs differ by {fidelity.max_rel:.2g} of the largest value, {self._tolerance:g} is allowed",
                where=f"output {name}",
                hint="nothing was written; please report the model, an exact pass must not do this",
            )
        self.equivalence = fidelity.max_rel

    def _compare(self, path: Path, batches: Batches) -> Fidelity:
        if not runtime.is_large(self._source):
            return compare_sessions(runtime.open_session(self._source), runtime.open_session(path), batches)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            reference = Recorded.record(self._source, batches, Path(folder))
            return compare_sessions(reference, runtime.open_session(path, settings=runtime.frugal(path)), batches)

    def _useless(self, fidelity: Fidelity) -> Iterator[str]:
        """A warning for each float output that has little to do with the input's."""
        floats = {s.name for s in models.signature(models.load(self._source)).outputs if "float" in s.dtype}
        for name, output in fidelity.outputs.items():
            if name in floats and (output.sqnr_db < _USELESS_DB or output.cosine_mean < _USELESS_COSINE):
                yield (
                    f"output {name} has little to do with the input's: SQNR {output.sqnr_db:.1f} dB, cosine "
                    f"{output.cosine_mean:.2f} on {fidelity.samples} samples; do not use the result before "
                    "'onnxcomp evaluate' has shown its accuracy, and check that the calibration samples are "
                    "prepared like those that the model will see"
                )

    def _compare_speed(self, path: Path) -> None:
        for batches in [self._judging.in_batches_of(1)] if self._judging is not None else self._noise(1):
            try:
                batch = next(iter(batches))
                self.speed = compare_speed(self._source, path, batch.feeds, batch.samples)
            except (DataError, UsageError, StopIteration):
                continue
            if self.speed.slower:
                self.warnings.append(
                    f"slower than the input on this machine: {self.speed.ratio:.2f}x its speed on {batch.samples} "
                    "sample with one thread; measure with 'onnxcomp bench' before you use it"
                )
            return

    def _on_noise(self, path: Path) -> Fidelity | None:
        """Equivalence (not quality) can be shown on noise."""
        for noise in self._noise(2):
            try:
                return self._compare(path, noise)
            except (DataError, UsageError):
                continue
        return None

    def _noise(self, batch_size: int) -> Iterator[Batches]:
        """Made-up samples, with several sizes of the symbolic axes: no model takes all of them."""
        inputs = models.signature(models.load(self._source)).inputs
        for size in (2, 16, 128, 576):
            sizes = {d: size for spec in inputs for d in (spec.shape or ())[1:] if isinstance(d, str)}
            with contextlib.suppress(DataError, UsageError):
                yield Batches("random:3", inputs, batch_size=batch_size, sizes=sizes)


def tolerance(model: ir.Model) -> float:
    """What an exact pass may change: rounding, of the coarsest type that the model stores or gives."""
    types = {models.dtype_name(tensor.dtype) for _, tensor in constants(model)}
    types |= {spec.dtype for spec in models.signature(model).outputs}
    return max((_EXACT[dtype] for dtype in types & _EXACT.keys()), default=_EXACT_DEFAULT)


def _finite(fidelity: Fidelity) -> None:
    for name, output in fidelity.outputs.items():
        if not np.isfinite(output.max_abs):
            raise AccuracyGateError(
                "the result gives NaN or infinity where the input does not",
                where=f"output {name}",
                hint="nothing was written; exclude the layer that overflows",
            )
