"""`quantize-weights`: 8 or 4 bits for weights alone, in blocks; activations stay in float."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp.errors import UsageError, nearest
from onnxcomp.passes.base import Context, Effect, Pass, drop_inner_shapes, option
from onnxcomp.passes.quantize import _nbits, _ort, _uses, common
from onnxcomp.passes.quantize._uses import Layout, Use
from onnxcomp.passes.quantize.gptq import Matrices, round_on_data

OP_TYPES = ("Gather", "Gemm", "MatMul")

#: tensors of this many bytes and more are computed when they are written
_LAZY_FROM = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Store weights in 8 or 4 bits, a scale for each block, and compute in float; better with data, needs none.

    For decoders that make one token at a time, where reading weights is the work. Not for encoders
    over long sequences, nor for CNNs: see `quantize-dynamic` and `quantize-static`.

    Rules:
        1. MatMul by a stored matrix becomes MatMulNBits of com.microsoft; so does a Gemm with
           alpha = beta = 1 and transA = 0, an Add behind it for its bias.
        2. Gather from a stored table becomes GatherBlockQuantized: only rows that are looked up are
           widened. With 8 bits a table has one scale a row.
        3. A tied table is stored once for each way of reading it.
        4. Left in float, with the reason: other operators, weights with a use that must stay in
           float (no second copy is made), those that would not get smaller.

    The scale of a block is the one of eight with the least mean-square error (`search`); ORT's own
    quantizer rounds to nearest.

    With data, matrices of MatMul and Gemm are rounded so that the outputs on it change least: what a column
    loses, those behind it make good (`gptq`; Frantar et al. 2022, arXiv:2210.17323). Not those that several
    nodes multiply with or that stand in a subgraph, nor those where that gains nothing; tables never.
    """

    name: ClassVar[str] = "quantize-weights"
    wants_data: ClassVar[bool] = True

    bits: Literal[4, 8] = option(8, "bits of a weight")
    block_size: Literal[16, 32, 64, 128, 256] = option(
        32, "weights that share a scale; more: smaller, faster, less accurate"
    )
    symmetric: bool = option(False, "no zero points; a little smaller, with 4 bits less accurate")
    accuracy_level: Literal[0, 4] = option(
        4,
        "what MatMulNBits computes in: 4 rounds activations to int8, block by block; 0 computes in float, "
        "and with 8 bits is many times slower than the float model",
    )
    search: bool = option(True, "try eight scales for a block; off: the one that its largest value asks for")
    gptq: bool = option(True, "with data, round with error feedback (GPTQ); off: each weight to the nearest")
    op_types: tuple[str, ...] = option(OP_TYPES, "operator types to quantize")
    exclude: tuple[str, ...] = option((), "nodes, or torch modules ('encoder.layer.3'), to leave in float")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises what `common.prepare` raises but for float16; NoEffectError when no weight could be quantized.

        With data also CalibrationError, for NaN and infinity on it.
        """
        for op in self.op_types:
            if op not in OP_TYPES:
                hint = nearest(op, OP_TYPES) or f"it knows {', '.join(OP_TYPES)}"
                raise UsageError(f"quantize-weights does not know '{op}'", where="op_types", hint=hint)
        if self.bits == 8 and not self.accuracy_level:
            context.note("8 bits with accuracy_level 0 run many times slower than the float model; 4 does not")
        kept, fragile = common.prepare(model, context, self.exclude, float16=True)
        request = _ort.Request(op_types=self.op_types, exclude=(*kept, *fragile), per_channel=True, reduce_range=False)
        ledger = common.account(model, request, fragile)
        reasons, plans = {}, {}
        for weight in ledger.weights:
            plan = self._plan(weight.value, weight.tensor, ledger)
            if isinstance(plan, str):
                reasons[weight.node.name or weight.node.op_type] = plan
            else:
                plans[weight.value] = weight.tensor, plan
        details: dict[str, Any] = {"bits": self.bits, "block_size": self.block_size}
        rounded: dict[ir.Node, _nbits.Blocks] = {}
        matrices = self._multiplied(model, plans, context) if self.gptq and context.data is not None else {}
        if matrices:
            rounded, details["gptq"] = round_on_data(model, matrices, context, **self._form)
        for value, (tensor, plan) in plans.items():
            self._replace(value, tensor, plan, rounded)
        settled = dataclasses.replace(ledger, reasons=reasons).settle(model)
        common.finish(model, model, settled)
        model.opset_imports[_uses.MICROSOFT] = 1
        drop_inner_shapes(model)
        return Effect(True, {**settled, **details})

    @property
    def _form(self) -> dict[str, Any]:
        """How a matrix is cut and rounded."""
        return {"bits": self.bits, "size": self.block_size, "symmetric": self.symmetric, "search": self.search}

    def _multiplied(
        self, model: ir.Model, plans: Mapping[ir.Value, tuple[ir.TensorProtocol, list[Use]]], context: Context
    ) -> Matrices:
        """{node: its matrix} of those that one node of the main graph multiplies with."""
        inputs = {spec.name for spec in models.signature(model).inputs}
        found: dict[ir.Node, Callable[[], np.ndarray]] = {}
        for tensor, plan in plans.values():
            for layout in dict.fromkeys(use.layout for use in plan if use.layout != "table"):
                node, *others = [use.node for use in plan if use.layout == layout]
                rows = node.inputs[0]
                made = rows is not None and (rows.producer() is not None or rows.name in inputs)
                if made and node.graph is model.graph and not others:
                    found[node] = functools.partial(_matrix, tensor, layout)
                else:
                    why = "several nodes multiply with it" if others else "its input is not of the main graph"
                    context.note(f"rounded to the nearest: {why}", node.name or "")
        return found

    def _plan(self, value: ir.Value, tensor: ir.TensorProtocol, ledger: common.Account) -> list[Use] | str:
        """Every use of a weight as what it becomes; or why it stays in float."""
        plan = []
        for node, index, turned in _uses.users(value):
            name = node.name or node.op_type
            if name in ledger.kept:
                return ledger.reasons.get(name, f"{name} uses it too, and stays in float")
            if node.op_type not in self.op_types or node.domain:
                return f"{node.op_type} is not among the operator types to quantize"
            use = _uses.use(node, index, turned)
            if isinstance(use, str):
                return use
            plan.append(use)
        return self._unfit(value, tensor, {use.layout for use in plan}) or plan

    def _unfit(self, value: ir.Value, tensor: ir.TensorProtocol, layouts: set[Layout]) -> str | None:
        """Why a tensor cannot be stored in blocks for uses of these kinds; or None."""
        if not value.is_initializer() or value.is_graph_output():
            return "not an initializer of its own: stored in a Constant node, or an output of the model"
        if len(tensor.shape) != 2:
            return f"{len(tensor.shape)} axes: only matrices can be stored in blocks"
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return f"weight of type {tensor.dtype.name}"
        if self.bits == 4 and "table" in layouts and tensor.shape.numpy()[1] % 2:
            return "a table with an odd number of columns cannot be stored in 4 bits"
        if sum(self._bytes(tensor, layout) for layout in layouts) >= tensor.nbytes:
            return "it would not get smaller"
        return None

    def _size(self, layout: Layout, columns: int) -> int:
        """Elements of a block. A table of 8 bits has one scale a row: the smallest that the kernel takes."""
        whole_row = layout == "table" and self.bits == 8
        return max(16, 1 << (columns - 1).bit_length()) if whole_row else self.block_size

    def _bytes(self, tensor: ir.TensorProtocol, layout: Layout) -> int:
        rows, columns = _shape(tensor, layout)
        size = self._size(layout, columns)
        blocks = -(-columns // size)
        held = columns if layout == "table" else blocks * size
        zero_points = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return rows * (held * self.bits // 8 + zero_points + blocks * tensor.dtype.numpy().itemsize)

    def _replace(
        self,
        value: ir.Value,
        tensor: ir.TensorProtocol,
        plan: list[Use],
        rounded: Mapping[ir.Node, _nbits.Blocks],
    ) -> None:
        """Put the quantized operators in the place of all users of a weight."""
        graph, name = value.graph, value.name
        assert graph is not None
        assert name is not None
        for count, layout in enumerate(dict.fromkeys(use.layout for use in plan)):
            rows, columns = _shape(tensor, layout)
            size = self._size(layout, columns)
            done = (rounded[use.node] for use in plan if use.layout == layout and use.node in rounded)
            blocks = next(done, None) or _nbits.fit(_matrix(tensor, layout), **{**self._form, "size": size})
            stored = [
                ir.Value(name=t.name, const_value=t, type=ir.TensorType(t.dtype), shape=ir.Shape(t.shape.numpy()))
                for t in _tensors(f"{name}_{layout}" if count else name, tensor, layout, blocks)
            ]
            for made in stored:
                graph.register_initializer(made)
            attributes = {"bits": self.bits, "block_size": size}
            level = {"accuracy_level": self.accuracy_level} if self.accuracy_level else {}
            for use in plan:
                if use.layout == layout == "table":
                    _uses.gather(use.node, stored, attributes)
                elif use.layout == layout:
                    _uses.multiply(use.node, stored, {"K": columns, "N": rows, **attributes, **level})
        for node in [use.node for use in value.uses()]:  # only Transposes are left, which nobody reads
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        del graph.initializers[name]


def _shape(tensor: ir.TensorProtocol, layout: Layout) -> tuple[int, int]:
    """(rows, columns) of the matrix as it is cut into blocks, along its columns."""
    rows, columns = (int(size) for size in tensor.shape.numpy())
    return (columns, rows) if layout == "columns" else (rows, columns)


def _matrix(tensor: ir.TensorProtocol, layout: Layout) -> np.ndarray:
    array = tensor.numpy()
    return array.T if layout == "columns" else array


def _tensors(name: str, tensor: ir.TensorProtocol, layout: Layout, blocks: _nbits.Blocks) -> list[ir.TensorProtocol]:
    """Numbers, scales and, where there are, zero points; many numbers are computed when they are written."""
    rows, columns = _shape(tensor, layout)
    shape: tuple[int, ...] = (rows, *blocks.scales.shape[1:], blocks.size * blocks.bits // 8)
    if layout == "table":  # without the padding of the last block
        shape = (rows, columns * blocks.bits // 8)

    def make() -> ir.TensorProtocol:
        numbers = blocks.numbers(_matrix(tensor, layout))
        held = numbers[:, : shape[1]] if layout == "table" else numbers.reshape(shape)
        return ir.Tensor(np.ascontiguousarray(held), name=f"{name}_quantized")

    large = tensor.nbytes >= _LAZY_FROM
    numbers = ir.LazyTensor(make, ir.DataType.UINT8, ir.Shape(shape), name=f"{name}_quantized") if large else make()
    zero_points = blocks.packed_zero_points()
    tensors = [numbers, ir.Tensor(blocks.scales, name=f"{name}_scale")]
    return tensors if zero_points is None else [*tensors, ir.Tensor(zero_points, name=f"{name}_zero_point")]
