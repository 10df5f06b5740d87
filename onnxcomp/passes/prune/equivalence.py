"""The proof of a cut: it must compute what the whole model computes with the removed parts of its weights at zero."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp import runtime
from onnxcomp.data import Batches
from onnxcomp.errors import AccuracyGateError, DataError, GateError, InvalidModelError, UsageError
from onnxcomp.inspect import constants
from onnxcomp.passes.prune.cut import Kept

#: largest difference over the largest output, by the coarsest type that the model stores. Sums have other terms
#: at zero, so kernels add in another order: what that changes is rounding of the type, which float16 does early
_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
_TOLERANCE = 1e-5

_REPORT = "nothing was written; please report the model, a cut must not do this"

#: functions with values up to 1, computed to so many digits below 1: a probability of 1e-6 is known to a tenth
_BOUNDED = {"HardSigmoid", "Sigmoid", "Softmax", "Tanh"}
_BOUNDED_STILL = {
    *("Concat", "Flatten", "Identity", "Max", "Min", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
}

#: batches that are run, and sizes of open axes for made-up ones: no model takes all of them
_BATCHES = 3
_SIZES = (2, 16, 128, 576)


def tolerance(model: ir.Model) -> float:
    """What a cut may change: rounding, of the coarsest type that the model stores."""
    types = {models.dtype_name(tensor.dtype) for _, tensor in constants(model)}
    return max((_TOLERANCES[dtype] for dtype in types & _TOLERANCES.keys()), default=_TOLERANCE)


def masked(kept: Kept) -> ir.Model:
    """A copy of the analysed model in which the removed parts of all weights that sum over units are zero.

    A weight that is read elsewhere too (a tied embedding), or is computed, is multiplied by ones and zeros where it
    is read, and stays whole there; another is written with zeros.
    """
    original = kept.analysis.model
    copy = original.clone()
    places = dict(zip(original.graph, list(copy.graph), strict=True))
    for number, use in enumerate(kept.analysis.atoms.uses):
        left = kept.indices(use.weight, use.weight_axis)
        if left is None:
            continue
        node = places[use.node]
        index = list(use.node.inputs).index(use.weight)
        dims = kept.analysis.atoms.dims(use.weight)
        shape = [1] * len(dims)
        shape[use.weight_axis] = dims[use.weight_axis].factor
        ones = np.zeros(shape[use.weight_axis], np.float32)
        ones[left] = 1
        dtype = stored_type(use.weight)
        mask = ones.reshape(shape).astype(dtype.numpy())
        if _read_once(use.weight):
            value = copy.graph.initializers[use.weight.name or ""]
            assert value.const_value is not None
            value.const_value = _masked(value.const_value, mask)
            continue
        name = f"onnxcomp_mask_{number}"
        factor = ir.Value(
            name=name,
            const_value=ir.Tensor(mask, name=name, dtype=dtype),
            shape=ir.Shape(shape),
            type=ir.TensorType(dtype),
        )
        copy.graph.register_initializer(factor)
        product = ir.node("Mul", [node.inputs[index], factor])
        product.outputs[0].name = f"{name}_product"
        copy.graph.insert_before(node, product)
        node.replace_input_with(index, product.outputs[0])
    return copy


def _read_once(weight: ir.Value) -> bool:
    """Whether it is an initializer that one input of one node reads."""
    return weight.is_initializer() and len(weight.uses()) == 1 and not weight.is_graph_output()


def _masked(tensor: ir.TensorProtocol, mask: np.ndarray) -> ir.TensorProtocol:
    """Times a mask that it has the axes of; made when it is written."""

    def make() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy() * mask, name=tensor.name, dtype=tensor.dtype)

    return ir.LazyTensor(make, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def difference(reference: ir.Model, candidate: ir.Model, data: Batches | None, workdir: Path) -> float:
    """The largest difference of any float output, over the largest absolute value of that output.

    Outputs of Sigmoid, Softmax and the like, and products of them, count as 1 where they are smaller.
    On real samples where there are some, else on seeded ones.
    Raises GateError where no made-up input runs or a model does not load, AccuracyGateError where the candidate
    alone does not run.
    """
    scales = {value.name or "": 1.0 if _bounded(value) else 0.0 for value in reference.graph.outputs}
    # one after the other: a large model is in memory once
    feeds, expected = _expected(reference, data, workdir)
    session = _opened(candidate, workdir, "cut")
    worst = 0.0
    for feed, outputs in zip(feeds, expected, strict=True):
        try:
            found = session.run(feed)
        except DataError as error:
            raise AccuracyGateError(
                f"the cut model does not run where the whole one does: {error.message}", hint=_REPORT
            ) from error
        worst = max(worst, _relative(outputs, found, scales))
    return worst


def _expected(
    reference: ir.Model, data: Batches | None, workdir: Path
) -> tuple[Sequence[Mapping[str, np.ndarray]], Sequence[Mapping[str, runtime.Output]]]:
    """(inputs, what the reference makes of them)."""
    session = _opened(reference, workdir, "masked")
    if data is not None:
        real = [batch.feeds for batch in itertools.islice(data.in_batches_of(2), _BATCHES)]
        if real:
            return real, [session.run(feed) for feed in real]
    for batches in _made_up(reference):
        try:
            made = [batch.feeds for batch in batches]
            return made, [session.run(feed) for feed in made]
        except (DataError, UsageError):
            continue
    raise GateError(
        "equivalence cannot be shown: no made-up input runs on this model",
        hint="give --data with some real samples; nothing was written",
    )


def _opened(model: ir.Model, workdir: Path, name: str) -> runtime.Session:
    path = models.write_to(model, workdir, name)
    try:
        return runtime.open_session(path, settings=runtime.frugal(path))
    except InvalidModelError as error:
        raise GateError(f"the cut model cannot be checked: {error.message}", hint=_REPORT) from error
    finally:
        path.unlink()


def prove(reference: ir.Model, candidate: ir.Model, data: Batches | None, workdir: Path) -> float:
    """`difference`, within the `tolerance` of the type.

    Raises AccuracyGateError where it is larger.
    """
    allowed = tolerance(reference)
    found = difference(reference, candidate, data, workdir)
    if not found <= allowed:
        raise AccuracyGateError(
            f"the cut model differs by {found:.2g} of the largest output from the model with the removed weights "
            f"at zero; {allowed:g} is allowed",
            hint=_REPORT,
        )
    return found


def _bounded(value: ir.Value | None) -> bool:
    """Whether a value is made of probabilities alone, by way of moves and products."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in _BOUNDED_STILL:
        every = node.inputs if node.op_type in ("Concat", "Max", "Min", "Mul") else node.inputs[:1]
        return all(map(_bounded, every))
    return node.op_type in _BOUNDED


