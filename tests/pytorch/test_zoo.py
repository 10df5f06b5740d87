"""Every kind of architecture that people export: proven, with the names asked for, and a true map of its parameters."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
import zoo
from onnx import numpy_helper
from torch import nn

from onnxcomp import worker
from onnxcomp.errors import GateError, OnnxcompError, UnsupportedError
from onnxcomp.pytorch import Exported, export
from onnxcomp.runtime import open_session

TRANSFORMERS = importlib.util.find_spec("transformers") is not None
RECURRENT = ("lstm", "gru")
FAMILIES = ("bert", "distilbert", "gpt2", "vit", "convnext")
SIZES = {"batch": 4, "seq": 9, "height": 22, "width": 18}
OUTPUTS = {"tied": ["states", "logits"], "distilbert": ["last_hidden_state"]}
TEXT = {"input_ids": ("batch", "seq"), "attention_mask": ("batch", "seq")}
INPUTS = {
    "bert": {**TEXT, "token_type_ids": ("batch", "seq")},
    "distilbert": TEXT,
    "gpt2": TEXT,
    "vit": {"pixel_values": ("batch", 3, 32, 32)},
    "convnext": {"pixel_values": ("batch", 3, 32, 32)},
}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    module: nn.Module
    done: Exported


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """name -> future of the exports of its group. Two children at a time; recurrent nets need one each."""
    folder = tmp_path_factory.mktemp("zoo")
    groups = [[name for name in zoo.ZOO if name not in RECURRENT], *([name] for name in RECURRENT)]
    if TRANSFORMERS:
        groups.insert(1, list(FAMILIES))
    pool = ThreadPoolExecutor(2)
    started = [(group, pool.submit(worker.isolated, zoo.export_all, group, folder)) for group in groups]
    yield {name: future for group, future in started for name in group}
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module", params=[*zoo.ZOO, *FAMILIES])
def case(request, exports):
    name = request.param
    if name in FAMILIES and not TRANSFORMERS:
        pytest.skip("transformers is not installed")
    done = exports[name].result()[name]
    if isinstance(done, OnnxcompError):
        raise done
    return Case(name, zoo.randomised(name), done)


#: parameters that have no initializer of their value: folded into a Conv, or reshaped; recurrent ones may be repacked
NOTHING = re.compile(r"(?!)")
LOST = {
    "cnn": re.compile(r"[01]\..*"),
    "resnet": re.compile(r"(stem|body)\..*"),
    "mobilenet": re.compile(r"(up|deep|down)\..*"),
    "unet": re.compile(r"(one|two)\.1\..*"),
}


def feeds_of(signature):
    generator = np.random.default_rng(7)
    found = {}
    for spec in signature.inputs:
        shape = [SIZES.get(size, size) for size in spec.shape]
        if spec.dtype == "float32":
            found[spec.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            found[spec.name] = generator.integers(3, 50, shape) if "ids" in spec.name else np.ones(shape, np.int64)
    if "token_type_ids" in found:
        found["token_type_ids"] %= 2
    return found


def test_it_computes_what_torch_does_at_a_size_that_the_gate_did_not_see(case):
    session = open_session(case.done.output.path)
    feeds = feeds_of(session.signature)
    with torch.inference_mode():
        expected = case.module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    for name, got in session.run(feeds).items():
        want = expected if isinstance(expected, torch.Tensor) else expected[name]
        scale = float(want.abs().max())
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-5 * scale, err_msg=name)


def test_the_gate_saw_the_traced_size_batch_one_and_every_axis_move(case):
    sizes = [dict(check.sizes) for check in case.done.parity]
    assert len({tuple(s.items()) for s in sizes}) == len(sizes) >= 4
    assert sizes[0]["batch"] == 2
    for dim in sizes[0]:
        assert len({s[dim] for s in sizes}) >= 3, dim
    assert 1 in {s["batch"] for s in sizes}
    assert all(check.max_rel_error <= 1e-5 for check in case.done.parity)


def test_names_and_axes_are_those_asked_for(case):
    signature = open_session(case.done.output.path).signature
    assert signature == case.done.signature
    assert {spec.name: spec.shape for spec in signature.inputs} == wanted_inputs(case.name)
    default = ["output"] if case.name in zoo.ZOO else ["logits"]
    assert [spec.name for spec in signature.outputs] == OUTPUTS.get(case.name, default)
    assert all(spec.shape[0] == "batch" for spec in signature.outputs)


def wanted_inputs(name):
    if name in INPUTS:
        return INPUTS[name]
    _, (spec,), dynamic = zoo.ZOO[name]
    argument, _, shape = spec.partition(":")
    sizes = json.loads(shape[shape.index("[") :])
    for one in dynamic:
        axis, _, dim = one.partition(":")[2].partition("=")
        sizes[int(axis)] = dim
    return {argument: tuple(sizes)}


def test_the_parameter_map_is_true_by_value(case):
    model = onnx.load(case.done.output.path)
    (text,) = [one.value for one in model.metadata_props if one.key == "onnxcomp.parameters"]
    initializers = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    state = {n: t.numpy() for n, t in case.module.state_dict().items() if t.is_floating_point()}
    found = json.loads(text)
    assert set(found) == set(state)
    lost = {name for name, entry in found.items() if entry is None}
    assert case.name in RECURRENT or lost == {name for name in state if LOST.get(case.name, NOTHING).fullmatch(name)}
    for name, entry in found.items():
        if entry is None:
            assert not any(same(array, state[name]) or same(array, state[name].T) for array in initializers.values())
        else:
            array = initializers[entry["initializer"]]
            assert same(array, state[name].T if entry["transposed"] else state[name]), name


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


@pytest.fixture
def here():
    with mock.patch.object(worker, "isolated", lambda fn, job, **_: fn(job)):
        yield


def dynamic_loop(folder):
    return zoo.StaticLoop(), {"inputs": ["x:float32[2,12,8]"], "dynamic": ["x:0=batch", "x:1=seq"]}


def dynamic_loop_captured(folder):
    open_axis = torch.export.Dim.DYNAMIC
    shapes = {"x": {0: open_axis, 1: open_axis}}
    program = torch.export.export(zoo.StaticLoop().eval(), (torch.rand(2, 12, 8),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "p.pt2")
    return str(folder / "p.pt2"), {}


def python_branch(folder):
    return zoo.PythonBranch(), {"inputs": ["x:float32[2,16]"], "dynamic": ["x:0=batch"]}


@pytest.mark.parametrize(
    ("make", "error", "text", "hint"),
    [
        (dynamic_loop, GateError, "Guard failed: x.size()[1] // 4 == 3", "x.shape"),
        (dynamic_loop_captured, GateError, "Guard failed: x.size()[1] // 4 == 3", "x.shape"),
        (python_branch, UnsupportedError, "data-dependent", "torch.cond"),
    ],
)
def test_what_python_decides_while_tracing_is_refused_with_its_cause(make, error, text, hint, here, tmp_path):
    target, options = make(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(error) as caught:
        export(target, folder / "m.onnx", **options)
    assert text in caught.value.message
    assert hint in caught.value.hint
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("make", "axis"), [(dynamic_loop, "seq"), (dynamic_loop_captured, "dim_1")])
def test_checking_at_a_size_where_the_loop_is_the_same_does_not_help(make, axis, here, tmp_path):
    target, options = make(tmp_path)
    with pytest.raises(GateError, match="Guard failed"):
        export(target, tmp_path / "m.onnx", check_sizes=[f"{axis}=13", f"{axis}=14", f"{axis}=15"], **options)
