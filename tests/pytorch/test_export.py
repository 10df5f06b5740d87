"""Export in a child process, behind the gate of parity."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
import torch_modules
from safetensors.torch import save_file
from torch import nn

from onnxcomp import worker
from onnxcomp.errors import AccuracyGateError, DataError, GateError, OutputError, UnsupportedError, UsageError
from onnxcomp.pytorch import export
from onnxcomp.runtime import open_session

FILE = torch_modules.__file__


def in_process():
    """Exports run in this process: nothing to isolate, and the start of a child saved."""
    return mock.patch.object(worker, "isolated", lambda fn, job, *, limits, on_progress: fn(job))


@pytest.fixture
def here():
    with in_process():
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(module, what its export says) of a dynamic batch; the weights are those of the module."""
    place = tmp_path_factory.mktemp("export")
    torch.manual_seed(1)
    module = torch_modules.Perceptron()
    save_file(module.state_dict(), place / "weights.safetensors")
    done = export(
        f"{FILE}:Perceptron",
        place / "m.onnx",
        inputs=["x:float32[1,4]"],
        dynamic=["x:0=batch"],
        weights=place / "weights.safetensors",
        check_sizes=["batch=7"],
    )
    return module, done


def refused(error, tmp_path, target, **options):
    """The error of an export that must leave nothing behind."""
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(error) as caught:
        export(target, folder / "m.onnx", **options)
    assert list(folder.iterdir()) == []
    return caught.value


def test_the_file_computes_what_torch_does_at_sizes_never_seen(exported):
    module, done = exported
    x = np.random.default_rng(5).standard_normal((11, 4)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(open_session(done.output.path).run({"x": x})["output"], expected, rtol=1e-5, atol=1e-6)


def test_names_and_dynamic_axes_are_those_asked_for(exported):
    _, done = exported
    session = open_session(done.output.path).signature
    assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [("x", "float32", ("batch", 4))]
    assert [(o.name, o.dtype, o.shape) for o in session.outputs] == [("output", "float32", ("batch", 3))]
    assert session == done.signature


def test_parity_covers_the_traced_size_three_others_and_the_ones_asked_for(exported):
    _, done = exported
    sizes = [check.sizes["batch"] for check in done.parity]
    assert sizes[0] == 2
    assert len({*sizes} - {2}) >= 3
    assert 7 in sizes
    assert all(check.max_rel_error < 1e-5 for check in done.parity)


def test_json_of_an_export(exported):
    _, done = exported
    document = json.loads(json.dumps(done.to_json()))
    assert document["output"] == done.output.to_json()
    assert document["opset"] == 20
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]
    assert document["parity"][0] == {
        "sizes": {"batch": 2},
        "max_rel_error": done.parity[0].max_rel_error,
        "inputs": "seeded",
    }
    assert document["seconds"] > 0


def test_the_file_says_nothing_about_the_machine_that_made_it(exported):
    data = Path(exported[1].output.path).read_bytes()
    for secret in (Path(FILE).parent, Path.home(), "torch_modules", "stack_trace", "site-packages", "File "):
        assert str(secret).encode() not in data


def test_same_export_same_bytes(here, exported, tmp_path):
    _, done = exported
    weights = Path(done.output.path).with_name("weights.safetensors")
    again = export(
        f"{FILE}:Perceptron",
        tmp_path / "m.onnx",
        inputs=["x:float32[1,4]"],
        dynamic=["x:0=batch"],
        weights=weights,
    )
    assert again.output.sha256 == done.output.sha256


