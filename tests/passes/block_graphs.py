"""Small graphs with residual branches: of the kinds that real models have, and those that only look like it."""

from __future__ import annotations

import builders
import numpy as np
import onnx
from onnx import parser


def parsed(text: str, *, opset: int = 17, **shapes: tuple[int, ...] | np.ndarray) -> onnx.ModelProto:
    """A model from its text form; initializers by shape (random) or array."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    for number, (name, what) in enumerate(shapes.items()):
        stored = builders.weight(name, *what, seed=number) if isinstance(what, tuple) else None
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(what, np.float32), name) if stored is None else stored
        )
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    return proto


def transformer(layers: int, *, normalized: str, width: int = 8) -> onnx.ModelProto:
    """x -> layers of (a mixing and a feed-forward branch) -> scores; 'pre', 'post' or 'plain' (no normalization).

    What layer i adds is about 4 ** i times smaller than what layer 0 adds, so the last layers matter least.
    """
    lines, shapes, x = [], {}, "x"
    norm = "LayerNormalization <axis=-1>"
    for i in range(layers):
        for kind, inner in (("a", width), ("f", 2 * width)):
            tag = f"{kind}{i}"
            shapes |= {f"u{tag}": (width, inner), f"d{tag}": (inner, width), f"g{tag}": (width,)}
            source = x
            if normalized == "pre":
                lines.append(f"n{tag} = {norm} ({x}, g{tag})")
                source = f"n{tag}"
            lines.append(f"h{tag} = MatMul ({source}, u{tag})")
            lines.append(f"r{tag} = Relu (h{tag})")
            lines.append(f"o{tag} = MatMul (r{tag}, d{tag})")
            lines.append(f"s{tag} = Add ({x}, o{tag})")
            x = f"s{tag}"
            if normalized == "post":
                lines.append(f"n{tag} = {norm} ({x}, g{tag})")
                x = f"n{tag}"
    lines.append(f"y = MatMul ({x}, head)")
    text = f"(float[N,S,{width}] x) => (float[N,S,3] y) {{ {' '.join(lines)} }}"
    proto = parsed(text, **shapes, head=(width, 3))
    for tensor in proto.graph.initializer:
        if tensor.name[0] in "dg":
            array = onnx.numpy_helper.to_array(tensor)
            scale = 4.0 ** -int(tensor.name[2:]) if tensor.name[0] == "d" else 1.0
            new = np.ones_like(array) if tensor.name[0] == "g" else array * np.float32(scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
    return proto
