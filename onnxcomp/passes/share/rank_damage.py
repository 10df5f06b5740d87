"""What factoring one family alone does to the outputs, measured on samples in one session with switches."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime, worker
from onnxcomp.data import Batches, unpadded
from onnxcomp.evaluate.fidelity import as_array
from onnxcomp.passes.base import Context
from onnxcomp.passes.quantize.names import free, initializer
from onnxcomp.passes.share import held_out
from onnxcomp.passes.share.factored import bias
from onnxcomp.passes.share.matrices import Family, Member

#: samples that it is measured on
SAMPLES = 32

#: an error that counts for any larger one, and for outputs that are not finite
_RUINED = 1e6


@dataclasses.dataclass(frozen=True)
class Trial:
    """Factors that a family might get: A, (inputs, rank), B, (rank, outputs), and {node: what to add to its bias}."""

    family: Family
    left: np.ndarray
    right: np.ndarray
    shifts: Mapping[ir.Node, np.ndarray]


def measured(model: ir.Model, trials: Iterable[Trial], count: int, data: Batches, context: Context) -> list[float]:
    """The square error of the outputs, relative, the largest over the float outputs, with one family factored.

    One thread: the same numbers on every run. The outputs of one batch are in memory, and the factors of one of
    the `count` trials.
    """
    factors = context.workdir / "trials"
    factors.mkdir()
    switched, name = _switched(model, trials, count, factors)
    path = models.write_to(switched, context.workdir, "switched")
    del switched
    shutil.rmtree(factors)
    session = runtime.open_session(path, settings=dataclasses.replace(runtime.frugal(path), threads=1))
    floats = {spec.name for spec in models.signature(model).outputs if "float" in spec.dtype}
    sums: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    some = unpadded(held_out.few(data, SAMPLES))
    done = 0
    for batch in some:
        off = np.zeros(count, np.float32)
        reference = session.run({**batch.feeds, name: off})
        for number, found in enumerate(sums):
            worker.report("damage of factors", (done + batch.samples * number / count) / some.samples)
            on = off.copy()
            on[number] = 1
            candidate = session.run({**batch.feeds, name: on})
            for output in floats:
                both = as_array(reference[output]), as_array(candidate[output])
                found[output] = found.get(output, np.zeros(2)) + _sums(*both)
        done += batch.samples
    path.unlink()
    return [max((_relative(*pair) for pair in found.values()), default=0.0) for found in sums]


def _sums(reference: np.ndarray | None, candidate: np.ndarray | None) -> np.ndarray:
    """(signal, noise)."""
    if reference is None or candidate is None or reference.shape != candidate.shape:
        return np.zeros(2)
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(r)
    return np.array([np.sum(r[finite] ** 2), np.sum((r - c)[finite] ** 2)])


def _relative(signal: float, noise: float) -> float:
    return min(noise / signal, _RUINED) if signal > 0 and np.isfinite(noise) else _RUINED if noise else 0.0


def _switched(model: ir.Model, trials: Iterable[Trial], count: int, folder: Path) -> tuple[ir.Model, str]:
    """(a copy with an input that is 1 for families that are factored, else 0: float32, (families,); its name).

    The factors lie in a folder. No operator newer than opset 7 is used.
    """
    copied = model.clone()
    places = dict(zip(model.graph, list(copied.graph), strict=True))
    switch = ir.Value(
        name=free(copied, "onnxcomp.factored"), shape=ir.Shape([count]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    copied.graph.inputs.append(switch)
    first = next(iter(copied.graph))
    one = initializer(copied, "onnxcomp.one", ir.Tensor(np.array(1, np.float32)))
    for number, trial in enumerate(trials):
        index = initializer(copied, f"onnxcomp.family.{number}", ir.Tensor(np.array(number)))
        on = _insert(copied, first, "Gather", [switch, index], f"onnxcomp.on.{number}")
        off = _insert(copied, first, "Sub", [one, on], f"onnxcomp.off.{number}")
        start = 0
        for member in trial.family.members:
            columns = trial.right[:, start : start + member.shape[1]]
            _switch_weight(copied, first, (on, off), member, _filed(member, trial.left, columns, folder))
            for node in member.nodes:
                if node in trial.shifts:
                    _switch_bias(copied, first, on, places[node], trial.shifts[node])
            start += member.shape[1]
    return copied, switch.name or ""


def _switch_weight(
    model: ir.Model,
    first: ir.Node,
    flags: tuple[ir.Value, ir.Value],
    member: Member,
    factors: Sequence[ir.TensorProtocol],
) -> None:
    """The weight, or the product of its factors: computed in each run, so that it takes no memory in between."""
    dtype = member.tensor.dtype
    weight = model.graph.initializers[member.value.name or ""]
    name = f"onnxcomp.{weight.name}"
    one, other = (initializer(model, f"{name}.{i}", factor) for i, factor in enumerate(factors))
    readers = list(weight.uses())
    on, off = (_insert(model, first, "Cast", [f], f"{name}.cast", to=int(dtype)) for f in flags)
    scaled = _insert(model, first, "Mul", [one, on], f"{name}.scaled")
    value = _insert(model, first, "MatMul", [scaled, other], f"{name}.product")
    if member.convolves:
        sizes = initializer(model, f"{name}.sizes", ir.Tensor(np.array(member.tensor.shape.numpy(), np.int64)))
        value = _insert(model, first, "Reshape", [value, sizes], f"{name}.shaped")
    whole = _insert(model, first, "Mul", [weight, off], f"{name}.whole")
    value = _insert(model, first, "Add", [whole, value], f"{name}.chosen")
    for node, place in readers:
        node.replace_input_with(place, value)


def _filed(member: Member, left: np.ndarray, right: np.ndarray, folder: Path) -> list[ir.TensorProtocol]:
    """The factors of what is stored, in new files of a folder."""
    made: list[ir.TensorProtocol] = []
    for array in (right.T, left.T) if member.turned or member.convolves else (left, right):
        path = folder / f"{len(list(folder.iterdir()))}.npy"
        np.save(path, np.ascontiguousarray(array.astype(member.tensor.dtype.numpy())))
        made.append(ir.Tensor(np.load(path, mmap_mode="r")))
    return made


def _switch_bias(model: ir.Model, first: ir.Node, flag: ir.Value, node: ir.Node, added: np.ndarray) -> None:
    """The bias, or the one that keeps the mean; where there is none yet, the mean is lost."""
    stored = bias(node, len(added))
    if stored is None or stored.const_value is None:
        return
    tensor = stored.const_value
    shift = added.reshape(tensor.shape.numpy()).astype(tensor.dtype.numpy())
    change = initializer(model, f"onnxcomp.{stored.name}", ir.Tensor(shift))
    (reader, place), *_ = stored.uses()
    cast = _insert(model, first, "Cast", [flag], f"onnxcomp.{stored.name}.cast", to=int(tensor.dtype))
    moved = _insert(model, first, "Mul", [change, cast], f"onnxcomp.{stored.name}.moved")
    value = _insert(model, first, "Add", [stored, moved], f"onnxcomp.{stored.name}.chosen")
    reader.replace_input_with(place, value)


def _insert(
    model: ir.Model, first: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: int
) -> ir.Value:
    made = ir.node(op_type, inputs, attributes)
    made.outputs[0].name = free(model, name)
    model.graph.insert_before(first, made)
    return made.outputs[0]
