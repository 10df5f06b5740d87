"""Programs saved by torch.export.save: exported, and never more than data."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from unittest import mock

import numpy as np
import pytest
import torch
import torch_modules
from torch import nn

from onnxcomp import worker
from onnxcomp.errors import DataError, GateError, UnsupportedError, UsageError
from onnxcomp.pytorch import export
from onnxcomp.pytorch.programs import load
from onnxcomp.runtime import open_session

DYNAMIC = torch.export.Dim.DYNAMIC


class Shifted(nn.Module):
    """A parameter, a buffer and a constant: (rows, 4), (rows, 4) -> (rows, 3)."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

    def forward(self, x, y):
        return {"sum": self.fc(x + y) + self.shift, "scaled": x * 2}


def captured(module, *examples, **shapes):
    return torch.export.export(module.eval(), examples, dynamic_shapes=shapes or None)


@pytest.fixture(autouse=True)
def as_a_fresh_process(monkeypatch):
    """Loading forces `weights_only` by a variable, which must not be set before, nor stay."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")


@pytest.fixture
def program(tmp_path):
    """Its first axes are one open size."""
    path = tmp_path / "p.pt2"
    torch.manual_seed(2)
    torch.export.save(captured(Shifted(), torch.zeros(3, 4), torch.ones(3, 4), x={0: DYNAMIC}, y={0: DYNAMIC}), path)
    return path


@pytest.fixture
def here():
    with mock.patch.object(worker, "isolated", lambda fn, job, *, limits, on_progress: fn(job)):
        yield


def rewritten(path, change=None, **added):
    """Replace entries by `change(name, data)`, and add some below the archive's folder."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(entries)).partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name.partition("/")[2], data) if change else data)
        for name, data in added.items():
            archive.writestr(f"{folder}/{name}", data)


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_program_becomes_a_model_with_its_names_and_axes(program, here, tmp_path):
    done = export(str(program), tmp_path / "m.onnx")
    assert [(i.name, i.dtype, i.shape) for i in done.signature.inputs] == [
        ("x", "float32", ("batch", 4)),
        ("y", "float32", ("batch", 4)),
    ]
    assert [(o.name, o.shape) for o in done.signature.outputs] == [("sum", ("batch", 3)), ("scaled", ("batch", 4))]
    assert len({check.sizes["batch"] for check in done.parity}) >= 4
    torch.manual_seed(2)
    module = Shifted()
    feeds = {name: np.random.default_rng(i).standard_normal((7, 4)).astype("f4") for i, name in enumerate("xy")}
    with torch.inference_mode():
        expected = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    got = open_session(done.output.path).run(feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array.numpy(), rtol=1e-5, atol=1e-6)


def test_examples_are_those_saved(program):
    subject = load(program, [])
    assert [(one.name, one.shape, dict(one.dims)) for one in subject.inputs] == [
        ("x", (3, 4), {0: "batch"}),
        ("y", (3, 4), {0: "batch"}),
    ]
    assert [float(one.traced().mean()) for one in subject.inputs] == [0, 1]


def test_an_open_axis_is_renamed_wherever_it_stands(program):
    assert [dict(one.dims) for one in load(program, ["y:0=rows"]).inputs] == [{0: "rows"}, {0: "rows"}]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("x:1=width", "fixed in the program"),
        ("x:2=width", "no axis 2 of 'x'"),
        ("z:0=rows", "no axis 0 of 'z'"),
        ("p_fc_weight:0=rows", "no axis 0 of 'p_fc_weight'"),
        ("x=rows", "not of the form"),
    ],
)
def test_axes_that_the_program_does_not_leave_open(spec, text, program):
    with pytest.raises(UsageError, match=text) as caught:
        load(program, [spec])
    assert caught.value.where == f"--dynamic {spec}"


def test_sizes_of_their_own_have_names_of_their_own(tmp_path):
    path = tmp_path / "p.pt2"
    example = torch.rand(3, 5)
    open_axes = {0: DYNAMIC, 1: DYNAMIC}
    torch.export.save(captured(Outer(), example, torch.rand(2, 6), x=open_axes, y=open_axes), path)
    assert [dict(one.dims) for one in load(path, []).inputs] == [{0: "batch", 1: "dim_1"}, {0: "y_0", 1: "y_1"}]


class Outer(nn.Module):
    def forward(self, x, y):
        return x.sum() * y


def test_a_loop_baked_into_a_program_is_refused_with_its_guard(here, tmp_path):
    path, folder = tmp_path / "p.pt2", tmp_path / "out"
    folder.mkdir()
    torch.export.save(captured(torch_modules.Loop(), torch.rand(2, 12, 4), x={0: DYNAMIC, 1: DYNAMIC}), path)
    with pytest.raises(GateError, match=r"x\.size\(\)\[1\] // 4 == 3"):
        export(str(path), folder / "m.onnx")
    assert list(folder.iterdir()) == []


