"""What rounding nodes does to the outputs of a model, measured on samples in one emulated model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batch, Batches
from onnxcomp.evaluate.fidelity import as_array
from onnxcomp.passes.base import Context
from onnxcomp.passes.quantize.emulate import SWITCH, Rounding, emulate
from onnxcomp.passes.quantize.targets import Target


@dataclasses.dataclass(frozen=True)
class Damage:
    """What rounding does.

    Attributes:
        error: relative error of the outputs, sqrt(sum (r - c)^2 / sum r^2), the largest over the outputs;
            infinite when an output is NaN or infinite.
        flipped: share of samples with another largest entry in an output of class scores; None without one.
    """

    error: float
    flipped: float | None


class Emulation:
    """A float model in which each target can be rounded."""

    def __init__(self, model: ir.Model, targets: Sequence[Target], rounding: Rounding, context: Context) -> None:
        path = models.write_to(emulate(model, targets, rounding), context.workdir, "emulated")
        # the emulation is not to run as int8, nor its rounded weights to be kept beside the others
        config = {"session.disable_quant_qdq": "1"}
        config |= {"session.disable_prepacking": "1"} if runtime.is_large(path) else {}
        settings = runtime.SessionSettings(
            threads=0, optimization="basic", config=config, disabled_optimizers=("ConstantFolding",)
        )
        self._session = runtime.open_session(path, settings=settings)
        self._count = len(targets)

    def outputs(self, batch: Batch, rounded: Iterable[int] = ()) -> Mapping[str, np.ndarray]:
        """With these targets rounded."""
        switch = np.zeros(self._count, bool)
        switch[list(rounded)] = True
        return self._session.run({**batch.feeds, SWITCH: switch})

    def alone(self, data: Batches) -> list[Damage]:
        """Of each target alone; the outputs of one batch are in memory."""
        sums = [_Sums() for _ in range(self._count)]
        total, done = data.samples, 0
        for batch in data:
            reference = self.outputs(batch)
            for number, entry in enumerate(sums):
                worker.report("sensitivity of nodes", (done + batch.samples * number / len(sums)) / total)
                entry.add(reference, self.outputs(batch, [number]), batch.samples)
            done += batch.samples
        return [entry.damage() for entry in sums]

    def harmful(self, data: Batches, limit: float) -> dict[int, float]:
        """{target: its error} of those that alone cause more than `limit`, found by halving groups of targets.

        A group that does less than that in all is not looked into: errors that undo each other would be missed.
        So a model without such targets takes one run (Dorfman 1943). The outputs of all samples are in memory.
        """
        batches = [(batch, self.outputs(batch)) for batch in data]
        found: dict[int, float] = {}
        groups = [range(self._count)]
        done = 0
        while groups:
            group = groups.pop()
            worker.report("nodes that do harm", min(done / self._count, 1.0))
            sums = _Sums()
            for batch, reference in batches:
                sums.add(reference, self.outputs(batch, group), batch.samples)
            error = sums.damage().error
            if error > limit and len(group) > 1:
                half = len(group) // 2
                groups += [group[half:], group[:half]]
                continue
            done += len(group)
            if error > limit:
                found[group[0]] = error
        return found


class _Sums:
    """Signal and noise of each output over batches, and flipped classes of the first that holds scores."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._scores: str | None = None
        self._flips = self._voted = 0

    def add(self, reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray], samples: int) -> None:
        """The outputs of one batch."""
        for name, array in candidate.items():
            self._add(name, as_array(reference[name]), as_array(array), samples)

    def damage(self) -> Damage:
        """Of all batches."""
        return Damage(max(self._errors(), default=0.0), self._flips / self._voted if self._voted else None)

    def _add(self, name: str, reference: np.ndarray | None, candidate: np.ndarray | None, samples: int) -> None:
        if reference is None or candidate is None or not reference.size:
            return
        r, c = reference.astype(np.float64), candidate.astype(np.float64)
        if r.shape != c.shape:  # sizes that depend on the values: something else was found
            noise = float(np.sum(r**2))
        else:
            with np.errstate(invalid="ignore"):
                noise = float(np.sum(np.where(r == c, 0.0, r - c) ** 2))
        self._signal[name] = self._signal.get(name, 0.0) + float(np.sum(np.where(np.isfinite(r), r, 0.0) ** 2))
        self._noise[name] = self._noise.get(name, 0.0) + noise
        scores = r.ndim == 2 and len(r) == samples and r.shape[1] > 1 and reference.dtype.kind == "f"
        if scores and r.shape == c.shape and self._scores in (None, name):
            self._scores = name
            self._flips += int(np.sum(r.argmax(1) != c.argmax(1)))
            self._voted += samples

    def _errors(self) -> Iterator[float]:
        for name, noise in self._noise.items():
            signal = self._signal[name]
            if noise == 0:
                yield 0.0
            else:
                yield math.sqrt(noise / signal) if math.isfinite(noise) and signal else math.inf
