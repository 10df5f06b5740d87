"""What is known of the sizes of all values of a model, and of the values of shape computations.

Exported graphs reshape by computed shapes (`Concat(Shape(x)[0], Shape(x)[1], -1, 64)`). Whether such
a Reshape only splits the last axis shows in products of names, which onnx's shape inference does not
carry: it knows 'batch', but not 'batch * 4', and no -1 beside a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxcomp.inspect import infer_shapes
from onnxcomp.passes.fusions.size import ONE, Dims, Size, integer
from onnxcomp.passes.fusions.size_rules import DIM_RULES, NUMBER_RULES

#: larger integer tensors are data, not shapes
_LONGEST_SHAPE = 16

_SAME = {
    *("Abs", "Cast", "Clip", "CumSum", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Softmax", "Softplus", "Sqrt", "Tanh", "Trilu"),
}
_BROADCAST = {
    *("Add", "And", "BitwiseAnd", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"),
    *("Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
}
_REDUCE = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}


class Sizes:
    """The sizes of all values of a model, as far as they are known; unknown ones have names of their own.

    Equal sizes are equal in every run that the model survives: names come from the model's inputs,
    and operators fail where broadcasting does not fit.
    """

    def __init__(self, model: ir.Model) -> None:
        self._dims: dict[ir.Value, Dims | None] = {}
        self._numbers: dict[ir.Value, Dims] = {}
        self._capped: dict[str, Size] = {}
        self._fresh = 0
        infer_shapes(model)
        for node in model.graph.all_nodes():
            self._learn(node)

    def of(self, value: ir.Value | None) -> Dims | None:
        """The sizes of the axes; None where not even their number is known."""
        if value is None:
            return None
        if value not in self._dims:
            tensor = value.const_value
            shape = value.shape if tensor is None else tensor.shape
            self._dims[value] = None if shape is None else tuple(self._declared(d) for d in shape)
        return self._dims[value]

    def liken(self, new: ir.Value, old: ir.Value) -> None:
        """`new` has the sizes of `old`."""
        self._dims[new] = self.of(old)

    def numbers(self, value: ir.Value | None) -> Dims | None:
        """The elements of an integer tensor of one axis or none, where they are known."""
        if value is None:
            return None
        if value not in self._numbers and value.const_value is not None:
            tensor = value.const_value
            if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or len(tensor.shape) > 1:
                return None
            if tensor.size <= _LONGEST_SHAPE:
                self._numbers[value] = tuple(Size(int(n)) for n in tensor.numpy().reshape(-1))
        return self._numbers.get(value)

    def constants(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """`numbers` where all of them are plain."""
        found = self.numbers(value)
        plain = [] if found is None else [s.factor for s in found if s.number is not None]
        return tuple(plain) if found is not None and len(plain) == len(found) else None

    def axes(self, node: ir.Node) -> tuple[int, ...] | None:
        """The constant `axes` of a Squeeze, Unsqueeze or reduction, attribute or input."""
        if "axes" in node.attributes:
            return tuple(node.attributes["axes"].as_ints())
        return self.constants(node.inputs[1]) if len(node.inputs) > 1 else None

    def capped(self, limit: int, size: Size) -> Size:
        """min(limit, size), which beside `size` in an elementwise operator is `size`."""
        name = f"min({limit},{size.factor}*{'*'.join(size.names)})"
        self._capped[name] = size
        return Size(1, (name,))

    def unknown(self) -> Size:
        """A size with a name of its own."""
        self._fresh += 1
        return Size(1, (f"?{self._fresh}",))

    def _declared(self, dim: int | ir.SymbolicDimProtocol) -> Size:
        if isinstance(dim, int):
            return Size(dim)
        return self.unknown() if dim.value is None else Size(1, (dim.value,))

    def _learn(self, node: ir.Node) -> None:
        numbers = NUMBER_RULES[node.op_type](self, node) if not node.domain and node.op_type in NUMBER_RULES else None
        if numbers is not None and len(numbers) <= _LONGEST_SHAPE:
            self._numbers[node.outputs[0]] = numbers
        dims = None if node.domain else self._rule(node)
        for output, found in zip(node.outputs, dims or (), strict=False):
            known = self.of(output)
            if known is None or len(known) != len(found):
                self._dims[output] = found
            else:  # a number says more than a name, any name more than one that only we made up
                better = ((k if _made_up(f) or k.number is not None else f) for f, k in zip(found, known, strict=True))
                self._dims[output] = tuple(better)

    def _rule(self, node: ir.Node) -> Sequence[Dims] | None:
        inputs = [self.of(value) for value in node.inputs]
        if node.op_type in _SAME:
            return [inputs[0]] if inputs[0] is not None else None
        if node.op_type in _BROADCAST:
            known = [dims for dims in inputs if dims is not None]
            return [self.broadcast(known)] if len(known) == len(inputs) else None
        if node.op_type in _REDUCE:
            return self._reduce(node)
        rule = DIM_RULES.get(node.op_type)
        return rule(self, node) if rule is not None and inputs and inputs[0] is not None else None

    def broadcast(self, shapes: Iterable[Dims]) -> Dims:
        """The sizes of an elementwise operator's output."""
        shapes = list(shapes)
        rank = max(len(s) for s in shapes)
        padded = [(ONE,) * (rank - len(s)) + s for s in shapes]
        return tuple(self._joined(column) for column in zip(*padded, strict=True))

    def _joined(self, column: Iterable[Size]) -> Size:
        """Sizes other than 1 are equal, or the model fails; so a number among them is the size."""
        different = {self._uncapped(s) for s in column} - {ONE}
        plain = [s for s in different if s.number is not None]
        if len(different) <= 1:
            return next(iter(different), ONE)
        return plain[0] if plain else self.unknown()

    def _uncapped(self, size: Size) -> Size:
        """min(64, n) beside n in an elementwise operator is n, or the model fails."""
        return self._capped.get(size.names[0], size) if size.names and size.factor == 1 else size

    def _reduce(self, node: ir.Node) -> Sequence[Dims] | None:
        dims, axes = self.of(node.inputs[0]), self.axes(node)
        if dims is None or axes is None:
            return None
        chosen = {a % len(dims) for a in axes}
        keep = integer(node, "keepdims", 1)
        return [tuple(ONE if i in chosen else d for i, d in enumerate(dims) if keep or i not in chosen)]


def _made_up(size: Size) -> bool:
    return any(name.startswith("?") for name in size.names)
