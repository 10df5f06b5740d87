"""Each operator that works elementwise, on windows, shapes, indices and sums, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from operator_cases import by_ort, by_torch, case, check, floats, number, whole

MICROSOFT = "com.microsoft"

X = floats(2, 3, 4)
IMAGE = floats(2, 4, 7, 6)
MATRIX = floats(4, 5)
POSITIVE = floats(3, 4, low=0.1)
UNIT = np.tanh(X)

ELEMENTWISE = [
    *(case(op, X) for op in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Relu", "Round", "Sigmoid", "Sign")),
    *(
        case(op, X)
        for op in ("Sin", "Sinh", "Cosh", "Asinh", "Atan", "Tan", "Tanh", "Softplus", "Softsign", "Identity")
    ),
    *(case(op, UNIT) for op in ("Acos", "Asin", "Atanh")),
    *(case(op, POSITIVE) for op in ("Log", "Sqrt", "Reciprocal")),
    case("Acosh", POSITIVE + 1),
    case("Round", whole(0.5, 1.5, 2.5, -0.5, -1.5, dtype=np.float32)),
    *(case(op, X, floats(3, 1)) for op in ("Add", "Sub", "Mul", "Div", "PRelu")),
    *(case(op, X, X + 0.0 * X[:, :1]) for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    case("Div", whole(-7, 7, 9), whole(2, -2, 4)),
    case("Div", whole(-7, 7, 9, dtype=np.int32), whole(2, -2, 4, dtype=np.int32)),
    case("Pow", POSITIVE, whole(2.5, dtype=np.float32)),
    case("Pow", X, whole(2)),
    case("Pow", X, whole(3.0, dtype=np.float32)),
    case("Mod", whole(-7, 7, 5), whole(3, -3, 5)),
    case("Mod", floats(6), floats(6, seed=1), fmod=1),
    case("Mod", whole(-7, 7), whole(3, -3), fmod=1),
    *(case(op, X, floats(4), floats(3, 1)) for op in ("Max", "Min", "Sum", "Mean")),
    case("Max", X),
    *(case(op, X > 0, X < 0.5) for op in ("And", "Or", "Xor")),
    case("Not", X > 0),
    *(case(op, whole(6, 5), whole(3, 9), opset=18) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    case("BitwiseNot", whole(6, -5), opset=18),
    case("Where", X > 0, X, floats(4)),
    case("IsNaN", np.array([1, np.nan], np.float32)),
    case("IsInf", np.array([1, np.inf, -np.inf], np.float32)),
    case("IsInf", np.array([1, np.inf, -np.inf], np.float32), detect_negative=0),
    case("Clip", X, opset=7, min=-0.5, max=0.3),
    case("Clip", X, opset=10, max=0.3),
    case("Clip", X, number(-0.5), number(0.3)),
    case("Clip", X, None, number(0.3)),
    case("Clip", X, number(0.5), number(-0.3)),
    case("Cast", X * 3, to=TensorProto.INT64),
    case("Cast", X * 3, to=TensorProto.BOOL),
    case("Cast", X * 3, to=TensorProto.DOUBLE),
    case("Cast", whole(0, 3), to=TensorProto.FLOAT),
    case("CastLike", whole(0, 3), X, opset=19),
    case("Dropout", X, opset=7, ratio=0.5),
    case("Dropout", X, number(0.5), opset=13, outputs=2),
]

ACTIVATIONS = [
    case("LeakyRelu", X),
    case("LeakyRelu", X, alpha=0.3),
    case("Elu", X, alpha=0.7),
    case("Celu", X, alpha=0.7),
    case("Selu", X),
    case("Selu", X, alpha=1.1, gamma=1.3),
    case("HardSigmoid", X),
    case("HardSigmoid", X * 4, alpha=0.5, beta=0.1),
    case("HardSwish", X * 4),
    case("ThresholdedRelu", X, alpha=0.4),
    case("Shrink", X, lambd=0.3, bias=0.1),
    case("Mish", X, opset=18),
    case("Gelu", X, opset=20),
    case("Gelu", X, opset=20, approximate="tanh"),
    case("Softmax", X, opset=11),
    case("Softmax", X, opset=11, axis=2),
    case("Softmax", X, opset=11, axis=-2),
    case("Softmax", X),
    case("Softmax", X, axis=0),
    case("LogSoftmax", X, opset=11),
    case("LogSoftmax", X, axis=1),
    case("Gelu", X, domain=MICROSOFT),
    case("FastGelu", X, floats(4), domain=MICROSOFT),
    case("FastGelu", X, domain=MICROSOFT),
    case("BiasGelu", X, floats(4), domain=MICROSOFT),
    case("QuickGelu", X, domain=MICROSOFT, alpha=1.5),
]

KERNEL = floats(6, 4, 3, 3, seed=1)

CONVOLUTION = [
    case("Conv", IMAGE, KERNEL, floats(6)),
    case("Conv", IMAGE, KERNEL, pads=[1, 1, 1, 1], strides=[2, 2]),
    case("Conv", IMAGE, KERNEL, pads=[0, 2, 1, 1], dilations=[2, 1]),
    case("Conv", IMAGE, KERNEL, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, KERNEL, auto_pad="SAME_LOWER", strides=[2, 2]),
    case("Conv", IMAGE, KERNEL[..., :2], auto_pad="SAME_LOWER", kernel_shape=[3, 2]),
    case("Conv", IMAGE, KERNEL, auto_pad="VALID"),
    case("Conv", IMAGE, floats(8, 2, 3, 3), group=2, opset=11),
    case("Conv", IMAGE, floats(4, 1, 3, 3), group=4, opset=22),
    case("Conv", floats(2, 3, 9), floats(5, 3, 4), pads=[2, 1]),
    case("Conv", floats(1, 2, 5, 6, 4), floats(3, 2, 2, 3, 2), floats(3)),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), floats(3)),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), strides=[2, 3], pads=[1, 0, 2, 1], output_padding=[1, 1]),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), strides=[2, 2], output_shape=[15, 12]),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", IMAGE, floats(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    case("ConvTranspose", IMAGE, floats(4, 2, 3, 3), group=2, dilations=[2, 1]),
    case("ConvTranspose", floats(2, 3, 5), floats(3, 2, 4), strides=[3]),
    case("FusedConv", IMAGE, KERNEL, floats(6), domain=MICROSOFT, activation="Relu", pads=[1, 1, 1, 1]),
    case("FusedConv", IMAGE, KERNEL, domain=MICROSOFT, activation="LeakyRelu", activation_params=[0.2]),
    case("FusedConv", IMAGE, KERNEL, domain=MICROSOFT, activation="Clip", activation_params=[-0.5, 0.5]),
    case("FusedConv", IMAGE, KERNEL, domain=MICROSOFT, activation="HardSigmoid", activation_params=[0.2, 0.4]),
    case("FusedConv", IMAGE, KERNEL, floats(6), floats(2, 6, 5, 4), domain=MICROSOFT, activation="Relu"),
    case("MaxPool", IMAGE, kernel_shape=[2, 3]),
    case("MaxPool", IMAGE - 5, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("MaxPool", IMAGE, kernel_shape=[1, 2], strides=[3, 4], ceil_mode=1, pads=[0, 1, 0, 1]),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3]),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("MaxPool", (IMAGE * 20).astype(np.int8), kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxPool", floats(2, 3, 9), kernel_shape=[4], strides=[2]),
    case("AveragePool", IMAGE, kernel_shape=[2, 3]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 0, 1], strides=[2, 2], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, opset=19),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[3, 3], ceil_mode=1, opset=19),
    *(
        case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[3, 2], pads=pads, ceil_mode=1, count_include_pad=n)
        for n in (0, 1)
        for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 1])
    ),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2], opset=19),
    case("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("LpPool", IMAGE, kernel_shape=[2, 2], strides=[2, 1]),
    case("GlobalAveragePool", IMAGE),
    case("GlobalMaxPool", IMAGE),
    case("GlobalLpPool", IMAGE, p=2),
]

LINEAR = [
    case("MatMul", floats(2, 3, 4), floats(4, 5)),
    case("MatMul", floats(4), floats(2, 4, 5)),
    case("MatMul", floats(2, 1, 3, 4), floats(5, 4, 2)),
    case("Gemm", MATRIX, floats(5, 3), floats(3)),
    case("Gemm", MATRIX, floats(4, 3), floats(5, 1), transA=1, alpha=0.5, beta=2.0),
    case("Gemm", MATRIX, floats(3, 5), transB=1),
    case("Einsum", floats(2, 3, 4), floats(2, 4, 5), equation="bij,bjk->bik"),
    case("Einsum", floats(2, 3, 4), equation="...ij->...ji"),
    case("FusedMatMul", floats(2, 4, 3), floats(2, 5, 4), domain=MICROSOFT, transA=1, transB=1, alpha=0.5),
    case("FusedMatMul", floats(3, 2, 4), floats(2, 4, 5), domain=MICROSOFT, transBatchA=1),
]

NORMALIZATION = [
    case("BatchNormalization", IMAGE, floats(4), floats(4), floats(4), floats(4, low=0.2)),
    case("BatchNormalization", MATRIX, floats(5), floats(5), floats(5), floats(5, low=0.2), opset=7, epsilon=0.01),
    case("BatchNormalization", IMAGE, floats(4), floats(4), floats(4), floats(4, low=0.2), opset=9),
    case("InstanceNormalization", IMAGE, floats(4), floats(4), epsilon=0.01),
    case("LayerNormalization", X, floats(4), floats(4)),
    case("LayerNormalization", X, floats(3, 4), floats(3, 4), axis=1, outputs=3),
    case("LayerNormalization", X, floats(4)),
    case("GroupNormalization", IMAGE, floats(4), floats(4), num_groups=2, opset=21),
    case("LpNormalization", X, axis=1, p=1),
    case("LpNormalization", X, axis=-1),
    case("LRN", IMAGE, size=3, alpha=0.1, beta=0.6, bias=2.0),
    case("MeanVarianceNormalization", IMAGE),
    case("RMSNormalization", X, floats(4), opset=23),
    case("SkipLayerNormalization", X, floats(2, 3, 4, seed=1), floats(4), floats(4), floats(4), domain=MICROSOFT),
    case("SkipSimplifiedLayerNormalization", X, floats(2, 3, 4, seed=1), floats(4), domain=MICROSOFT),
]

SHAPES = [
    case("Reshape", X, whole(0, -1), constant=(1,)),
    case("Reshape", X, whole(4, 6), constant=(1,)),
    case("Reshape", floats(0, 3), whole(3, 0), constant=(1,), allowzero=1),
    case("Flatten", X),
    case("Flatten", X, axis=0),
    case("Flatten", X, axis=-1, opset=13),
    case("Squeeze", floats(1, 3, 1), opset=11),
    case("Squeeze", floats(1, 3, 1), opset=11, axes=[0]),
    case("Squeeze", floats(1, 3, 1), whole(-1), constant=(1,)),
    case("Unsqueeze", X, opset=11, axes=[0, 3]),
    case("Unsqueeze", X, whole(-1, 0), constant=(1,)),
    case("Transpose", X),
    case("Transpose", X, perm=[1, 0, 2]),
    case("Concat", X, floats(2, 3, 1), axis=-1),
    case("Split", floats(6, 2), opset=11, split=[2, 4], outputs=2),
    case("Split", floats(6, 2), opset=11, outputs=3),
    case("Split", floats(6, 2), whole(1, 5), constant=(1,), outputs=2),
    case("Split", floats(2, 7), opset=18, num_outputs=3, axis=1, outputs=3),
    case("Slice", X, opset=9, starts=[0, -2], ends=[9, -1], axes=[1, 2]),
    case("Slice", X, opset=9, starts=[1], ends=[2]),
    case("Slice", X, whole(1), whole(9), whole(-1), whole(2)),
    case("Slice", X, whole(-1), whole(-(1 << 62)), whole(2), whole(-1)),
    case("Slice", X, whole(9, 2), whole(0, -9), whole(2, 1), whole(-2, -1)),
    case("Slice", X, whole(3), whole(1), whole(2)),
    case("Slice", X, whole(-9), whole(2), whole(2)),
    case("Expand", floats(3, 1), whole(2, 1, 4), constant=(1,)),
    case("Tile", X, whole(1, 2, 3), constant=(1,)),
    case("Shape", X),
    case("Shape", X, start=-2, end=3, opset=15),
    case("Size", X),
    case("ConstantOfShape", whole(2, 3)),
    case("ConstantOfShape", whole(2), value=helper.make_tensor("v", TensorProto.INT64, [1], [7])),
    case("ConstantOfShape", whole(2), value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])),
    case("Range", whole(2).reshape(()), whole(9).reshape(()), whole(3).reshape(())),
    case("Range", whole(5).reshape(()), whole(-2).reshape(()), whole(-2).reshape(())),
    case("Range", number(0.5), number(2.1), number(0.4)),
    case("DepthToSpace", floats(1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", floats(1, 8, 2, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", floats(1, 2, 4, 6), blocksize=2),
    case("Trilu", MATRIX),
    case("Trilu", MATRIX, whole(1).reshape(()), upper=0),
    case("EyeLike", MATRIX, k=1),
    case("Pad", X, opset=7, pads=[0, 1, 2, 1, 0, -1], value=0.5),
    case("Pad", X, whole(0, 1, 2, 1, 0, 1), number(2), constant=(1,)),
    case("Pad", X, whole(0, 1, 2, 1, 0, 1), mode="reflect", constant=(1,)),
    case("Pad", X, whole(0, 1, 2, 1, 0, 1), mode="edge", constant=(1,)),
    case("Pad", X, whole(0, 2, 0, 1, 0, 3), mode="edge", constant=(1,)),
    case("Pad", X, whole(1, 2, 1, 2), None, whole(1, -1), opset=19, mode="wrap", constant=(1, 3)),
    *(case("Pad", X, whole(0, -1, 2, 0, 0, -2), mode=mode, constant=(1,)) for mode in ("constant", "edge")),
    case("Pad", X, whole(0, -1, -1, 0, 1, 2), mode="reflect", constant=(1,)),
]

INDICES = [
    case("Gather", X, whole(0, -1, 2), axis=1),
    case("Gather", X, whole(1).reshape(())),
    case("Gather", MATRIX, np.array([[0, 3], [-4, 1]], np.int32)),
    case("GatherElements", MATRIX, np.array([[0, -1], [2, 1]]), axis=1),
    case("GatherND", X, np.array([[0, 1], [1, -1]])),
    case("GatherND", X, np.array([[0], [2]]), batch_dims=1),
    case("GatherND", X, np.array([[0, 1, 2]])),
    case("ScatterElements", MATRIX, np.array([[0, -1], [2, 1]]), floats(2, 2), axis=1),
    case("ScatterElements", MATRIX, np.array([[0, 0], [2, 1]]), floats(2, 2), axis=1, reduction="add", opset=16),
    case("ScatterElements", MATRIX, np.array([[0, 0], [2, 1]]), floats(2, 2), axis=1, reduction="max", opset=18),
    case("ScatterND", X, np.array([[0, 1], [1, -1]]), floats(2, 4)),
    case("ScatterND", X, np.array([[0, 1], [0, 1]]), floats(2, 4), reduction="mul", opset=16),
    case("ScatterND", X, np.array([[1]]), floats(1, 3, 4), opset=13),
    case("OneHot", whole(0, 2, -1, 5), whole(3), whole(0.0, 2.0, dtype=np.float32)),
    case("OneHot", whole(0, 2), whole(3), whole(1, 5), axis=0),
    case("TopK", floats(3, 6), opset=9, k=2, outputs=2),
    case("TopK", floats(3, 6), whole(3), outputs=2),
    case("TopK", floats(3, 6), whole(2), axis=0, largest=0, outputs=2),
    case("TopK", whole(1, 3, 3, 2), whole(3), outputs=2),
    *(case("TopK", floats(500).round().astype(np.int64), whole(200), outputs=2, largest=n) for n in (0, 1)),
    case("ArgMax", X, axis=1),
    case("ArgMax", X, keepdims=0),
    case("ArgMax", whole(1, 3, 3, 2), select_last_index=1),
    case("ArgMin", X, axis=-1, keepdims=0),
    case("NonZero", np.array([[1, 0], [2, 3]], np.float32)),
    case("CumSum", X, whole(1).reshape(())),
    case("CumSum", X, whole(-1).reshape(()), exclusive=1, reverse=1),
    case("Compress", X, np.array([True, False, True]), axis=1),
    case("Compress", MATRIX, np.array([False, True, True])),
    case("ReverseSequence", floats(4, 3, 2), whole(4, 1, 2), time_axis=0, batch_axis=1),
    case("ReverseSequence", floats(3, 4), whole(4, 1, 2), time_axis=1, batch_axis=0),
]

REDUCTIONS = [
    *(
        case(f"Reduce{op}", POSITIVE, opset=opset, **options)
        for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
        for opset, options in ((12, {"axes": [-1]}), (12, {"keepdims": 0}))
    ),
    *(
        case(f"Reduce{op}", floats(2, 3, 4, low=0.1), whole(0, -1), opset=18, constant=(1,), keepdims=0)
        for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    ),
    case("ReduceSum", X, whole(1), constant=(1,)),
    case("ReduceSum", X, noop_with_empty_axes=1),
    case("ReduceSum", X),
    *(case(f"Reduce{op}", X, opset=18, noop_with_empty_axes=1) for op in ("L1", "L2", "SumSquare", "Max", "LogSumExp")),
    case("ReduceMax", whole(3, 9, 2), opset=13),
    case("ReduceProd", whole(3, 9, 2), opset=13, keepdims=0),
]


def scaled(x, *factors, opset=13, **attributes):
    return case("Resize", x, None, np.array(factors, np.float32), opset=opset, constant=(2,), **attributes)


def sized(x, *sizes, opset=13, **attributes):
    return case("Resize", x, None, None, whole(*sizes), opset=opset, constant=(3,), **attributes)


PLANE = floats(1, 2, 5, 6)

RESIZE = [
    case("Upsample", PLANE, opset=7, scales=[1.0, 1.0, 2.0, 3.0]),
    case("Upsample", PLANE, np.array([1, 1, 2, 1.5], np.float32), opset=9, constant=(1,), mode="linear"),
    case("Resize", PLANE, np.array([1, 1, 2, 1.5], np.float32), opset=10, constant=(1,)),
    case("Resize", PLANE, np.array([1, 1, 0.6, 0.5], np.float32), opset=10, constant=(1,)),
    case("Resize", PLANE, np.array([1, 1, 0.6, 2], np.float32), opset=10, constant=(1,), mode="linear"),
    *(
        scaled(PLANE, 1, 1, *factors, mode=mode, coordinate_transformation_mode=transform)
        for mode in ("nearest", "linear", "cubic")
        for transform in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for factors in ((2, 2.5), (0.6, 0.5))
    ),
    *(
        scaled(PLANE, 1, 1, 1.7, 0.6, coordinate_transformation_mode="asymmetric", nearest_mode=how)
        for how in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    scaled(PLANE, 1, 1, 2, 1.5, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    sized(PLANE, 1, 2, 9, 4, mode="linear"),
    sized(PLANE, 1, 2, 1, 4, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    sized(PLANE, 1, 2, 10, 12, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    sized(PLANE, 9, 4, axes=[2, 3], opset=18, mode="linear"),
    sized(PLANE, 9, 13, axes=[2, 3], opset=18, mode="linear", keep_aspect_ratio_policy="not_larger"),
    scaled(PLANE, 2, 1.5, axes=[3, 2], opset=19, mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    case("GridSample", PLANE, np.tanh(floats(1, 3, 4, 2)), opset=16),
    case("GridSample", PLANE, np.tanh(floats(1, 3, 4, 2)), opset=20, mode="cubic", align_corners=1),
    case("GridSample", PLANE, floats(1, 3, 4, 2), opset=20, mode="nearest", padding_mode="border"),
]

CASES = [*ELEMENTWISE, *ACTIVATIONS, *CONVOLUTION, *LINEAR, *NORMALIZATION, *SHAPES, *INDICES, *REDUCTIONS, *RESIZE]


@pytest.mark.parametrize("one", CASES, ids=[f"{n}-{c.op}-{c.opset}" for n, c in enumerate(CASES)])
def test_an_operator_gives_what_onnx_runtime_gives(one):
    proto, feeds = one.model(), one.feeds()
    check(by_ort(proto, feeds), by_torch(proto, feeds))