def test_a_program_of_fixed_sizes(tmp_path):
    path = tmp_path / "p.pt2"
    torch.export.save(captured(torch_modules.Perceptron(), torch.rand(2, 4)), path)
    (one,) = load(path, []).inputs
    assert (one.shape, dict(one.dims)) == ((2, 4), {})


def test_remarks_beside_the_program_do_no_harm(program):
    rewritten(program, **{"extra/note.txt": b"trained on a Tuesday"})
    assert len(load(program, []).inputs) == 2


def in_samples(trace):
    def change(name, data):
        return pickled(torch_modules.MakesFolder(trace)) if name == "data/sample_inputs/model.pt" else data

    return change


def in_config(kind, trace):
    """The first weight or constant as a pickle, as torch writes those of subclasses."""
    entry, config = {
        "weights": ("data/weights/weight_0", "data/weights/model_weights_config.json"),
        "constants": ("data/constants/tensor_0", "data/constants/model_constants_config.json"),
    }[kind]

    def change(name, data):
        if name == config:
            payload = json.loads(data)
            next(iter(payload["config"].values()))["use_pickle"] = True
            return json.dumps(payload).encode()
        return pickled(torch_modules.MakesFolder(trace)) if name == entry else data

    return change


@pytest.mark.parametrize("place", ["samples", "weights", "constants"])
def test_pickles_in_a_program_are_refused_and_do_not_run(place, program, tmp_path):
    trace = tmp_path / "trace"
    rewritten(program, in_samples(trace) if place == "samples" else in_config(place, trace))
    with pytest.raises(DataError) as caught:
        load(program, [])
    assert "could run code" in caught.value.message
    assert caught.value.where == str(program)
    assert not trace.exists()


@pytest.mark.parametrize("prefix", ["opaque_obj_0", "OPAQUE_OBJ_0", "custom_obj_0"])
def test_objects_among_the_constants_are_refused_and_do_not_run(prefix, program, tmp_path):
    trace = tmp_path / "trace"

    def change(name, data):
        if name != "data/constants/model_constants_config.json":
            return data
        payload = json.loads(data)
        next(iter(payload["config"].values())).update(path_name=prefix.lower(), use_pickle=True)
        return json.dumps(payload).encode()

    rewritten(program, change, **{f"data/constants/{prefix}": pickle.dumps(torch_modules.MakesFolder(trace))})
    with pytest.raises(UnsupportedError, match="compiled code or objects") as caught:
        load(program, [])
    assert prefix in caught.value.where
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/model.so",
        "data/aotinductor/model/model.wrapper.cpp",
        "data/weights/kernel.so",
        "data/weights/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/executorch/model.pte",
        "models/other.json",
    ],
)
def test_what_is_neither_graph_nor_tensor_is_refused(name, program):
    rewritten(program, **{name: b"\x7fELF"})
    with pytest.raises(UnsupportedError) as caught:
        load(program, [])
    assert caught.value.where == f"{program}: {name}"


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x05\x06" + bytes(18), b"\xff" * 4096])
def test_files_that_are_no_programs(content, tmp_path):
    path = tmp_path / "p.pt2"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a program") as caught:
        load(path, [])
    assert caught.value.where == str(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_programs(share, program):
    data = program.read_bytes()
    program.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError):
        load(program, [])


@pytest.mark.parametrize("name", ["models/model.json", "data/weights/model_weights_config.json", "archive_format"])
def test_damaged_entries(name, program):
    rewritten(program, lambda found, data: b"{]" if found == name else data)
    with pytest.raises(DataError) as caught:
        load(program, [])
    assert caught.value.where == str(program)
    assert "\n" not in caught.value.message


def test_an_archive_without_a_program(tmp_path):
    path = tmp_path / "p.pt2"
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises((DataError, UnsupportedError)):
        load(path, [])
    with pytest.raises(DataError, match="no such program"):
        load(tmp_path / "none.pt2", [])


def test_a_program_without_examples_is_refused(tmp_path):
    path = tmp_path / "p.pt2"
    program = captured(torch_modules.Perceptron(), torch.rand(2, 4))
    program.example_inputs = None
    torch.export.save(program, path)
    with pytest.raises(UnsupportedError, match="no example inputs"):
        load(path, [])


def test_inputs_that_are_no_tensors_are_refused(tmp_path):
    path = tmp_path / "p.pt2"
    torch.export.save(captured(torch_modules.Bare(), torch.rand(2, 4), 3), path)
    with pytest.raises(UnsupportedError, match="not tensors"):
        load(path, [])
