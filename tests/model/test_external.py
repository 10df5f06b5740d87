"""External data: what may be read, and that it holds the right values."""

from __future__ import annotations

import os

import builders
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.errors import InvalidModelError, UnsafeModelError, UnsupportedError
from onnxcomp.model import fingerprint, load, write_to

VALUES = np.arange(64, dtype=np.float32).reshape(8, 8)
SIZE = VALUES.nbytes


def outside(folder):
    path = folder / "secret.bin"
    path.write_bytes(VALUES.tobytes())
    return path


def symlink(folder, home):
    (home / "link.data").symlink_to(outside(folder))
    return "link.data"


def inner_symlink(folder, home):
    (home / "link.data").symlink_to("good.data")
    return "link.data"


def symlinked_folder(folder, home):
    outside(folder)
    (home / "sub").symlink_to(folder)
    return "sub/secret.bin"


def hard_link(folder, home):
    os.link(outside(folder), home / "hard.data")
    return "hard.data"


def pipe(folder, home):
    os.mkfifo(home / "pipe")
    return "pipe"


def subfolder(folder, home):
    (home / "sub").mkdir()
    return "sub"


#: name -> (location, or a function of (folder, model's folder) that makes it; what the message says)
UNSAFE = {
    "parent": ("../secret.bin", "outside the model's folder"),
    "parent inside": ("sub/../../secret.bin", "outside the model's folder"),
    "parent and back": ("sub/../good.data", "outside the model's folder"),
    "absolute": (lambda folder, home: str(outside(folder)), "outside the model's folder"),
    "memory address": ("*/_ORT_MEM_ADDR_/*", "outside the model's folder"),
    "symbolic link": (symlink, "safely"),
    "symbolic link to a good file": (inner_symlink, "safely"),
    "symbolic link to a folder": (symlinked_folder, "safely"),
    "hard link": (hard_link, "hard link"),
    "NUL": ("good.data\0.txt", "no usable location"),
    "backslash": ("..\\secret.bin", "no usable location"),
    "empty": ("", "no usable location"),
    "the folder": (".", "is a folder"),
    "a subfolder": (subfolder, "not a regular file"),
    "the model itself": ("model.onnx", "the model file itself"),
    "named pipe": (pipe, "not a regular file"),
    "device": (lambda folder, home: "/dev/zero", "outside the model's folder"),
    "too long": ("x" * 300, "safely"),
    "a file as folder": ("good.data/x", "safely"),
}

INVALID = {
    "missing": ({"location": "none.data"}, "missing"),
    "missing folder": ({"location": "none/good.data"}, "missing"),
    "truncated": ({"location": "short.data"}, f"ends at byte {SIZE}, the file has {SIZE - 1}"),
    "negative offset": ({"offset": "-1"}, "ends at byte"),
    "offset past the end": ({"offset": "1"}, "ends at byte"),
    "huge offset": ({"offset": str((1 << 63) - 1)}, "ends at byte"),
    "length too short": ({"length": str(SIZE - 4)}, "length is"),
    "length too long": ({"length": str(SIZE + 4)}, "length is"),
    "negative length": ({"length": "-1"}, "length is"),
    "offset is text": ({"offset": "zero"}, "not a number"),
    "offset is empty": ({"offset": ""}, "not a number"),
    "offset as Python writes it": ({"offset": "0_0"}, "not a number"),
    "offset with a blank": ({"offset": " 0"}, "not a number"),
    "offset in other digits": ({"offset": "\N{ARABIC-INDIC DIGIT ZERO}"}, "not a number"),
    "length is text": ({"length": "1e3"}, "not a number"),
}


def in_initializer(tensor):
    proto = builders.constants()
    del proto.graph.node[0]
    proto.graph.initializer.append(tensor)
    return proto


def in_constant(tensor):
    proto = builders.constants()
    proto.graph.node[0].attribute[0].t.CopyFrom(tensor)
    return proto


def sparse_of(tensor):
    tensor.ClearField("dims")
    tensor.dims.append(64)
    indices = numpy_helper.from_array(np.arange(64), "w_indices")
    return onnx.SparseTensorProto(values=tensor, indices=indices, dims=[8, 8])


def in_sparse_initializer(tensor):
    proto = builders.constants()
    del proto.graph.node[0]
    proto.graph.sparse_initializer.append(sparse_of(tensor))
    return proto


def in_sparse_constant(tensor):
    proto = builders.constants()
    constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse_of(tensor))
    proto.graph.node[0].CopyFrom(constant)
    return proto


def in_sparse_indices(tensor):
    sparse = sparse_of(tensor)
    sparse.values.CopyFrom(numpy_helper.from_array(VALUES.reshape(-1), "w"))
    indices = numpy_helper.from_array(np.arange(32), "w_indices")  # as many bytes as VALUES
    indices.external_data.extend(tensor.external_data)
    indices.data_location = onnx.TensorProto.EXTERNAL
    indices.ClearField("raw_data")
    sparse.indices.CopyFrom(indices)
    proto = builders.constants()
    del proto.graph.node[0]
    proto.graph.sparse_initializer.append(sparse)
    return proto


def in_function(tensor):
    body = list(in_constant(tensor).graph.node)
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "f", ["x"], ["y"], body, opsets)
    node = helper.make_node("f", ["x"], ["y"], domain="local")
    return builders.model([node], [builders.value("x", 2, 8)], [builders.value("y", 2, 8)], functions=[function])


def in_subgraph(tensor):
    proto = builders.branch()
    graph = next(a.g for a in proto.graph.node[0].attribute if a.g.initializer)
    tensor.name = graph.initializer[0].name
    graph.initializer[0].CopyFrom(tensor)
    return proto


