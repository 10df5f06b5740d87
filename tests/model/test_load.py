"""Loading: a typed error for whatever is not a model, the right values for what is one."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import builders
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxcomp.errors import InvalidModelError, OnnxcompError, OutputError, UnsafeModelError, UnsupportedError
from onnxcomp.model import Limits, is_normal, load, read_proto, signature, write_to

MODELS = {
    "mlp": builders.mlp,
    "cnn": builders.cnn,
    "branch": builders.branch,
    "functions": lambda: builders.function_bomb(3),
    "sparse": lambda: builders.sparse(np.array([[0, 0], [1, 1], [3, 2]])),
}


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        (json.dumps({"ir_version": 9}).encode(), "JSON"),
        (zipped(), "zip archive"),
        (pickle.dumps({"w": 1}, protocol=2), "pickle"),
        (pickle.dumps({"w": 1}, protocol=4), "pickle"),
        (gzip.compress(b"model", mtime=0), "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(32), "HDF5"),
        (b"\xff" * 64, "not an ONNX model"),
        (bytes(64), "not an ONNX model"),
    ],
)
def test_files_that_are_no_models(tmp_path, content, what):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=what) as error:
        load(path)
    assert error.value.hint
    assert str(path) in error.value.where


def test_ort_format_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x18\0\0\0ORTM" + bytes(64))
    with pytest.raises(UnsupportedError, match="ORT format"):
        load(path)


def test_a_folder_a_missing_file_and_a_name_too_long(tmp_path):
    for path in (tmp_path, tmp_path / "none.onnx", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError) as error:
            load(path)
        assert error.value.where == str(path)


def test_refusing_a_folder_closes_it(tmp_path):
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        with pytest.raises(OutputError):
            load(tmp_path)
    assert len(list(descriptors.iterdir())) < before + 20


@pytest.mark.timeout(60)
def test_a_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match="not a regular file"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", MODELS)
def test_truncated_anywhere(tmp_path, name):
    whole = MODELS[name]().SerializeToString()
    path, refused = tmp_path / "m.onnx", 0
    cuts = [*range(min(200, len(whole))), *range(len(whole) - 30, len(whole)), *range(200, len(whole), 97)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        try:
            load(path)
        except InvalidModelError:
            refused += 1
    assert refused > 0.9 * len(cuts)


@pytest.mark.parametrize("name", MODELS)
def test_random_damage_gives_typed_errors_only(tmp_path, name):
    whole, rng, path = MODELS[name]().SerializeToString(), random.Random(name), tmp_path / "m.onnx"
    outcomes = set()
    for _ in range(120):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, length = rng.randrange(len(damaged)), rng.randrange(1, 40)
            kind = rng.choice(("flip", "set", "cut", "repeat"))
            if kind == "flip":
                damaged[at] ^= 1 << rng.randrange(8)
            elif kind == "set":
                damaged[at] = rng.randrange(256)
            elif kind == "cut":
                del damaged[at : at + length]
            else:
                to = rng.randrange(len(damaged))
                damaged[to:to] = damaged[at : at + length]
        path.write_bytes(damaged)
        try:
            load(path)
            outcomes.add("loaded")
        except OnnxcompError:
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}


@pytest.mark.parametrize(
    ("text", "bad"),
    [(b"w1", b"w\xff"), (b"batch", b"b\xfftch"), (b"transB", b"tr\xffnsB"), (b"Gemm", b"G\xffmm"), (b"fc1", b"f\xff1")],
)
def test_names_that_are_not_utf8(tmp_path, text, bad):
    path = tmp_path / "m.onnx"
    path.write_bytes(builders.mlp().SerializeToString().replace(text, bad))
    with pytest.raises(InvalidModelError):
        write_to(load(path), tmp_path, "o")


def test_a_sparse_initializer_whose_name_is_not_utf8(tmp_path):
    whole = MODELS["sparse"]().SerializeToString()
    assert whole.count(b"w") > 1
    (tmp_path / "m.onnx").write_bytes(whole.replace(b"\x01w", b"\x01\xff"))
    with pytest.raises(InvalidModelError, match="UTF-8"):
        load(tmp_path / "m.onnx")


def test_training_info_is_refused(tmp_path):
    proto = builders.mlp()
    proto.training_info.add().algorithm.name = "step"
    with pytest.raises(InvalidModelError, match="training info"):
        load(builders.save(proto, tmp_path / "m.onnx"))


def test_no_opset_import_and_no_graph(tmp_path):
    proto = builders.mlp()
    del proto.opset_import[:]
    with pytest.raises(InvalidModelError, match="no operator set"):
        load(builders.save(proto, tmp_path / "m.onnx"))
    with pytest.raises(InvalidModelError, match="no graph"):
        load(builders.save(onnx.ModelProto(ir_version=9), tmp_path / "m.onnx"))


def test_duplicate_initializers_are_refused(tmp_path):
    proto = builders.mlp()
    proto.graph.initializer.append(builders.weight("w1", 2))
    with pytest.raises(InvalidModelError, match="defined twice") as error:
        load(builders.save(proto, tmp_path / "m.onnx"))
    assert "initializer w1" in error.value.where
    proto = MODELS["sparse"]()
    proto.graph.initializer.append(builders.weight("w", 4, 3))
    with pytest.raises(InvalidModelError, match="defined twice"):
        load(builders.save(proto, tmp_path / "m.onnx"))


def test_an_initializer_without_a_name_is_refused(tmp_path):
    proto = builders.mlp()
    proto.graph.initializer[0].name = ""
    with pytest.raises(InvalidModelError, match="no name"):
        load(builders.save(proto, tmp_path / "m.onnx"))


@pytest.mark.parametrize("indices", [np.array([[0, 1], [1, 0], [3, 2]]), np.array([1, 3, 11])])
def test_sparse_initializers_become_dense(tmp_path, indices):
    model = load(builders.save(builders.sparse(indices), tmp_path / "m.onnx"))
    wanted = np.zeros((4, 3), np.float32)
    wanted[0, 1], wanted[1, 0], wanted[3, 2] = 1, 2, 3
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), wanted)
    out = write_to(model, tmp_path, "o")
    x = builders.samples(2, 4)
    np.testing.assert_allclose(ort.InferenceSession(out).run(None, {"x": x})[0], x @ wanted, rtol=1e-6)


def test_a_sparse_constant_becomes_dense(tmp_path):
    held = builders.sparse(np.array([0, 4, 8])).graph.sparse_initializer[0]
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=held),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    proto = builders.model(nodes, [builders.value("x", 2, 4)], [builders.value("y", 2, 3)])
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    wanted = np.vstack([np.diag([1, 2, 3]), np.zeros((1, 3))])
    np.testing.assert_array_equal(model.graph[0].attributes["value"].as_tensor().numpy(), wanted)
    onnx.checker.check_model(write_to(model, tmp_path, "o"))


@pytest.mark.parametrize(
    "indices",
    [
        [[0, 0], [1, 1], [4, 0]],
        [[0, 0], [1, 1], [0, 3]],
        [[0, 0], [1, 1], [-1, 0]],
        [[0, 0], [0, 0], [1, 1]],
        [0, 1, 12],
        [-1, 0, 1],
        [0, 0, 1],
        [0, 1],
        [[0], [1], [12]],
    ],
)
def test_bad_sparse_indices_are_refused(tmp_path, indices):
    path = builders.save(builders.sparse(np.array(indices)), tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match=r"indices|two values") as error:
        load(path)
    assert error.value.where == f"{path}: sparse tensor w"


@pytest.mark.parametrize(
    ("dims", "error"),
    [
        ([-4, -3], InvalidModelError),
        ([-12], InvalidModelError),
        ([], InvalidModelError),
        ([0, 1 << 62], UnsafeModelError),
        ([1 << 40, 1 << 40], UnsafeModelError),
        ([1 << 20, 1 << 19], UnsafeModelError),
    ],
)
def test_bad_sparse_shapes_are_refused(tmp_path, dims, error):
    proto = builders.sparse(np.array([0, 1, 2]))
    held = proto.graph.sparse_initializer[0]
    held.ClearField("dims")
    held.dims.extend(dims)
    for tensor, kind in ((held.values, np.float32), (held.indices, np.int64)):
        tensor.CopyFrom(numpy_helper.from_array(np.array([], kind), tensor.name))
    with pytest.raises(error):
        load(builders.save(proto, tmp_path / "m.onnx"))


def test_sparse_parts_of_the_wrong_type_are_refused(tmp_path):
    texts = helper.make_tensor("w", onnx.TensorProto.STRING, [3], [b"a", b"b", b"c"])
    floats = numpy_helper.from_array(np.array([0, 1, np.nan], np.float32), "w_indices")
    for part, tensor in (("values", texts), ("indices", texts), ("indices", floats)):
        proto = builders.sparse(np.array([0, 1, 2]))
        getattr(proto.graph.sparse_initializer[0], part).CopyFrom(tensor)
        with pytest.raises(InvalidModelError, match=r"strings|int64"):
            load(builders.save(proto, tmp_path / "m.onnx"))


def test_the_limit_of_dense_bytes(tmp_path):
    path = builders.save(builders.sparse(np.array([0, 1, 2])), tmp_path / "m.onnx")
    load(path, limits=Limits(sparse_bytes=48))
    with pytest.raises(UnsafeModelError, match="48 bytes once dense") as error:
        load(path, limits=Limits(sparse_bytes=47))
    assert "sparse_bytes" in error.value.hint


def test_a_trailing_empty_input_is_dropped(tmp_path):
    path = builders.save(builders.layer_norm_empty_bias(), tmp_path / "m.onnx")
    assert not is_normal(read_proto(path))
    model = load(path)
    assert [v.name for v in model.graph[0].inputs] == ["x", "g"]
    out = write_to(model, tmp_path, "o")
    assert is_normal(read_proto(out))
    x = builders.samples(2, 8)
    wanted = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ort.InferenceSession(out).run(None, {"x": x})[0], wanted, rtol=1e-4, atol=1e-5)


def test_an_empty_input_in_the_middle_stays(tmp_path):
    nodes = [helper.make_node("Clip", ["x", "", "high"], ["y"])]
    high = numpy_helper.from_array(np.float32(1), "high")
    proto = builders.model(nodes, [builders.value("x", 2)], [builders.value("y", 2)], [high])
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    assert [v and v.name for v in model.graph[0].inputs] == ["x", None, "high"]


def test_initializers_that_old_models_list_as_inputs(tmp_path):
    model = load(builders.save(builders.as_old(builders.mlp()), tmp_path / "m.onnx"))
    assert [(s.name, s.dtype, s.shape) for s in signature(model).inputs] == [("x", "float32", ("batch", 16))]
    assert {v.name for v in model.graph.inputs} == {"x", "w1", "b1", "w2", "b2"}
    out = write_to(model, tmp_path, "o")
    x = builders.samples(3, 16)
    wanted = ort.InferenceSession(builders.mlp().SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(ort.InferenceSession(out).run(["y"], {"x": x})[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("external_above", [0, 1 << 30])
def test_map_outputs_survive_a_round_trip(tmp_path, external_above):
    proto = builders.zip_map()
    proto.graph.initializer.append(builders.weight("spare", 32, 32))
    path = builders.save(proto, tmp_path / "m.onnx")
    model = load(path)
    assert [(s.name, s.dtype) for s in signature(model).outputs] == [("scores", "map"), ("y", "float32")]
    out = write_to(model, tmp_path, "o", external_above=external_above)
    assert [v.type for v in onnx.load(out).graph.output] == [v.type for v in proto.graph.output]
    assert [s.dtype for s in signature(load(out)).outputs] == ["map", "float32"]
    x = np.array([[1, 2, 3]], np.float32)
    assert ort.InferenceSession(out).run(["scores"], {"x": x})[0] == [{10: 1, 20: 2, 30: 3}]


def test_signatures_of_other_types(tmp_path):
    proto = builders.relu()
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, ["n", 4])))
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    found = signature(load(builders.save(proto, tmp_path / "m.onnx")))
    assert found.inputs[0].to_json() == {"name": "x", "dtype": "bfloat16", "shape": [None, 4]}
    assert found.outputs[0].dtype == "sequence"


def test_loading_gives_the_stored_values(tmp_path):
    proto = builders.cnn()
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    assert isinstance(model, ir.Model)
    assert set(model.graph.initializers) == {t.name for t in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        held = model.graph.initializers[tensor.name].const_value
        np.testing.assert_array_equal(held.numpy(), numpy_helper.to_array(tensor))
