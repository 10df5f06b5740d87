"""Models for the checks, made here from scikit-learn's digits: nothing is downloaded, torch is not needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_NODE = helper.make_node


@dataclasses.dataclass(frozen=True)
class Nets:
    """Files, and the samples that belong to them.

    Attributes:
        teacher: a small convolutional net, float32 `x` (N, 1, 8, 8) to logits `y` (N, 10), trained.
        student: the same with fewer channels, not trained.
        host_only: float32 `x` (N, 64) to the same; its one operator has no kernel but the CPU's.
        mixed: the teacher behind such an operator: a part of it must fall back.
        train, test: images (N, 1, 8, 8) float32.
        labels: int64, of `test`.
    """

    teacher: Path
    student: Path
    host_only: Path
    mixed: Path
    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def make(folder: Path) -> Nets:
    """Train and write the nets; a few seconds."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    kernels = _kernels(24)
    weight, bias = _head(folder, kernels, images[train], labels[train])
    # one factor for all: Scaler takes it so, and CUDA has no kernel for the operator
    scaler, last = (
        _NODE("Scaler", ["x"], [y], domain="ai.onnx.ml", offset=[0.0], scale=[1.0]) for y in ("scaled", "y")
    )
    return Nets(
        teacher=_save(folder / "teacher.onnx", _net(kernels, weight, bias)),
        student=_save(folder / "student.onnx", _net(kernels[:8], 0.05 * weight[: 8 * 9], np.zeros_like(bias))),
        host_only=_save(folder / "host_only.onnx", ([last], []), x=["N", 64], y=["N", 64]),
        mixed=_save(folder / "mixed.onnx", _net(kernels, weight, bias, before=scaler)),
        train=images[train],
        test=images[test],
        labels=labels[test].astype(np.int64),
    )  # fmt: skip


def _kernels(channels: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.4, (channels, 1, 3, 3)).astype(np.float32)


def _head(folder: Path, kernels: np.ndarray, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression on what the kernels see: weight (features, 10), bias (10,)."""
    import onnxruntime as ort
    from sklearn.linear_model import LogisticRegression

    path = _save(folder / "features.onnx", _features(kernels, last="y"), y=["N", 9 * len(kernels)])
    seen = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": images})[0]
    fitted = LogisticRegression(max_iter=300).fit(seen, labels)
    return fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)


_Parts = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _features(kernels: np.ndarray, *, last: str, first: str = "x") -> _Parts:
    nodes = [
        _NODE("Conv", [first, "kernels"], ["seen"], kernel_shape=[3, 3]),
        _NODE("Relu", ["seen"], ["kept"]),
        _NODE("MaxPool", ["kept"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        _NODE("Flatten", ["pooled"], [last]),
    ]
    return nodes, [numpy_helper.from_array(kernels, "kernels")]


def _net(kernels: np.ndarray, weight: np.ndarray, bias: np.ndarray, before: onnx.NodeProto | None = None) -> _Parts:
    nodes, tensors = _features(kernels, last="flat", first="x" if before is None else before.output[0])
    nodes = [*([] if before is None else [before]), *nodes, _NODE("Gemm", ["flat", "weight", "bias"], ["y"])]
    return nodes, [*tensors, numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]


def _save(path: Path, parts: _Parts, *, x: list[str | int] | None = None, y: list[str | int] | None = None) -> Path:
    nodes, tensors = parts
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x or ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y or ["N", 10])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
