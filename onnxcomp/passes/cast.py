"""`cast-float`: store and compute in float16, or store in bfloat16; inputs and outputs stay float32."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.errors import DataError, UnsupportedError, UsageError, nearest
from onnxcomp.inspect import all_nodes, constants
from onnxcomp.passes.base import Context, Effect, Note, Pass, drop_inner_shapes, option
from onnxcomp.passes.probe import infer_types, largest_values

_DTYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}

#: largest number and smallest normal number
_LIMITS = {"float16": (65504.0, 2.0**-14), "bfloat16": (3.3895e38, 2.0**-126)}

#: data seen later may be this much larger than what was measured
_MARGIN = 2.0

#: stored tensors of nodes that stay in float32 are stored narrow from this many elements on; a Cast costs bytes
_STORED_FROM = 256

#: tensors of this many bytes and more are rounded when they are written
_LAZY_FROM = 1 << 20

_STORED_ONLY = "ORT's CPU provider computes nothing in bfloat16: weights are stored in it, and widened at load"

#: operators that lose more than rounding in float16; weights and results stay in float32
_SENSITIVE: Mapping[str, str] = {
    "AffineGrid": "coordinates: float16 tells no more than 2048 of them apart",
    "CumSum": "a long sum: float16 stops counting at 2048",
    "DeformConv": "coordinates: float16 tells no more than 2048 of them apart",
    "GridSample": "coordinates: float16 tells no more than 2048 of them apart",
    "MeanVarianceNormalization": "squares overflow float16 above 256",
    "NonMaxSuppression": "coordinates: float16 tells no more than 2048 of them apart",
    "Range": "a sequence: float16 cannot count beyond 2048",
    "ReduceL2": "squares overflow float16 above 256",
    "ReduceLogSum": "a sum that can overflow float16 before its logarithm",
    "ReduceLogSumExp": "exponentials overflow float16 above 11",
    "ReduceSumSquare": "squares overflow float16 above 256",
    "RoiAlign": "coordinates: float16 tells no more than 2048 of them apart",
}

#: operators that ORT's CPU provider cannot run in float16, neither itself nor between Casts (found with
#: the node tests of onnx, ORT 1.32); their weights are stored in float16
_NO_KERNEL: Mapping[str, str] = {
    "BitCast": "it reads the bits of a float32",
    "ScatterElements": "ORT's CPU provider has no float16 reduction",
    "ScatterND": "ORT's CPU provider has no float16 reduction",
}

#: operators whose bodies or elements have types of their own; they see float32
_STRUCTURES = frozenset(
    {
        *("If", "Loop", "Scan", "SequenceMap", "ConcatFromSequence", "SplitToSequence"),
        *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
    }
)

#: operators that take any type and whose float inputs need no Cast
_AS_IS = frozenset({"Cast", "IsNaN", "Shape", "Size"})

#: inputs that stay in float32 although the operator's schema allows float16
_FLOAT32_INPUTS: Mapping[str, frozenset[int]] = {"Resize": frozenset({1, 2})}

#: operators whose result is small whatever they get
_BOUNDED = frozenset({"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Softsign", "Tanh"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CastFloat(Pass):
    """Halve a float32 model: float16 for weights and computation, bfloat16 for weights alone.

    Inputs and outputs keep their types, with Casts inside. Rules:
        1. Local functions are inlined; constants become initializers.
        2. float16: every node of the main graph and of subgraphs takes and gives float16 where its
           schema allows it. Inputs that must be float32 (scales of Resize) stay.
        3. A node stays in float32, with a note, if it is asked for, if it loses more than rounding
           (sums, squares, coordinates), if a weight does not fit (above 65504, or nowhere above
           6.1e-5), or if a value that it takes or makes gets above half of float16's range: measured
           on data where there is some, else followed from the weights that do not fit.
        4. If, Loop and Scan take and give float32; the nodes of their bodies are cast.
        5. Operators outside onnx's own domain, and those without a float16 kernel in ORT's CPU
           provider, compute in float32 with weights stored narrow. With bfloat16 all nodes do,
           because that provider has no bfloat16 kernels; ORT widens the weights when it loads.

    The pipeline reports the largest difference, on data or on noise, and refuses NaN and infinity. ORT's
    CPU provider computes most float16 nodes in float32 without rounding in between: a device that
    computes in float16 differs by more than what is reported here.
    """

    name: ClassVar[str] = "cast-float"
    near: ClassVar[bool] = True
    wants_data: ClassVar[bool] = True

    dtype: Literal["float16", "bfloat16"] = option("float16", "the type of the weights")
    keep_op_types: tuple[str, ...] = option((), "operator types that stay in float32")
    keep_nodes: tuple[str, ...] = option((), "names of nodes that stay in float32")

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises UsageError (unknown node or operator type), UnsupportedError (opset), DataError."""
        self._check(model)
        before = sum(tensor.nbytes for _, tensor in constants(model))
        common.InlinePass()(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        infer_types(model, context.workdir)
        plan = _Plan(self, model, self._measured(model, context))
        casting = _Casting(model, plan, _DTYPES[self.dtype])
        casting.run()
        drop_inner_shapes(model)
        common.RemoveUnusedNodesPass()(model)
        kept = [Note(n.name or n.op_type, why) for n, why in plan.kept.items() if why != _STORED_ONLY]
        if self.dtype == "bfloat16":
            context.note(_STORED_ONLY)
        context.notes.extend(kept)
        details: dict[str, Any] = {
            "dtype": self.dtype,
            "weights": casting.weights,
            "weight_bytes": {"before": before, "after": sum(tensor.nbytes for _, tensor in constants(model))},
            "nodes": {"cast": len(plan.cast), "kept": len(plan.kept)},
            "casts": casting.casts,
            "kept": [note.to_json() for note in kept],
        }
        return Effect(casting.weights > 0, details)

    def _check(self, model: ir.Model) -> None:
        nodes = list(all_nodes(model))
        names, types = {n.name for n in nodes if n.name}, {n.op_type for n in nodes}
        for name in self.keep_nodes:
            if name not in names:
                raise UsageError(f"no node '{name}' in the model", where="keep_nodes", hint=nearest(name, names))
        for op in self.keep_op_types:
            if op not in types:
                hint = nearest(op, types) or f"there are {', '.join(sorted(types))}"
                raise UsageError(f"no node of type '{op}' in the model", where="keep_op_types", hint=hint)
        opset = model.opset_imports.get("")
        if self.dtype == "bfloat16" and opset is not None and opset < 13:
            raise UnsupportedError(
                f"bfloat16 needs opset 13, the model has {opset}", hint="raise it first: upgrade-opset, or --opset"
            )

    def _measured(self, model: ir.Model, context: Context) -> Mapping[str, float] | None:
        if self.dtype != "float16" or "" not in model.opset_imports:
            return None
        if context.data is None:
            context.note("ranges were not measured: no data was given")
            return None
        try:
            return largest_values(model, context.data, context.workdir)
        except (DataError, UnsupportedError) as error:
            context.note(f"ranges were not measured: {error.message}")
            return None


class _Plan:
    """Which nodes compute in the narrow type (`cast`), and why the other ones do not (`kept`)."""

    def __init__(self, request: CastFloat, model: ir.Model, largest: Mapping[str, float] | None) -> None:
        self._request, self._largest = request, largest
        self._opset = model.opset_imports.get("", 0)
        self._wide: set[ir.Value] = set()
        self._magnitudes: dict[ir.Value, float] = {}
        self.cast: dict[ir.Node, _Roles] = {}
        self.kept: dict[ir.Node, str] = {}
        self._exact: set[ir.Node] = set()
        for node in all_nodes(model):
            self._decide(node)

    def _decide(self, node: ir.Node) -> None:
        floats = [v for v in (*node.inputs, *node.outputs) if v is not None and _is_float32(v)]
        overflowing = self._overflowing(node)
        if not floats or node.op_type in _STRUCTURES:
            return
        if reason := self._asked(node) or self._range(node, overflowing):
            self.kept[node] = reason
            self._exact.add(node)
        elif reason := self._unsuited(node):
            self.kept[node] = reason
        elif node.op_type not in _AS_IS or (node.op_type == "Cast" and node.outputs[0] in floats):
            roles = _Roles.of(node, self._opset)
            if roles.inputs or roles.outputs:
                self.cast[node] = roles
            elif node.op_type not in _AS_IS:
                self.kept[node] = f"{node.op_type} takes no float16 in opset {self._opset}"

    def _asked(self, node: ir.Node) -> str | None:
        if node.name in self._request.keep_nodes or node.op_type in self._request.keep_op_types:
            return "asked for"
        return None if node.domain or self._request.dtype == "bfloat16" else _SENSITIVE.get(node.op_type)

    def _unsuited(self, node: ir.Node) -> str | None:
        if self._request.dtype == "bfloat16":
            return _STORED_ONLY
        if node.domain:
            return f"{node.domain}::{node.op_type} may have no float16 kernel"
        if node.op_type in _NO_KERNEL:
            return _NO_KERNEL[node.op_type]
        if any(v is not None and v.name and v.type is None and v.const_value is None for v in node.inputs):
            return "the type of an input or output is not known"
        return None

    def _range(self, node: ir.Node, overflowing: bool) -> str | None:
        top, tiny = _LIMITS[self._request.dtype]
        for value in node.inputs:
            if value is None:
                continue
            largest = self._magnitude(value)
            if largest > top:
                return f"weight {value.name} holds {largest:.3g}, beyond {self._request.dtype}"
            if 0 < largest < tiny:
                return f"weight {value.name} holds nothing above {largest:.3g}, too small for {self._request.dtype}"
        if not overflowing:
            return None
        names = [v.name or "" for v in (*node.inputs, *node.outputs) if v is not None and v in self._wide]
        known = [self._largest[name] for name in names if self._largest and name in self._largest]
        return f"values up to {max(known):.3g}" if known else "values may get beyond float16's range"

    def _overflowing(self, node: ir.Node) -> bool:
        """Whether a value that the node takes or makes is too large; its outputs are remembered."""
        if self._request.dtype == "bfloat16":
            return False
        top, _ = _LIMITS[self._request.dtype]
        taken = [v for v in node.inputs if v is not None]
        self._wide.update(v for v in taken if self._measured(v) is not None and self._too_large(v))
        wide = any(v in self._wide for v in taken)
        spreads = node.op_type not in _BOUNDED and (wide or any(self._magnitude(v) > top for v in taken))
        for value in node.outputs:
            unmeasured = self._measured(value) is None
            if _is_float32(value) and (spreads if unmeasured else self._too_large(value)):
                self._wide.add(value)
        return wide or any(v in self._wide for v in node.outputs)

    def _measured(self, value: ir.Value) -> float | None:
        return None if self._largest is None else self._largest.get(value.name or "")

    def _too_large(self, value: ir.Value) -> bool:
        """Infinity is no reason: it is what a mask holds, and float16 has it."""
        top, _ = _LIMITS[self._request.dtype]
        return top / _MARGIN < (self._measured(value) or 0.0) < np.inf

    def _magnitude(self, value: ir.Value) -> float:
        """Largest finite absolute value of a float32 weight, else 0."""
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not tensor.size:
            return 0.0
        if value not in self._magnitudes:
            array = tensor.numpy()
            largest = max(float(array.max()), -float(array.min()))
            if not np.isfinite(largest):
                largest = float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))
            self._magnitudes[value] = largest
        return self._magnitudes[value]

    def bears(self, node: ir.Node) -> bool:
        """Whether a node that computes in float32 takes weights that were stored narrow."""
        return node in self.kept and node not in self._exact


