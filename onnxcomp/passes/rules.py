"""The rewrite rules of `simplify`: onnxscript's own, but for those that are not exact.

onnxscript's rules for `x + 0`, `x - 0`, `x * 1` and `x / 1` compare the constant within 1e-8, so
that they remove the 1e-10 before a logarithm; here they compare exactly. Its rules for
BatchNormalization are replaced by `passes.batchnorm`.
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules import common


def rules() -> list[pattern.RewriteRule]:
    """All rules, in the order in which they are tried at a node."""
    return [
        *_no_op("Mul", 1).commute(),
        *_no_op("Add", 0).commute(),
        _no_op("Sub", 0),
        _no_op("Div", 1),
        common.dropout_zero_rule,
        common.dropout_inference_rule,
        common.two_reshapes_matmul_reshape_rule,
        common.one_reshape_matmul_reshape_rule,
        common.cast_constant_of_shape_rule,
        common.cast_constant_of_shape_without_value_rule,
        common.collapse_slice_rule,
        common.collapse_slice2_rule,
        common.materialize_reshape_shape_rule,
        common.min_min_rule,
        common.max_max_rule,
        common.min_max_rule,
        common.max_min_rule,
        common.successive_clip_relu_rule,
        common.successive_relu_clip_rule,
        common.successive_relu_rule,
        common.successive_clip_rule,
        common.cast_cast_rule,
        common.no_op_cast_rule,
        common.no_op_expand_rule,
        common.flatten_to_reshape_rule,  # before the next, which merges what it makes
        common.reshape_reshape_rule,
        common.slice_split_rule,
        common.no_op_transpose_rule,
        common.transpose_transpose_rule,
        common.unsqueeze_unsqueeze_rule,
        common.squeeze_reshape_1d_rule,
        common.no_op_dynamic_scatter_nd_rule,
        common.no_op_static_scatter_nd_rule,
        common.normalize_pad_format_conv_rule,
        common.normalize_pad_format_conv_integer_rule,
        common.fuse_pad_into_conv_rule,
        common.fuse_pad_into_conv_integer_rule,
        common.remove_optional_bias_from_conv_rule,
        common.remove_optional_bias_from_conv_transpose_rule,
        common.remove_optional_bias_from_qlinear_conv_rule,
        common.remove_optional_bias_from_gemm_rule,
    ]


def _no_op(op_type: str, neutral: int) -> pattern.RewriteRule:
    """`op_type(x, neutral)` is x; `neutral` is a scalar, so that it cannot widen x."""

    def match(op: Any, x: Any) -> Any:
        return getattr(op, op_type)(x, pattern.Constant(neutral, rel_tol=0, abs_tol=0))

    def replace(op: Any, x: Any) -> Any:
        return op.Identity(x)

    return pattern.RewriteRule(match, replace, name=f"{op_type}{neutral}")
