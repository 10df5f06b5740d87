"""What each rank of each family loses, and the directions that it keeps, from one look at the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import worker
from onnxcomp.activations import Moments, observe_moments
from onnxcomp.data import Batches, unpadded
from onnxcomp.errors import CalibrationError
from onnxcomp.passes.base import Context
from onnxcomp.passes.share import rank_damage
from onnxcomp.passes.share.factored import has_bias
from onnxcomp.passes.share.matrices import Family
from onnxcomp.passes.share.rank_damage import Trial
from onnxcomp.passes.share.ranks import Curve
from onnxcomp.passes.share.truncation import Truncation, factors, one_thread


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """A family with its directions; these lie in a file.

    Attributes:
        family: of matrices.
        lost: share of the energy of its outputs that rank r loses: float64, (highest rank + 1,).
        scale: what each output was multiplied by, so that members of a family count alike: float64, (outputs,).
        stored: the file: float64, (highest rank, outputs).
        means: {node: mean of its input, float64, (inputs,)}, where the biases keep them; else empty.
    """

    family: Family
    lost: np.ndarray
    scale: np.ndarray
    stored: Path
    means: Mapping[ir.Node, np.ndarray]

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


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Of the inputs of a family.

    Attributes:
        family: of matrices.
        gram: second moments, about the means where all biases can keep these: float64, (inputs, inputs).
        means: as in `Spectrum`.
    """

    family: Family
    gram: np.ndarray | None
    means: Mapping[ir.Node, np.ndarray]


def of(model: ir.Model, families: Sequence[Family], most: Sequence[int], context: Context) -> list[Spectrum]:
    """The spectra of families up to their highest ranks; one Gram matrix is decomposed at a time.

    One pass over the data for every 512 MiB of Gram matrices. Without data all inputs count alike.
    """
    found: dict[Family, Spectrum] = {}

    def decompose(seen: _Seen) -> None:
        worker.report("decomposing weights", len(found) / len(families))
        file = context.workdir / f"low-rank-{len(found)}.npy"
        found[seen.family] = _spectrum(seen, most[families.index(seen.family)], file)

    if context.data is None:
        for family in families:
            decompose(_Seen(family, None, {}))
        return list(found.values())
    waiting: dict[ir.Node, Moments] = {}
    readers = {family: _observed(family) for family in families}
    widths = {node: family.shape[0] for family, nodes in readers.items() for node in nodes}
    few = []
    for part in observe_moments(model, unpadded(context.data), widths, workdir=context.workdir, store=context.store):
        waiting |= part
        part.clear()
        for family, nodes in readers.items():
            if family in found or not all(node in waiting for node in nodes):
                continue
            moments = [waiting[node] for node in nodes]
            decompose(_about(family, dict(zip(nodes, moments, strict=True))))
            count = sum(m.count for m in moments)
            few += [count] if count < family.shape[0] else []
        needed = {node for family, nodes in readers.items() if family not in found for node in nodes}
        waiting = {node: moments for node, moments in waiting.items() if node in needed}
    if few:
        context.note(
            f"the data gives as few as {min(few)} rows, less than the width of a matrix, for {len(few)} weights: "
            "more samples would tell more"
        )
    return [found[family] for family in families]


def damage(
    model: ir.Model, spectra: Sequence[Spectrum], curves: Sequence[Curve], data: Batches, context: Context
) -> list[float]:
    """Square error of the outputs for each share of its energy that a family alone loses.

    Measured at half the parameters, for all ranks: the loss by rank is known from the spectrum.
    """
    at = [curve.nearest(curve.family.even / 2) for curve in curves]
    trials = [spectrum.trial(rank) for spectrum, rank in zip(spectra, at, strict=True)]
    errors = rank_damage.measured(model, trials, data, context) if trials else []
    tiny = np.finfo(np.float64).tiny
    return [error / max(float(s.lost[rank]), tiny) for error, s, rank in zip(errors, spectra, at, strict=True)]


def _observed(family: Family) -> list[ir.Node]:
    """Nodes that tell what a family multiplies: members of one read the same tensor."""
    return list(family.members[0].nodes)


def _about(family: Family, seen: Mapping[ir.Node, Moments]) -> _Seen:
    if not all(moments.count for moments in seen.values()):
        raise CalibrationError("the data gives it no rows of floats", where=f"node {family.name}")
    centred = all(has_bias(node, member.shape[1]) for member in family.members for node in member.nodes)
    gram = np.zeros((family.shape[0],) * 2)
    for moments in seen.values():
        gram += moments.gram[0]
        if centred:
            gram -= np.outer(moments.total[0], moments.total[0] / moments.count)
    first = next(iter(seen.values()))
    of_node = {node: seen.get(node, first) for node in family.nodes if centred}
    means = {node: moments.total[0] / moments.count for node, moments in of_node.items()}
    return _Seen(family, gram / sum(moments.count for moments in seen.values()), means)


def _spectrum(seen: _Seen, most: int, stored: Path) -> Spectrum:
    """Decompose one family."""
    family, weight = seen.family, seen.family.matrix()
    with one_thread():
        scale = _scale(family, weight, seen.gram)
        truncation = Truncation.of(weight * scale, seen.gram)
    energies = truncation.energies
    lost = np.concatenate([np.cumsum(energies[::-1])[::-1], np.zeros(max(most + 1 - len(energies), 1))])
    np.save(stored, truncation.right[:most])
    return Spectrum(family, lost[: most + 1] / (lost[0] or 1.0), scale, stored, seen.means)


def _scale(family: Family, weight: np.ndarray, gram: np.ndarray | None) -> np.ndarray:
    """1 / root mean square of the outputs of each member: float64, (outputs,)."""
    squares = np.sum(weight * (weight if gram is None else gram @ weight), axis=0)
    parts, start = [], 0
    for member in family.members:
        size = float(np.sqrt(np.sum(squares[start : start + member.shape[1]])))
        parts.append(np.full(member.shape[1], 1 / size if size > 0 else 1.0))
        start += member.shape[1]
    return np.concatenate(parts)