@dataclasses.dataclass(frozen=True)
class _Roles:
    """Positions of a node's inputs and outputs that become narrow."""

    inputs: frozenset[int]
    outputs: frozenset[int]

    @staticmethod
    def of(node: ir.Node, opset: int) -> _Roles:
        """From onnx's schema: every float32 position whose type may be float16."""
        if node.op_type == "Cast":
            return _Roles(frozenset(), frozenset({0}))
        takes, gives = _float16_positions(node.op_type, opset, len(node.inputs), len(node.outputs))
        narrow = frozenset(i for i, v in enumerate(node.inputs) if v is not None and _is_float32(v))
        made = frozenset(i for i, v in enumerate(node.outputs) if _is_float32(v))
        return _Roles(narrow & takes - _FLOAT32_INPUTS.get(node.op_type, frozenset()), made & gives)


@functools.cache
def _float16_positions(op_type: str, opset: int, inputs: int, outputs: int) -> tuple[frozenset[int], frozenset[int]]:
    from onnx import defs

    try:
        schema = defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        return frozenset(), frozenset()
    allowed = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}

    def positions(formal: Any, count: int) -> frozenset[int]:
        return frozenset(i for i in range(count) if formal and formal[min(i, len(formal) - 1)].type_str in allowed)

    return positions(schema.inputs, inputs), positions(schema.outputs, outputs)


