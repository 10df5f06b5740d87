"""One-node graphs for the operators of GraphModule, and what ONNX Runtime and torch make of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from onnxcomp.pytorch import GraphModule


def floats(*shape, seed=0, low=None):
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return values if low is None else np.abs(values) + np.float32(low)


def whole(*values, dtype=np.int64):
    return np.array(values, dtype)


def number(value, dtype=np.float32):
    return np.array(value, dtype)


@dataclasses.dataclass(frozen=True)
class Case:
    op: str
    opset: int
    inputs: tuple
    attributes: dict
    outputs: int = 1
    domain: str = ""
    #: inputs that are initializers; None stands for one that is left empty
    constant: tuple = ()

    def model(self):
        names = ["" if array is None else f"i{n}" for n, array in enumerate(self.inputs)]
        made = [f"o{n}" for n in range(self.outputs)]
        if self.op == "Attention" and self.outputs == 4:  # present key and value need a past
            made[1:3] = "", ""
        node = helper.make_node(self.op, names, made, name="node", domain=self.domain, **self.attributes)
        inputs, initializers = [], []
        for n, array in enumerate(self.inputs):
            if array is None:
                continue
            if n in self.constant:
                initializers.append(numpy_helper.from_array(array, f"i{n}"))
            else:
                dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
                inputs.append(helper.make_tensor_value_info(f"i{n}", dtype, array.shape))
        outputs = [onnx.ValueInfoProto(name=name) for name in made if name]
        graph = helper.make_graph([node], "g", inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(self.domain, 1)] if self.domain else []
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return proto if self.domain else onnx.shape_inference.infer_shapes(proto)

    def feeds(self):
        return {f"i{n}": array for n, array in enumerate(self.inputs) if array is not None and n not in self.constant}


def case(op, *inputs, opset=17, outputs=1, domain="", constant=(), **attributes):
    return Case(op, opset, inputs, attributes, outputs, domain, constant)


def by_ort(proto, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def by_torch(proto, feeds):
    module = GraphModule(ir.from_proto(proto))
    with torch.no_grad():
        return list(module({name: torch.from_numpy(array) for name, array in feeds.items()}).values())


def check(wanted, got, tolerance=1e-5):
    """Same shapes and types; floats within a share of the largest value, integers equal."""
    for want, tensor in zip(wanted, got, strict=True):
        have = tensor.numpy()
        assert have.shape == want.shape
        if want.dtype.kind == "f":
            assert have.dtype == want.dtype
            largest = np.abs(want[np.isfinite(want)]).max(initial=1e-30)
            np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * largest)
        else:
            np.testing.assert_array_equal(have.astype(np.float64), want.astype(np.float64))
