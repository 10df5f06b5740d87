"""Small graphs of every kind that structured pruning has a rule for, with the groups that it must find."""

from __future__ import annotations

import builders
import numpy as np
import onnx
from onnx import numpy_helper, parser

#: name -> (graph in ONNX's text form, initializers by name: shape or array, units of each group, opset)
CUT = {
    "conv": (
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1, b1)
            n = BatchNormalization (a, g, b, m, v)
            r = Relu (n)
            c = Conv (r, w2)
            p = GlobalAveragePool (c)
            f = Flatten (p)
            y = Gemm <transB=1, alpha=0.5, beta=2.0> (f, w3, b3)
        }""",
        {
            "w1": (8, 3, 3, 3), "b1": (8,), "g": (8,), "b": (8,), "m": (8,), "v": np.linspace(0.5, 2, 8),
            "w2": (6, 8, 3, 3), "w3": (5, 6), "b3": (5,),
        },
        [8, 6], 17,
    ),
    "residual": (
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1)
            i = Conv <pads=[1,1,1,1]> (a, w2)
            r = Relu (i)
            j = Conv <pads=[1,1,1,1]> (r, w3)
            s = Add (a, j)
            t = LeakyRelu (s)
            y = Conv (t, w4)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (6, 8, 3, 3), "w3": (8, 6, 3, 3), "w4": (5, 8, 1, 1)},
        [8, 6], 17,
    ),
    "depthwise": (
        """(float[N,3,8,8] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1)
            d = Conv <group=8> (a, w2, b2)
            c = Clip (d, low, high)
            y = Conv (c, w3)
        }""",
        {
            "w1": (8, 3, 1, 1), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (5, 8, 1, 1), "low": np.float32(0),
            "high": np.float32(6),
        },
        [8], 17,
    ),
    "depthwise twice as wide": (
        """(float[N,3,8,8] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1)
            d = Conv <group=4> (a, w2)
            y = Conv (d, w3)
        }""",
        {"w1": (4, 3, 1, 1), "w2": (8, 1, 3, 3), "w3": (5, 8, 1, 1)},
        [4], 17,
    ),
    "grouped": (
        """(float[N,3,8,8] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1)
            d = Conv <group=2> (a, w2, b2)
            y = Conv (d, w3)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (12, 4, 3, 3), "b2": (12,), "w3": (5, 12, 1, 1)},
        [4, 6], 17,
    ),
    "transposed": (
        """(float[N,3,4,4] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1)
            u = ConvTranspose <strides=[2,2]> (a, w2, b2)
            y = Conv (u, w3)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (8, 6, 2, 2), "b2": (6,), "w3": (5, 6, 1, 1)},
        [8, 6], 17,
    ),
    "transposed depthwise": (
        """(float[N,3,4,4] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1)
            u = ConvTranspose <strides=[2,2], group=8> (a, w2, b2)
            y = Conv (u, w3)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (8, 1, 2, 2), "b2": (8,), "w3": (5, 8, 1, 1)},
        [8], 17,
    ),
    "transposed grouped": (
        """(float[N,3,4,4] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1)
            u = ConvTranspose <strides=[2,2], group=2> (a, w2, b2)
            y = Conv (u, w3)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (8, 3, 2, 2), "b2": (6,), "w3": (5, 6, 1, 1)},
        [4, 3], 17,
    ),
    "concat": (
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1)
            b = Conv (x, w2)
            c = Concat <axis=1> (a, b)
            y = Conv (c, w3)
        }""",
        {"w1": (4, 3, 1, 1), "w2": (6, 3, 1, 1), "w3": (5, 10, 1, 1)},
        [4, 6], 17,
    ),
    "split, opset 11": (
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1)
            l, r = Split <axis=1> (a)
            s = Sigmoid (r)
            m = Mul (l, s)
            y = Conv (m, w2)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (5, 4, 1, 1)},
        [4], 11,
    ),
    "split in uneven parts": (
        """(float[N,3] x) => (float[N,5] y, float[N,5] z) {
            a = MatMul (x, w1)
            l, r = Split <axis=-1> (a, parts)
            y = MatMul (l, w2)
            z = MatMul (r, w3)
        }""",
        {"w1": (3, 10), "parts": np.array([4, 6]), "w2": (4, 5), "w3": (6, 5)},
        [4, 6], 17,
    ),
    "split by number": (
        """(float[N,3] x) => (float[N,5] y, float[N,5] z) {
            a = MatMul (x, w1)
            l, r = Split <axis=-1, num_outputs=2> (a)
            y = MatMul (l, w2)
            z = MatMul (r, w3)
        }""",
        {"w1": (3, 10), "w2": (5, 5), "w3": (5, 5)},
        [5, 5], 18,
    ),
    "split and joined": (
        """(float[N,3] x) => (float[N,5] y) {
            a = MatMul (x, w1)
            l, r = Split <axis=1> (a, parts)
            s = Relu (l)
            j = Concat <axis=1> (s, r)
            y = MatMul (j, w2)
        }""",
        {"w1": (3, 8), "parts": np.array([4, 4]), "w2": (8, 5)},
        [4, 4], 17,
    ),
    "slice": (
        """(float[N,3] x) => (float[N,5] y, float[N,5] z) {
            a = MatMul (x, w1)
            l = Slice (a, zero, four, axis)
            r = Slice (a, four, end, axis)
            y = MatMul (l, w2)
            z = MatMul (r, w3)
        }""",
        {
            "w1": (3, 10), "w2": (4, 5), "w3": (6, 5), "zero": np.array([0], np.int32),
            "four": np.array([4], np.int32), "end": np.array([2**31 - 1], np.int32), "axis": np.array([-1], np.int32),
        },
        [4, 6], 17,
    ),
    "slice, opset 9": (
        """(float[N,3] x) => (float[N,5] y, float[N,5] z) {
            a = MatMul (x, w1)
            l = Slice <axes=[1], starts=[0], ends=[4]> (a)
            r = Slice <axes=[1], starts=[-6], ends=[100]> (a)
            y = MatMul (l, w2)
            z = MatMul (r, w3)
        }""",
        {"w1": (3, 10), "w2": (4, 5), "w3": (6, 5)},
        [4, 6], 9,
    ),
    "flatten": (
        """(float[N,3,5,5] x) => (float[N,5] y) {
            a = Conv (x, w1)
            m = MaxPool <kernel_shape=[2,2]> (a)
            f = Flatten (m)
            y = Gemm (f, w2)
        }""",
        {"w1": (6, 3, 3, 3), "w2": (24, 5)},
        [6], 17,
    ),
    "channels last before a matrix": (
        """(float[N,3,4,4] x) => (float[N,5] y) {
            a = Conv (x, w1)
            t = Transpose <perm=[0,2,3,1]> (a)
            f = Reshape (t, flat)
            y = MatMul (f, w2)
        }""",
        {"w1": (6, 3, 3, 3), "flat": np.array([0, -1]), "w2": (24, 5)},
        [6], 17,
    ),
    "heads": (
        """(float[N,S,12] x) => (float[N,S,12] y) {
            q0 = MatMul (x, wq)
            k0 = MatMul (x, wk)
            v0 = MatMul (x, wv)
            q1 = Reshape (q0, four)
            k1 = Reshape (k0, four)
            v1 = Reshape (v0, four)
            q = Transpose <perm=[0,2,1,3]> (q1)
            k = Transpose <perm=[0,2,3,1]> (k1)
            v = Transpose <perm=[0,2,1,3]> (v1)
            s = MatMul (q, k)
            p = Softmax <axis=-1> (s)
            o = MatMul (p, v)
            t = Transpose <perm=[0,2,1,3]> (o)
            f = Reshape (t, three)
            y = MatMul (f, wo)
        }""",
        {
            "wq": (12, 12), "wk": (12, 12), "wv": (12, 12), "wo": (12, 12),
            "four": np.array([0, 0, 4, 3]), "three": np.array([0, 0, 12]),
        },
        [4], 17,
    ),
    "heads beside the batch": (
        """(float[S,N,12] x) => (float[S,N,12] y) {
            v0 = MatMul (x, wv)
            sizes = Shape (x)
            seq = Gather (sizes, zero)
            batch = Gather (sizes, one)
            rows = Mul (batch, heads)
            shape = Concat <axis=0> (seq, rows, width)
            v1 = Reshape (v0, shape)
            t = Transpose <perm=[1,0,2]> (v1)
            r = Relu (t)
            u = Transpose <perm=[1,0,2]> (r)
            back = Concat <axis=0> (seq, batch, whole)
            f = Reshape (u, back)
            y = MatMul (f, wo)
        }""",
        {
            "wv": (12, 12), "wo": (12, 12), "zero": np.array([0]), "one": np.array([1]), "heads": np.array([4]),
            "width": np.array([3]), "whole": np.array([12]),
        },
        [4], 17,
    ),
    "squeeze and excite": (
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1)
            m = ReduceMean <axes=[2,3], keepdims=0> (a)
            h = MatMul (m, w2)
            r = Relu (h)
            g = MatMul (r, w3)
            s = HardSigmoid (g)
            u = Unsqueeze (s, axes)
            e = Mul (a, u)
            y = Conv (e, w4)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (8, 4), "w3": (4, 8), "axes": np.array([2, 3]), "w4": (5, 8, 1, 1)},
        [8, 4], 17,
    ),
    "tied": (
        """(float[N,6] x) => (float[N,6] y) {
            a = MatMul (x, w1)
            r = Relu (a)
            b = MatMul (r, w2)
            s = Tanh (b)
            c = MatMul (s, w1)
            t = Relu (c)
            y = MatMul (t, w2)
        }""",
        {"w1": (6, 8), "w2": (8, 6)},
        [8], 17,
    ),
    "turned weight": (
        """(float[N,6] x) => (float[N,5] y) {
            u = Transpose (w1)
            a = MatMul (x, u)
            r = Relu (a)
            v = Transpose <perm=[1,0]> (w2)
            y = MatMul (r, v)
        }""",
        {"w1": (8, 6), "w2": (5, 8)},
        [8], 17,
    ),
    "embedding": (
        """(int64[N,S] ids) => (float[N,S,5] y) {
            e = Gather (table, ids)
            m = Mul (e, scale)
            y = MatMul (m, w)
        }""",
        {"table": (20, 8), "scale": (8,), "w": (8, 5)},
        [8], 17,
    ),
    "resize": (
        """(float[N,3,4,4] x) => (float[N,5,8,8] y, float[2,5,8,8] z) {
            a = Conv (x, w1)
            u = Resize <mode="nearest"> (a, , scales)
            y = Conv (u, w2)
            fixed = Reshape (a, two)
            v = Resize <mode="nearest"> (fixed, , , sizes)
            z = Conv (v, w2)
        }""",
        {
            "w1": (8, 3, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32), "w2": (5, 8, 1, 1),
            "two": np.array([2, 8, 4, 4]), "sizes": np.array([2, 8, 8, 8]),
        },
        [8], 17,
    ),
    "pad, norm, slope": (
        """(float[N,3,4,4] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1)
            p = Pad (a, pads)
            n = InstanceNormalization (p, g, b)
            r = PRelu (n, slope)
            o = Greater (r, zero)
            s = Where (o, r, n)
            y = Conv (s, w2)
        }""",
        {
            "w1": (8, 3, 1, 1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "g": (8,), "b": (8,),
            "slope": (8, 1, 1), "zero": np.float32(0), "w2": (5, 8, 1, 1),
        },
        [8], 17,
    ),
    "expand": (
        """(float[N,3] x) => (float[N,5] y) {
            a = MatMul (x, w1)
            s = ReduceSum <keepdims=1> (x, last)
            e = Expand (s, shape)
            m = Add (a, e)
            y = MatMul (m, w2)
        }""",
        {"w1": (3, 8), "last": np.array([1]), "shape": np.array([1, 8]), "w2": (8, 5)},
        [8], 17,
    ),
    "shuffle": (
        """(float[N,3,4,4] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1)
            p = Reshape (a, parts)
            t = Transpose <perm=[0,2,1,3,4]> (p)
            s = Reshape (t, whole)
            y = Conv (s, w2)
        }""",
        {
            "w1": (8, 3, 1, 1), "parts": np.array([0, 2, 4, 4, 4]), "whole": np.array([0, 8, 4, 4]),
            "w2": (5, 8, 1, 1),
        },
        [4], 17,
    ),
}  # fmt: skip


def build(text, weights, opset=17):
    """A model of one graph; a shape is filled with seeded numbers, an integer array stays int64."""
    graph = parser.parse_graph(f"graph {text}")
    for i, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{i}"
    for name, given in weights.items():
        if isinstance(given, tuple):
            graph.initializer.append(builders.weight(name, *given, scale=0.5))
        else:
            array = np.asarray(given)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            graph.initializer.append(numpy_helper.from_array(array, name))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)


def cut_graph(name):
    """One of `CUT`, checked."""
    text, weights, _, opset = CUT[name]
    proto = build(text, weights, opset)
    onnx.checker.check_model(proto, full_check=True)
    return proto