class _Casting:
    """Rewrites the graphs as planned; a value is cast once, right behind the node that makes it."""

    def __init__(self, model: ir.Model, plan: _Plan, dtype: ir.DataType) -> None:
        self._model, self._plan, self._dtype = model, plan, dtype
        self._suffix = f"_{dtype.name.lower()}"
        self._names = {v.name for g in model.graphs() for v in (*g.inputs, *g.initializers.values())}
        self._names |= {v.name for node in all_nodes(model) for v in node.outputs}
        self._narrow = {node.outputs[i] for node, roles in plan.cast.items() for i in roles.outputs}
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.weights = self.casts = 0

    def run(self) -> None:
        """Weights, then nodes, then the outputs of every graph."""
        nodes = list(all_nodes(self._model))
        uses: dict[ir.Value, list[tuple[ir.Node, int]]] = collections.defaultdict(list)
        for node in nodes:
            for i, value in enumerate(node.inputs):
                if value is not None and _is_float32(value):
                    uses[value].append((node, i))
        for node in self._plan.cast:
            _set_type_attribute(node, self._dtype)
            for value in node.outputs:
                if value in self._narrow:
                    value.type = ir.TensorType(self._dtype)
        outputs = {v for graph in self._model.graphs() for v in graph.outputs}
        for value, users in uses.items():
            if value.const_value is not None and value.is_initializer():
                self._weight(value, users, keep=value in outputs)
            else:
                for node, i in users:
                    self._connect(node, i, value)
        for graph in self._model.graphs():
            self._widen_outputs(graph)

    def _wanted(self, node: ir.Node, index: int, value: ir.Value) -> ir.DataType:
        """The type in which a node takes an input that is float32 in the model as it was."""
        roles = self._plan.cast.get(node)
        if roles is not None and index in roles.inputs:
            return self._dtype
        if node.op_type in _AS_IS and not node.domain:
            return self._dtype if value in self._narrow else ir.DataType.FLOAT
        return ir.DataType.FLOAT

    def _connect(self, node: ir.Node, index: int, value: ir.Value) -> None:
        wanted = self._wanted(node, index, value)
        have = self._dtype if value in self._narrow else ir.DataType.FLOAT
        if wanted != have:
            node.replace_input_with(index, self._cast(value, wanted))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        made = self._made.get((value, dtype))
        if made is None:
            suffix = self._suffix if dtype == self._dtype else "_float32"
            cast = ir.node("Cast", [value], {"to": dtype})
            made = cast.outputs[0]
            made.name, made.type, made.shape = self._name(f"{value.name}{suffix}"), ir.TensorType(dtype), value.shape
            cast.name = made.name
            _place(cast, value)
            self._made[value, dtype] = made
            self.casts += 1
        return made

    def _weight(self, value: ir.Value, users: list[tuple[ir.Node, int]], *, keep: bool) -> None:
        """Store a weight narrow for the nodes that take it so, and for the others if they can bear it."""
        tensor = value.const_value
        assert tensor is not None
        narrow = [(node, i) for node, i in users if self._wanted(node, i, value) == self._dtype]
        wide = [(node, i) for node, i in users if (node, i) not in narrow]
        bearing = tensor.size >= _STORED_FROM and all(self._plan.bears(node) for node, _ in wide)
        if not narrow and (keep or not bearing):
            return
        self.weights += 1
        stored = _narrowed(tensor, self._dtype)
        if not keep and (bearing or not wide):
            value.const_value, value.type = stored, ir.TensorType(self._dtype)
            self._narrow.add(value)
            for node, i in wide:
                node.replace_input_with(i, self._cast(value, ir.DataType.FLOAT))
            return
        copy = ir.Value(name=self._name(f"{value.name}{self._suffix}"), const_value=stored)
        copy.type, copy.shape = ir.TensorType(self._dtype), value.shape
        assert value.graph is not None
        value.graph.register_initializer(copy)
        for node, i in narrow:
            node.replace_input_with(i, copy)

    def _widen_outputs(self, graph: ir.Graph) -> None:
        """An output keeps its name and type; what the node makes gets another name."""
        for i, value in enumerate(graph.outputs):
            if value in self._narrow:
                name = value.name
                value.name = self._name(f"{name}{self._suffix}")
                wide = self._cast(value, ir.DataType.FLOAT)
                wide.name = name
                graph.outputs[i] = wide

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name


def _is_float32(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.type.dtype == ir.DataType.FLOAT


def _place(cast: ir.Node, value: ir.Value) -> None:
    """Put a Cast of `value` right behind the node that makes it, or in front of the graph."""
    producer = value.producer()
    graph = value.graph if producer is None else producer.graph
    assert graph is not None
    if producer is not None:
        graph.insert_after(producer, cast)
    elif len(graph):
        graph.insert_before(graph[0], cast)
    else:
        graph.append(cast)


def _set_type_attribute(node: ir.Node, dtype: ir.DataType) -> None:
    """The two operators whose type stands in an attribute."""
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(dtype))
    elif node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        fill = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(fill.astype(dtype.numpy()), dtype=dtype))


def _narrowed(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """The tensor rounded to `dtype`; a large one is rounded when it is written."""

    def make() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(dtype.numpy()), name=tensor.name, dtype=dtype)

    if tensor.nbytes < _LAZY_FROM:
        return make()
    return ir.LazyTensor(make, dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)