DENSE = {"initializer": in_initializer, "constant": in_constant, "function": in_function, "subgraph": in_subgraph}
SPARSE = {
    "sparse initializer": in_sparse_initializer,
    "sparse constant": in_sparse_constant,
    "sparse indices": in_sparse_indices,
}
PLACES = {**DENSE, **SPARSE}


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "good.data").write_bytes(VALUES.tobytes())
    (folder / "short.data").write_bytes(VALUES.tobytes()[:-1])
    return folder


def make(home, place, location="good.data", offset="0", length=str(SIZE)):
    tensor = numpy_helper.from_array(VALUES, "w")
    builders.point_outside(tensor, location, offset, length)
    return builders.save(PLACES[place](tensor), home / "model.onnx")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("trick", UNSAFE)
def test_what_reaches_outside_is_refused(tmp_path, home, trick, place):
    location, message = UNSAFE[trick]
    if callable(location):
        location = location(tmp_path, home)
    path = make(home, place, location)
    with pytest.raises(UnsafeModelError, match=message) as error:
        load(path)
    assert f"{path}: tensor w" in error.value.where or "tensor inner" in error.value.where


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", INVALID)
def test_what_is_missing_or_misplaced_is_refused(home, fault, place):
    entries, message = INVALID[fault]
    path = make(home, place, **entries)
    with pytest.raises(InvalidModelError, match=message) as error:
        load(path)
    assert type(error.value) is InvalidModelError
    assert "tensor " in error.value.where


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_a_key_that_stands_twice_is_refused(home, place, key):
    tensor = numpy_helper.from_array(VALUES, "w")
    builders.point_outside(tensor, "good.data", 0, SIZE)
    tensor.external_data.add(key=key, value="0")
    path = builders.save(PLACES[place](tensor), home / "model.onnx")
    with pytest.raises(InvalidModelError, match=f"'{key}' stands twice"):
        load(path)


def test_a_location_that_is_not_utf8_is_refused(home):
    path = make(home, "initializer")
    path.write_bytes(path.read_bytes().replace(b"good.data", b"go\xffd.data"))
    with pytest.raises(UnsafeModelError, match="UTF-8"):
        load(path)


def test_a_string_tensor_cannot_lie_outside(home):
    tensor = helper.make_tensor("w", onnx.TensorProto.STRING, [1], [b"a"])
    tensor.ClearField("string_data")
    builders.point_outside(tensor, "good.data", 0, 1)
    with pytest.raises(InvalidModelError, match="string tensor"):
        load(builders.save(in_initializer(tensor), home / "model.onnx"))


def tensor_of(model, place):
    if place == "initializer":
        return model.graph.initializers["w"].const_value
    if place == "subgraph":
        graph = next(g for g in model.graphs() if "inner" in g.initializers)
        return graph.initializers["inner"].const_value
    graph = model.graph if place == "constant" else next(iter(model.functions.values())).graph
    return graph[0].attributes["value"].as_tensor()


@pytest.mark.parametrize("place", DENSE)
@pytest.mark.parametrize("location", ["good.data", "./good.data", "deep/er/good.data"])
def test_good_data_loads_from_any_working_folder(home, tmp_path, monkeypatch, place, location):
    (home / "deep/er").mkdir(parents=True)
    (home / "deep/er/good.data").write_bytes(VALUES.tobytes())
    make(home, place, location)
    monkeypatch.chdir(home)
    model = load("model.onnx")
    other = tmp_path / "other"
    other.mkdir()
    (other / "good.data").write_bytes(bytes(SIZE))
    monkeypatch.chdir(other)
    np.testing.assert_array_equal(tensor_of(model, place).numpy(), VALUES)


@pytest.mark.parametrize("place", DENSE)
def test_what_is_written_stands_alone(home, tmp_path, place):
    model = load(make(home, place))
    out = write_to(model, tmp_path, "o")
    (home / "good.data").unlink()
    assert fingerprint(out).external == ()
    np.testing.assert_array_equal(tensor_of(load(out), place).numpy(), VALUES)


def test_offsets_are_honoured(home):
    (home / "good.data").write_bytes(bytes(12) + VALUES.tobytes() + bytes(3))
    model = load(make(home, "initializer", offset="12"))
    np.testing.assert_array_equal(tensor_of(model, "initializer").numpy(), VALUES)


def test_offset_and_length_may_be_left_out(home):
    tensor = numpy_helper.from_array(VALUES, "w")
    builders.point_outside(tensor, "good.data")
    del tensor.external_data[1:]
    model = load(builders.save(in_initializer(tensor), home / "model.onnx"))
    np.testing.assert_array_equal(tensor_of(model, "initializer").numpy(), VALUES)


def test_a_model_reached_through_a_link_keeps_its_data_beside_the_link(home, tmp_path):
    path = make(home, "initializer")
    (tmp_path / "linked").symlink_to(home)
    model = load(tmp_path / "linked" / path.name)
    np.testing.assert_array_equal(tensor_of(model, "initializer").numpy(), VALUES)


@pytest.mark.parametrize("place", ["sparse initializer", "sparse constant"])
def test_good_sparse_data_outside_is_not_supported(home, place):
    with pytest.raises(UnsupportedError, match="sparse tensor with external data"):
        load(make(home, place))


def test_refusing_leaks_no_descriptor(home):
    from pathlib import Path

    path = make(home, "initializer", "none.data")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        with pytest.raises(InvalidModelError):
            load(path)
    assert len(list(descriptors.iterdir())) < before + 20
