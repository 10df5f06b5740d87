"""What each rank of each family loses, and the directions that it keeps, from one look at the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import worker
from onnxcomp.data import Batches
from onnxcomp.passes.base import Context
from onnxcomp.passes.share import inputs, rank_damage
from onnxcomp.passes.share.matrices import Family
from onnxcomp.passes.share.rank_damage import Trial
from onnxcomp.passes.share.ranks import Curve
from onnxcomp.passes.share.truncation import Truncation, factors, one_thread


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """A family with its directions; these lie in a file.

    Attributes:
        family: of matrices.
        lost: share of the energy of its outputs that rank r loses, on data that judges: float64, (highest rank + 1,).
        fitted: the same on the data that it was made from.
        scale: what each output was multiplied by, so that members of a family count alike: float64, (outputs,).
        stored: the file: float64, (highest rank, outputs).
        means: {node: mean of its input, float64, (inputs,)}, where the biases keep them; else empty.
        rows: of the data that it was made from; 0 without.
    """

    family: Family
    lost: np.ndarray
    fitted: np.ndarray
    scale: np.ndarray
    stored: Path
    means: inputs.Means
    rows: int

    def trial(self, rank: int) -> Trial:
        """The factors of a rank."""
        right = np.load(self.stored, mmap_mode="r")[:rank]
        weight = self.family.matrix()
        with one_thread():
            left, right = factors(weight * self.scale, right)
            right = right / self.scale
            gone = weight - left @ right
            start, shifts = 0, {}
            for member in self.family.members:
                part = gone[:, start : start + member.shape[1]]
                shifts.update({n: self.means[n] @ part for n in member.nodes if n in self.means})
                start += member.shape[1]
        return Trial(self.family, left, right, shifts)


def of(
    model: ir.Model, families: Sequence[Family], most: Sequence[int], data: Batches | None, context: Context
) -> list[Spectrum]:
    """The spectra of families up to their highest ranks; one Gram matrix is decomposed at a time.

    Without data all inputs count alike.
    """
    found: dict[Family, Spectrum] = {}
    ranks = dict(zip(families, most, strict=True))
    plain = (inputs.Seen(family, None, {}, 0) for family in families)
    for seen in plain if data is None else inputs.observe(model, families, data, context, None):
        worker.report("decomposing weights", len(found) / len(families))
        file = context.workdir / f"low-rank-{len(found)}.npy"
        found[seen.family] = _spectrum(seen, ranks[seen.family], file)
    return [found[family] for family in families]


def judged(model: ir.Model, spectra: Sequence[Spectrum], data: Batches, context: Context) -> list[Spectrum]:
    """The same directions, with what their ranks lose on other data."""
    found: dict[Family, Spectrum] = {}
    known = {spectrum.family: spectrum for spectrum in spectra}
    about = {family: spectrum.means for family, spectrum in known.items()}
    for seen in inputs.observe(model, list(known), data, context, about):
        worker.report("judging ranks", len(found) / len(known))
        spectrum = known[seen.family]
        found[seen.family] = dataclasses.replace(spectrum, lost=_lost(spectrum, seen.gram))
    return [found[family] for family in known]


def damage(
    model: ir.Model, spectra: Sequence[Spectrum], curves: Sequence[Curve], data: Batches, context: Context
) -> list[float]:
    """Square error of the outputs for each share of its energy that a family alone loses.

    Measured at half the parameters, for all ranks: the loss by rank is known from the spectrum.
    """
    at = [curve.nearest(curve.family.even / 2) for curve in curves]
    trials = (spectrum.trial(rank) for spectrum, rank in zip(spectra, at, strict=True))
    errors = rank_damage.measured(model, trials, len(at), data, context) if at else []
    tiny = np.finfo(np.float64).tiny
    return [error / max(float(s.lost[rank]), tiny) for error, s, rank in zip(errors, spectra, at, strict=True)]


def _spectrum(seen: inputs.Seen, most: int, stored: Path) -> Spectrum:
    """Decompose one family."""
    family, weight = seen.family, seen.family.matrix()
    with one_thread():
        gram = None if seen.gram is None else inputs.shrunk(seen.gram, seen.rows)
        scale = _scale(family, weight, gram)
        truncation = Truncation.of(weight * scale, gram)
    np.save(stored, truncation.right[:most])
    lost = np.zeros(most + 1)
    made = Spectrum(family, lost, lost, scale, stored, seen.means, seen.rows)
    lost = _lost(made, seen.gram)
    return dataclasses.replace(made, lost=lost, fitted=lost)


def _lost(spectrum: Spectrum, gram: np.ndarray | None) -> np.ndarray:
    """Share of the energy of a family's outputs that each rank loses: float64, (highest rank + 1,)."""
    weight = spectrum.family.matrix() * spectrum.scale
    with one_thread():
        right = np.load(spectrum.stored, mmap_mode="r") @ weight.T
        whole = float(np.sum(weight * (weight if gram is None else gram @ weight)))
        kept = np.sum(right * (right if gram is None else right @ gram), axis=1)
    lost = np.full(len(spectrum.lost), whole)
    lost[1 : len(kept) + 1] -= np.cumsum(kept)
    lost[len(kept) + 1 :] = 0
    shares: np.ndarray = np.maximum(lost, 0) / (whole or 1.0)
    return shares


def _scale(family: Family, weight: np.ndarray, gram: np.ndarray | None) -> np.ndarray:
    """1 / root mean square of the outputs of each member: float64, (outputs,)."""
    squares = np.sum(weight * (weight if gram is None else gram @ weight), axis=0)
    parts, start = [], 0
    for member in family.members:
        size = float(np.sqrt(np.sum(squares[start : start + member.shape[1]])))
        parts.append(np.full(member.shape[1], 1 / size if size > 0 else 1.0))
        start += member.shape[1]
    return np.concatenate(parts)
