"""Seeded random graphs of the operators that structured pruning has rules for."""

from __future__ import annotations

import math

import builders
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Elu", "Softplus", "Neg", "Identity", "Abs")


class RandomGraph:
    """One graph, grown node by node from `seed`; `model()` gives it.

    Values are images (batch, channels, 8, 8), sequences (batch, steps, width) or rows (batch, width); the
    batch is open or 2. Weights are initializers, Constant nodes, or inputs with a default; some are used twice.
    """

    def __init__(self, seed: int, steps: int = 9) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice([13, 15, 17, 18, 20]))
        self.batch = "N" if self.rng.random() < 0.7 else 2
        self.half = self.rng.random() < 0.1
        self.listed = self.rng.random() < 0.1
        self.nodes, self.weights, self.inputs = [], {}, []
        self.live: list[tuple[str, tuple[int, ...]]] = []
        kind = self.rng.choice(["image", "rows", "sequence", "ids"], p=[0.45, 0.2, 0.25, 0.1])
        self.start(str(kind))
        for _ in range(steps):
            self.grow()

    def start(self, kind: str) -> None:
        """The input, and one layer that makes it wide."""
        shape = {"image": (3, 8, 8), "rows": (5,), "sequence": (4, 6), "ids": (4,)}[kind]
        dtype = TensorProto.INT64 if kind == "ids" else self.dtype
        self.inputs.append(builders.value("x", self.batch, *shape, dtype=dtype))
        if kind == "ids":
            self.live.append((self.node("Gather", self.weight(11, 12), "x"), (4, 12)))
        else:
            self.live.append(("x", shape))
            self.linear(*self.live[0])

    @property
    def dtype(self) -> int:
        return TensorProto.FLOAT16 if self.half else TensorProto.FLOAT

    def pick(self, *choices):
        """One of them."""
        return choices[int(self.rng.integers(len(choices)))]

    def node(self, op_type: str, *inputs: str, outputs: int = 1, **attributes) -> str:
        """Add a node; the name of its output, or a list of them."""
        number = len(self.nodes)
        names = [f"v{number}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"{op_type}_{number}", **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, low: float | None = None) -> str:
        """A float weight; now and then one that another node has."""
        same = [n for n, a in self.weights.items() if a.shape == shape and a.dtype.kind == "f" and low is None]
        if same and self.rng.random() < 0.2:
            return self.pick(*same)
        array = self.rng.standard_normal(shape) / math.sqrt(max(math.prod(shape[1:]) or 1, 1) if len(shape) > 1 else 4)
        if low is not None:
            array = np.abs(array) + low
        return self.store(array.astype(np.float16 if self.half else np.float32))

    def store(self, array) -> str:
        """An initializer, or a Constant node."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def ints(self, *numbers: int) -> str:
        """int64."""
        return self.store(np.array(numbers, np.int64))

    def grow(self) -> None:
        """One more operation on one of the last values."""
        name, shape = self.live[-1] if self.rng.random() < 0.7 else self.pick(*self.live)
        kinds = {3: _IMAGE, 2: _SEQUENCE, 1: _ROWS}[len(shape)]
        operation = self.pick(*kinds, *_ANY, RandomGraph.linear, RandomGraph.linear)
        made = operation(self, name, shape)
        for value, size in made if isinstance(made, list) else [made] if made else []:
            self.live.append((value, size))

    # what works on any value ------------------------------------------------------------------------

    def linear(self, name, shape):
        """A layer of the kind that fits."""
        width = self.pick(4, 6, 8, 12)
        if len(shape) == 3:
            kernel = self.pick(1, 3)
            inputs = [name, self.weight(width, shape[0], kernel, kernel)]
            inputs += [self.weight(width)] if self.rng.random() < 0.5 else []
            made = self.node("Conv", *inputs, pads=[kernel // 2] * 4)
            self.live.append((made, (width, *shape[1:])))
        elif len(shape) == 1 and self.rng.random() < 0.5:
            turned = int(self.rng.integers(2))
            sizes = (width, shape[0]) if turned else (shape[0], width)
            inputs = [name, self.weight(*sizes)] + ([self.weight(width)] if self.rng.random() < 0.6 else [])
            self.live.append((self.node("Gemm", *inputs, transB=turned, alpha=0.5), (width,)))
        else:
            weight = self.weight(shape[-1], width)
            if self.rng.random() < 0.2:
                weight = self.node("Transpose", self.weight(width, shape[-1]), perm=[1, 0])
            self.live.append((self.node("MatMul", name, weight), (*shape[:-1], width)))

    def activation(self, name, shape):
        """Elementwise."""
        kind = self.pick(*_ACTIVATIONS)
        return self.node("Relu" if kind == "HardSwish" and self.opset < 14 else kind, name), shape

    def scaled(self, name, shape):
        """Times or plus something that is broadcast."""
        sizes = [self.pick(size, size, 1) for size in shape]
        sizes = sizes[self.pick(0, 0, len(sizes) - 1) :]
        return self.node(self.pick("Mul", "Add", "Sub"), *self.order(name, self.weight(*sizes))), shape

    def order(self, first, second):
        """Either way round."""
        return self.pick((first, second), (second, first))

    def residual(self, name, shape):
        """With another value of that shape."""
        others = [n for n, s in self.live if s == shape and n != name]
        if others:
            return self.node(self.pick("Add", "Add", "Mul", "Max"), *self.order(name, self.pick(*others))), shape
        return None

    def chosen(self, name, shape):
        """Where; PRelu; Clip."""
        zero = self.store(np.array(0, np.float16 if self.half else np.float32))
        kind = self.pick("Where", "PRelu", "Clip")
        if kind == "Where":
            other = self.pick(name, *[n for n, s in self.live if s == shape], zero)
            return self.node("Where", self.node("Greater", name, zero), *self.order(name, other)), shape
        if kind == "PRelu":
            return self.node("PRelu", name, self.weight(*self.pick(shape, (shape[0], *[1] * (len(shape) - 1))))), shape
        return self.node("Clip", name, zero), shape

    def joined(self, name, shape):
        """Concat along some axis."""
        axis = self.pick(0, 0, len(shape) - 1)
        fits = [(n, s) for n, s in self.live if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == _but(shape, axis)]
        other, size = self.pick(*fits)
        whole = (*shape[:axis], shape[axis] + size[axis], *shape[axis + 1 :])
        return (self.node("Concat", name, other, axis=self.pick(axis + 1, axis - len(shape))), whole)

    def parted(self, name, shape):
        """Split; the parts go on, or gate each other."""
        axis = self.pick(0, len(shape) - 1)
        if shape[axis] < 2:
            return None
        first = self.pick(shape[axis] // 2, max(shape[axis] // 3, 1))
        sizes = (first, shape[axis] - first)
        parts = self.node("Split", name, self.ints(*sizes), outputs=2, axis=axis + 1)
        made = [(p, (*shape[:axis], s, *shape[axis + 1 :])) for p, s in zip(parts, sizes, strict=True)]
        if sizes[0] == sizes[1] and self.rng.random() < 0.5:
            gate = self.node("Sigmoid", parts[1])
            return self.node("Mul", parts[0], gate), made[0][1]
        return made

    def sliced(self, name, shape):
        """A run of some axis."""
        axis = self.pick(0, len(shape) - 1)
        low = int(self.rng.integers(0, shape[axis]))
        high = int(self.rng.integers(low + 1, shape[axis] + 1))
        start = self.pick(low, low - shape[axis])
        end = 2**31 if high == shape[axis] else self.pick(high, high - shape[axis])
        made = self.node("Slice", name, self.ints(start), self.ints(end), self.ints(axis + 1))
        return made, (*shape[:axis], high - low, *shape[axis + 1 :])

    def normalized(self, name, shape):
        """Softmax, LayerNormalization over the last axis, a Reduce with its axis kept."""
        kind = self.pick("Softmax", "LayerNormalization", "ReduceMax")
        if kind == "Softmax":
            return self.node("Softmax", name, axis=-1), shape
        if kind == "LayerNormalization" and self.opset >= 17:
            return self.node(kind, name, self.weight(shape[-1]), self.weight(shape[-1]), axis=-1), shape
        axis = int(self.rng.integers(1, len(shape) + 1))
        reduced = (
            self.node("ReduceMax", name, self.ints(axis))
            if self.opset >= 18
            else self.node("ReduceMax", name, axes=[axis])
        )
        return self.node("Sub", name, reduced), shape

    def moved(self, name, shape):
        """To and fro: a Reshape that parts an axis, a shuffle, a Transpose, Unsqueeze and Squeeze."""
        if shape[0] % 2 == 0 and self.rng.random() < 0.5:
            rest = shape[1:]
            parts = self.node("Reshape", name, self.ints(0, 2, shape[0] // 2, *rest))
            turned = self.node("Transpose", parts, perm=[0, 2, 1, *range(3, 3 + len(rest))])
            back = self.pick(turned, self.node("Relu", parts))
            return self.node("Reshape", back, self.ints(*self.pick((0, shape[0]), (0, -1)), *rest)), shape
        longer = self.node("Unsqueeze", name, self.ints(self.pick(1, -1, 2)))
        return self.node("Reshape", self.node("Tanh", longer), self.ints(-1, *shape)), shape

    def flat(self, name, shape):
        """To rows."""
        size = math.prod(shape)
        if size > 1024:
            return None
        flat = self.pick("Flatten", "Reshape", "-1")
        made = (
            self.node("Flatten", name)
            if flat == "Flatten"
            else self.node("Reshape", name, self.ints(0, size if flat == "Reshape" else -1))
        )
        return made, (size,)

    def computed(self, name, shape):
        """A Reshape to a shape that the graph reads off: two axes, then back."""
        if shape[0] % 2:
            return None
        sizes = self.node("Shape", name)
        first = self.node("Slice", sizes, self.ints(0), self.ints(1))
        rest = [self.node("Gather", sizes, self.ints(i)) for i in range(2, len(shape) + 1)]
        two = self.node("Concat", first, self.ints(2, shape[0] // 2), *rest, axis=0)
        parts = self.node("Relu", self.node("Reshape", name, two))
        whole = self.pick(self.node("Identity", sizes), self.node("Concat", first, self.ints(-1), *rest, axis=0))
        return self.node("Reshape", parts, whole), shape

    def repeated(self, name, shape):
        """Expand of one index along an axis, beside the whole."""
        mean = (
            self.node("ReduceMean", name, self.ints(1)) if self.opset >= 18 else self.node("ReduceMean", name, axes=[1])
        )
        wide = self.pick(self.node("Expand", mean, self.ints(1, *shape)), mean)
        return self.node("Add", *self.order(name, wide)), shape

    # images ------------------------------------------------------------------------------------------

    def grouped(self, name, shape):
        """Grouped, depthwise (also twice as wide) and transposed convolutions."""
        width = shape[0]
        groups = self.pick(width, width, 2)
        if width % groups or width < 2:
            return None
        if self.rng.random() < 0.3:
            plain = self.pick(1, groups)
            made = self.node("ConvTranspose", name, self.weight(width, 8 // self.pick(2, 4), 1, 1), group=plain)
            return made, (self.weights[self.nodes[-1].input[1]].shape[1] * plain, *shape[1:])
        out = groups * self.pick(1, 2, max(width // groups, 1))
        inputs = [name, self.weight(out, width // groups, 3, 3)] + ([self.weight(out)] if self.pick(0, 1) else [])
        return self.node("Conv", *inputs, group=groups, pads=[1] * 4), (out, *shape[1:])

    def batch_norm(self, name, shape):
        """BatchNormalization or InstanceNormalization."""
        two = self.weight(shape[0]), self.weight(shape[0])
        if self.rng.random() < 0.2:
            return self.node("InstanceNormalization", name, *two), shape
        return self.node("BatchNormalization", name, *two, self.weight(shape[0]), self.weight(shape[0], low=0.5)), shape

    def pooled(self, name, shape):
        """Pooling of neighbours, or of all."""
        if min(shape[1:]) < 2:
            return None
        if self.rng.random() < 0.5:
            kind = self.pick("MaxPool", "AveragePool")
            made = self.node(kind, name, kernel_shape=[3, 3], pads=[1] * 4)
            return made, shape
        made = self.node(self.pick("GlobalAveragePool", "GlobalMaxPool"), name)
        return self.pick((made, (shape[0], 1, 1)), self.flat(made, (shape[0], 1, 1)))

    def excited(self, name, shape):
        """Squeeze and excite."""
        pooled = self.node("GlobalAveragePool", name)
        narrow = self.node("Relu", self.node("Conv", pooled, self.weight(4, shape[0], 1, 1)))
        gate = self.node("Sigmoid", self.node("Conv", narrow, self.weight(shape[0], 4, 1, 1)))
        return self.node("Mul", *self.order(name, gate)), shape

    def resized(self, name, shape):
        """Resize there and a Slice back; Pad and a pooling back."""
        if shape[1] != 8:
            return None
        if self.rng.random() < 0.5:
            scales = self.store(np.array([1, 1, 2, 2], np.float32))
            larger = self.node("Resize", name, "", scales, mode="nearest")
            return self.node("MaxPool", larger, kernel_shape=[2, 2], strides=[2, 2]), shape
        padded = self.node("Pad", name, self.ints(0, 0, 1, 1, 0, 0, 1, 1))
        return self.node("AveragePool", padded, kernel_shape=[3, 3]), shape

    def last(self, name, shape):
        """Channels last, as a sequence of pixels."""
        if shape[1] * shape[2] > 64:
            return None
        joined = self.node("Reshape", name, self.ints(0, shape[0], -1))
        return self.node("Transpose", joined, perm=[0, 2, 1]), (shape[1] * shape[2], shape[0])

    # sequences ---------------------------------------------------------------------------------------

    def attention(self, name, shape):
        """Heads; queries, keys and values by three matrices or by one and a Split."""
        steps, width = shape
        heads, each = self.pick((2, 3), (4, 2), (3, 4))
        total = heads * each
        if self.rng.random() < 0.5:
            three = [self.node("MatMul", name, self.weight(width, total)) for _ in range(3)]
        else:
            packed = self.node("MatMul", name, self.weight(width, 3 * total))
            three = self.node("Split", packed, self.ints(total, total, total), outputs=3, axis=-1)
        shaped = [self.node("Reshape", v, self.ints(0, self.pick(0, steps, -1), heads, each)) for v in three]
        q, k, v = (
            self.node("Transpose", s, perm=p)
            for s, p in zip(shaped, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scores = self.node("Softmax", self.node("MatMul", q, k), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", scores, v), perm=[0, 2, 1, 3])
        joined = self.node("Reshape", mixed, self.ints(0, 0, total))
        return self.node("MatMul", joined, self.weight(total, width)), shape

    def pixels(self, name, shape):
        """As an image of one column."""
        return self.node("Unsqueeze", self.node("Transpose", name, perm=[0, 2, 1]), self.ints(3)), (*shape[::-1], 1)

    def mean(self, name, shape):
        """Over the steps."""
        made = (
            self.node("ReduceMean", name, self.ints(1), keepdims=0)
            if self.opset >= 18
            else self.node("ReduceMean", name, axes=[1], keepdims=0)
        )
        return made, shape[1:]

    def gated(self, name, shape):
        """Two matrices that gate each other."""
        up, gate = (self.node("MatMul", name, self.weight(shape[-1], 8)) for _ in range(2))
        product = self.node("Mul", up, self.node("Sigmoid", gate))
        return self.node("MatMul", product, self.weight(8, shape[-1])), shape

    def model(self) -> onnx.ModelProto:
        """The last value, and now and then one before it, are the outputs."""
        ends = [self.live[-1]]
        if self.rng.random() < 0.3:
            ends.append(self.pick(*self.live))
        outputs = []
        for i, end in enumerate(ends):
            if self.rng.random() < 0.7:  # something reads it
                self.linear(*end)
                end = self.live[-1]  # noqa: PLW2901 - the layer's output
            last, shape = end
            self.nodes.append(helper.make_node("Identity", [last], [f"y{i}"], name=f"end{i}"))
            outputs.append(builders.value(f"y{i}", self.batch, *shape, dtype=self.dtype))
        tensors, nodes = [], []
        for name, array in self.weights.items():
            tensor = numpy_helper.from_array(array, name)
            if self.rng.random() < 0.1:
                nodes.append(helper.make_node("Constant", [], [name], value=tensor))
                continue
            tensors.append(tensor)
            if self.listed:
                self.inputs.append(builders.value(name, *array.shape, dtype=tensor.data_type))
        made = builders.model(nodes + self.nodes, self.inputs, outputs, tensors, opset=self.opset)
        onnx.checker.check_model(made, full_check=True)
        return made


def _but(shape, axis):
    return shape[:axis] + shape[axis + 1 :]


_ANY = [
    RandomGraph.activation,
    RandomGraph.activation,
    RandomGraph.chosen,
    RandomGraph.computed,
    RandomGraph.flat,
    RandomGraph.joined,
    RandomGraph.moved,
    RandomGraph.normalized,
    RandomGraph.parted,
    RandomGraph.repeated,
    RandomGraph.residual,
    RandomGraph.residual,
    RandomGraph.scaled,
    RandomGraph.sliced,
]
_IMAGE = [
    RandomGraph.batch_norm,
    RandomGraph.excited,
    RandomGraph.grouped,
    RandomGraph.grouped,
    RandomGraph.last,
    RandomGraph.pooled,
    RandomGraph.resized,
]
_SEQUENCE = [RandomGraph.attention, RandomGraph.gated, RandomGraph.mean, RandomGraph.pixels]
_ROWS = [RandomGraph.gated]