def test_random_weights_are_the_same_each_time(here, tmp_path):
    hashes = set()
    for name in ("a", "b"):
        torch.rand(3)
        done = export(f"{FILE}:Perceptron", tmp_path / f"{name}.onnx", inputs=["x:float32[2,4]"])
        hashes.add(done.output.sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize("attribute", ["factory", "INSTANCE", "WITH_EXAMPLES", "WITH_ONE_TENSOR"])
def test_targets_by_module_and_file(attribute, here, tmp_path):
    inputs = [] if attribute.startswith("WITH") else ["x:float32[2,4]"]
    done = export(f"torch_modules:{attribute}", tmp_path / "m.onnx", inputs=inputs, dynamic=["x:0=batch"])
    assert [i.shape for i in done.signature.inputs] == [("batch", 4)]
    static = export(f"{FILE}:{attribute}", tmp_path / "s.onnx", inputs=inputs)
    assert isinstance(static.signature.inputs[0].shape[0], int)


def test_a_static_model_is_compared_twice_with_different_values(here, tmp_path):
    done = export((torch_modules.INSTANCE, torch.ones(2, 4)), tmp_path / "m.onnx")
    assert [check.sizes for check in done.parity] == [{}, {}]


def test_the_users_module_stays_as_it_is(tmp_path):
    module = torch_modules.Norm().train()
    module.conv.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    example = torch.rand(2, 1, 6, 6)
    generator = torch.get_rng_state()
    done = export((module, example), tmp_path / "m.onnx", dynamic=["image:0=batch"])
    assert all(part.training for part in module.modules())
    assert not module.conv.weight.requires_grad
    assert module.norm.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    image = torch.rand(5, 1, 6, 6)
    with torch.inference_mode():
        expected = module.eval()(image).numpy()
    got = open_session(done.output.path).run({"image": image.numpy()})["output"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_recurrent_nets_export_twice_in_a_row(tmp_path):
    for name in ("first", "second"):
        done = export(
            f"{FILE}:Recurrent",
            tmp_path / f"{name}.onnx",
            inputs=["x:float32[2,7,4]"],
            dynamic=["x:0=batch", "x:1=seq"],
        )
        assert done.signature.inputs[0].shape == ("batch", "seq", 4)
        assert done.signature.outputs[0].shape[1] != 7
        assert len({check.sizes["seq"] for check in done.parity}) >= 3


@pytest.mark.parametrize("name", ["embedding", "relu", "linear", "mul", "table.weight", "val_0"])
def test_an_output_may_be_named_like_what_is_inside(name, here, tmp_path):
    done = export(
        f"{FILE}:Embedded",
        tmp_path / "m.onnx",
        inputs=["ids:int64[2,5]"],
        dynamic=["ids:0=batch", "ids:1=seq"],
        output_names=[name],
    )
    assert [o.name for o in done.signature.outputs] == [name]
    assert [i.name for i in done.signature.inputs] == ["ids"]
    onnx.checker.check_model(done.output.path, full_check=True)


def test_an_input_may_be_named_like_an_operator(here, tmp_path):
    done = export(f"{FILE}:NamedLikeOperators", tmp_path / "m.onnx", inputs=["float32[2,4]"], output_names=["add"])
    assert (done.signature.inputs[0].name, done.signature.outputs[0].name) == ("relu", "add")


def test_several_outputs(here, tmp_path):
    options = {"inputs": ["mask:int64[2,4]", "a:float32[2,4]"], "dynamic": ["a:0=batch", "mask:0=batch"]}
    done = export(f"{FILE}:Several", tmp_path / "m.onnx", **options)
    assert [(i.name, i.dtype) for i in done.signature.inputs] == [("a", "float32"), ("mask", "int64")]
    assert [o.name for o in done.signature.outputs] == ["product", "sum"]
    named = export(f"{FILE}:Several", tmp_path / "n.onnx", output_names=["a_mul", "a_add"], **options)
    feeds = {"a": np.full((3, 4), 2, np.float32), "mask": np.full((3, 4), 5, np.int64)}
    got = open_session(named.output.path).run(feeds)
    assert (got["a_mul"][0, 0], got["a_add"][0, 0]) == (10, 7)


@pytest.mark.parametrize(
    ("names", "text"),
    [(["one"], "2 outputs, 1 names"), (["same", "same"], "must differ"), (["a", "b"], "must differ")],
)
def test_output_names_that_do_not_fit(names, text, here, tmp_path):
    options = {"inputs": ["a:float32[2,4]", "mask:int64[2,4]"], "output_names": names}
    error = refused(UsageError, tmp_path, f"{FILE}:Several", **options)
    assert text in error.message
    assert error.where == "--output-names"


def test_opset_and_optional_arguments(here, tmp_path):
    done = export(f"{FILE}:Optional", tmp_path / "m.onnx", inputs=["float32[2,4]"], opset=18)
    assert done.opset == 18
    assert onnx.load(done.output.path).opset_import[0].version == 18
    assert [i.name for i in done.signature.inputs] == ["x"]


@pytest.mark.parametrize(
    ("attribute", "inputs", "dynamic", "error", "text"),
    [
        ("Loop", "x:float32[2,12,4]", ["x:0=batch", "x:1=seq"], GateError, "Guard failed: x.size()[1] // 4 == 3"),
        ("BakedReshape", "x:float32[2,4]", ["x:0=batch"], UnsupportedError, "specialized it to be a constant (2)"),
    ],
)
def test_a_size_that_python_fixed_is_refused(attribute, inputs, dynamic, error, text, here, tmp_path):
    caught = refused(error, tmp_path, f"{FILE}:{attribute}", inputs=[inputs], dynamic=dynamic)
    assert text in caught.message
    assert "x.shape" in caught.hint


def test_two_names_of_one_size_are_refused(here, tmp_path):
    options = {"inputs": ["x:float32[2,4]", "y:float32[2,4]"], "dynamic": ["x:0=rows", "y:0=batch"]}
    error = refused(GateError, tmp_path, f"{FILE}:Bare", **options)
    assert "'rows' and 'batch' are one size" in error.message
    assert error.where == "input y"


def test_a_loop_over_a_static_axis_is_fine(here, tmp_path):
    done = export(f"{FILE}:Loop", tmp_path / "m.onnx", inputs=["x:float32[2,12,4]"], dynamic=["x:0=batch"])
    assert done.signature.inputs[0].shape == ("batch", 12, 4)


def test_a_data_dependent_branch_is_refused_in_one_line(here, tmp_path, capfd):
    error = refused(UnsupportedError, tmp_path, f"{FILE}:Branch", inputs=["x:float32[2,4]"])
    assert "data-dependent" in error.message
    assert "torch.cond" in error.hint
    assert "\n" not in error.message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("attribute", ["LiveDropout", "OtherwiseInOnnx"])
def test_a_model_that_differs_from_torch_is_refused(attribute, here, tmp_path):
    options = {"inputs": ["x:float32[2,4]"], "dynamic": ["x:0=batch"]}
    error = refused(AccuracyGateError, tmp_path, f"{FILE}:{attribute}", **options)
    assert "differs from torch" in error.message
    assert error.where == "output output"


def test_the_tolerance_is_the_callers(here, tmp_path):
    options = {"inputs": ["x:float32[2,4]"], "dynamic": ["x:0=batch"], "tolerance": 0.1}
    done = export(f"{FILE}:OtherwiseInOnnx", tmp_path / "m.onnx", **options)
    assert done.parity[0].max_rel_error == pytest.approx(0.01, rel=1e-2)


def test_weights_that_do_not_fit_are_refused(here, tmp_path):
    save_file({"other": torch.ones(2)}, tmp_path / "w.safetensors")
    options = {"inputs": ["x:float32[2,4]"], "weights": tmp_path / "w.safetensors"}
    assert "fc.weight" in refused(DataError, tmp_path, f"{FILE}:Perceptron", **options).message


def test_an_existing_output_is_kept_unless_forced(here, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export(f"{FILE}:Perceptron", path, inputs=["x:float32[2,4]"])
    assert path.read_text() == "mine"
    export(f"{FILE}:Perceptron", path, inputs=["x:float32[2,4]"], force=True)
    assert open_session(path).signature.inputs[0].name == "x"


def test_a_refused_export_keeps_the_old_output_even_when_forced(here, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(AccuracyGateError):
        export(f"{FILE}:LiveDropout", path, inputs=["x:float32[2,4]"], force=True)
    assert path.read_text() == "mine"


def test_without_torch_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused(UnsupportedError, tmp_path, f"{FILE}:Perceptron")
    assert "torch" in error.message
    assert "onnxcomp[torch]" in error.hint


@pytest.mark.parametrize("opset", [17, 24])
def test_opsets_out_of_range(opset, tmp_path):
    error = refused(UsageError, tmp_path, f"{FILE}:Perceptron", opset=opset)
    assert error.where == "--opset"
    assert "20" in error.hint


def test_classes_that_the_child_cannot_import_are_refused(monkeypatch, tmp_path):
    class Local(torch.nn.Module):
        pass

    example = torch.ones(2, 4)
    assert "a function" in refused(UsageError, tmp_path, (Local(), example)).message
    monkeypatch.setattr(torch_modules.Perceptron, "__module__", "__main__")
    with pytest.raises(UsageError, match="main script") as caught:
        export((torch.nn.Sequential(torch_modules.Perceptron()), example), tmp_path / "m.onnx")
    assert "file.py:attr" in caught.value.hint


def outputs_of(done, feeds):
    return open_session(done.output.path).run(feeds)


def test_outputs_that_are_inputs_or_parameters_and_what_is_not_there(here, tmp_path):
    options = {"inputs": ["x:float32[2,4]"], "dynamic": ["x:0=batch"]}
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    got = outputs_of(export(torch_modules.Through(), tmp_path / "t.onnx", **options), {"x": x})
    assert list(got) == ["output_0", "output_2"]
    np.testing.assert_array_equal([*got.values()], [x, x * 2])
    got = outputs_of(export(torch_modules.GivesParameter(), tmp_path / "p.onnx", **options), {"x": x})
    np.testing.assert_array_equal(got["output_1"], [1, 2])


def test_nested_outputs_are_named_by_their_place(here, tmp_path):
    done = export(torch_modules.Nested(), tmp_path / "m.onnx", inputs=["x:float32[2,4]"], dynamic=["x:0=batch"])
    got = outputs_of(done, {"x": np.zeros((3, 4), np.float32)})
    assert {name: array[0, 0] for name, array in got.items()} == {"last": 1, "past_0": 2, "past_1_0": 3, "past_1_1": 4}


def test_inputs_of_other_types_and_unused_ones(here, tmp_path):
    done = export(
        torch_modules.Chosen(),
        tmp_path / "m.onnx",
        inputs=["keep:bool[2,4]", "times:int32[2,4]", "x:float32[2,4]"],
        dynamic=["keep:0=batch", "times:0=batch", "x:0=batch"],
    )
    assert [(i.name, i.dtype) for i in done.signature.inputs] == [
        ("keep", "bool"),
        ("times", "int32"),
        ("x", "float32"),
    ]
    unused = export(torch_modules.Unused(), tmp_path / "u.onnx", inputs=["x:float32[2,4]", "other:int64[3]"])
    assert [(i.name, i.shape) for i in unused.signature.inputs] == [("x", (2, 4)), ("other", (3,))]


def test_a_module_that_writes_into_its_inputs_is_compared_on_what_it_was_given(here, tmp_path):
    options = {"inputs": ["x:float32[2,4]"], "dynamic": ["x:0=batch"]}
    done = export(torch_modules.WritesIntoInput(), tmp_path / "m.onnx", **options)
    assert outputs_of(done, {"x": np.ones((3, 4), np.float32)})["output"].max() == 2


@pytest.fixture(scope="module")
def purposes(tmp_path_factory):
    """(module, {purpose: ONNX model}) of the two flavours of one module, whose gate has been passed."""
    place = tmp_path_factory.mktemp("purposes")
    module = torch_modules.Trainable()
    options = {"inputs": ["x:float32[2,2,6,6]"], "dynamic": ["x:0=batch"]}
    found = {}
    for purpose in ("training", "serving"):
        with in_process():
            done = export(module, place / f"{purpose}.onnx", purpose=purpose, **options)
        assert all(check.max_rel_error < 1e-5 for check in done.parity)
        found[purpose] = onnx.load(done.output.path)
    return module, found


def operators(model):
    return {node.op_type for node in model.graph.node}


def stored(model):
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


def parameter_map(model):
    return json.loads({one.key: one.value for one in model.metadata_props}["onnxcomp.parameters"])


def test_for_training_every_parameter_keeps_its_name_and_value(purposes):
    module, models = purposes
    initializers = stored(models["training"])
    floats = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    for name, tensor in floats.items():
        np.testing.assert_array_equal(initializers[name], tensor.numpy(), err_msg=name)
    assert parameter_map(models["training"]) == {name: {"initializer": name, "transposed": False} for name in floats}


def test_for_training_batch_normalization_stays_and_for_serving_it_is_folded(purposes):
    _, models = purposes
    assert "BatchNormalization" in operators(models["training"])
    assert "BatchNormalization" not in operators(models["serving"])
    folded = parameter_map(models["serving"])
    assert {name for name, entry in folded.items() if entry is None} == {
        "conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    }  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_a_conv_keeps_its_name_when_batch_normalization_is_folded_into_it(bias, tmp_path):
    module = nn.Sequential(nn.Conv2d(2, 2, 3, bias=bias), nn.BatchNorm2d(2), nn.ReLU())
    names = {}
    for purpose in ("training", "serving"):
        with in_process():
            options = {"inputs": ["input:float32[2,2,6,6]"], "purpose": purpose}
            done = export(module, tmp_path / f"{purpose}.onnx", **options)
        names[purpose] = {node.op_type: node.name for node in onnx.load(done.output.path).graph.node}
    assert set(names["serving"]) == {"Conv", "Relu"}
    assert names["serving"].items() <= names["training"].items()


def test_equal_parameters_are_merged_for_serving_only(purposes):
    _, models = purposes
    assert {"first.weight", "second.weight", "first.bias", "second.bias"} <= set(stored(models["training"]))
    serving = parameter_map(models["serving"])
    assert serving["first.weight"] == serving["second.weight"]
    assert len(stored(models["serving"])) < len(stored(models["training"]))


@pytest.mark.parametrize("purpose", ["training", "serving"])
def test_nodes_know_their_module(purposes, purpose):
    _, models = purposes
    modules = {}
    for node in models[purpose].graph.node:
        for entry in node.metadata_props:
            assert entry.key == "onnxcomp.module"
            modules.setdefault(entry.value, set()).add(node.op_type)
    assert "Conv" in modules["conv"]
    assert "LayerNormalization" in modules["second"]
    assert {"MatMul", "Gemm"} & modules["head"]


def test_real_samples_are_compared_too(here, tmp_path):
    samples = np.random.default_rng(2).standard_normal((11, 4)).astype(np.float32)
    np.savez(tmp_path / "real.npz", x=samples, labels=np.zeros(11, np.int64))
    options = {"inputs": ["x:float32[2,4]"], "dynamic": ["x:0=batch"], "data": tmp_path / "real.npz"}
    done = export(f"{FILE}:Perceptron", tmp_path / "m.onnx", **options)
    kinds = [check.inputs for check in done.parity]
    assert kinds == sorted(kinds, reverse=True)
    assert sum(check.sizes["batch"] for check in done.parity if check.inputs == "real") == 11


def test_a_difference_on_the_real_samples_alone_is_refused(here, tmp_path):
    np.savez(tmp_path / "real.npz", x=np.full((4, 4), 1000, np.float32))
    options = {"inputs": ["x:float32[2,4]"], "dynamic": ["x:0=batch"]}
    assert export(f"{FILE}:OtherwiseWhenLarge", tmp_path / "m.onnx", **options)
    error = refused(
        AccuracyGateError, tmp_path, f"{FILE}:OtherwiseWhenLarge", data=str(tmp_path / "real.npz"), **options
    )
    assert "differs from torch" in error.message


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [("random:8", DataError, "random"), ("none.npz", OutputError, "no such file"), ("other.npz", DataError, "'y'")],
)
def test_data_that_proves_nothing(data, error, text, here, tmp_path):
    np.savez(tmp_path / "other.npz", y=np.ones((4, 4), np.float32))
    data = data if ":" in data else str(tmp_path / data)
    options = {"inputs": ["x:float32[2,4]"], "dynamic": ["x:0=batch"], "data": data}
    assert text in str(refused(error, tmp_path, f"{FILE}:Perceptron", **options))