def _made_up(model: ir.Model) -> Iterator[Batches]:
    inputs = models.signature(model).inputs
    for size in _SIZES:
        sizes = {d: size for spec in inputs for d in (spec.shape or ())[1:] if isinstance(d, str)}
        with contextlib.suppress(DataError, UsageError):
            yield Batches(f"random:{2 * _BATCHES}", inputs, batch_size=2, sizes=sizes)


def _relative(
    reference: Mapping[str, runtime.Output], candidate: Mapping[str, runtime.Output], scales: Mapping[str, float]
) -> float:
    worst = 0.0
    for name, expected in reference.items():
        found = candidate[name]
        if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f" or expected.size == 0:
            continue
        if expected.shape != found.shape or not np.array_equal(np.isfinite(expected), np.isfinite(found)):
            return np.inf
        finite = np.isfinite(expected)
        wide = expected[finite].astype(np.float64), found[finite].astype(np.float64)
        if not wide[0].size:
            continue
        largest = max(float(np.abs(wide[0]).max()), scales.get(name, 0.0))
        apart = float(np.abs(wide[0] - wide[1]).max())
        worst = max(worst, apart / largest if largest else (np.inf if apart else 0.0))
    return worst


def stored_type(weight: ir.Value) -> ir.DataType:
    """The type of a stored weight as the node reads it."""
    while weight.const_value is None:
        node = weight.producer()
        source = None if node is None or not node.inputs else node.inputs[0]
        if node is None or source is None or node.op_type == "Cast":
            assert weight.type is not None
            return weight.type.dtype
        weight = source
    return weight.const_value.dtype
