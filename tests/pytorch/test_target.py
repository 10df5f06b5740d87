"""From what the user names to a module with weights and example inputs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_modules
from safetensors.torch import save_file
from torch import nn

from onnxcomp.errors import DataError, UnsupportedError, UsageError
from onnxcomp.pytorch.target import inputs_of, load_weights, module_of, resolve

FILE = torch_modules.__file__


@pytest.mark.parametrize("attribute", ["Perceptron", "INSTANCE", "factory", "WITH_EXAMPLES", "WITH_ONE_TENSOR"])
@pytest.mark.parametrize("place", ["torch_modules", FILE])
def test_attributes(place, attribute):
    module, examples = module_of(f"{place}:{attribute}")
    assert type(module).__name__ == "Perceptron"
    assert not module.training
    assert [tuple(e.shape) for e in examples] == {"WITH_EXAMPLES": [(1, 4)], "WITH_ONE_TENSOR": [(2, 4)]}.get(
        attribute, []
    )


def test_objects():
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    found, examples = module_of((module, [torch.ones(2, 4)]))
    assert found is module
    assert not any(part.training for part in found.modules())
    assert len(examples) == 1


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("torch_modules", "not of the form"),
        ("torch_modules:", "not of the form"),
        ("no_such_module:x", "cannot import 'no_such_module'"),
        ("torch_modules:Perceptrom", "has no 'Perceptrom'"),
        ("nowhere.py:build", "no such file"),
        (f"{FILE}:NOT_A_MODULE", "a dict, not a torch module"),
        (f"{FILE}:TRIPLE", "(module, example inputs)"),
        (f"{FILE}:WITH_ARRAYS", "must be tensors"),
        (f"{FILE}:Wide", "missing 1 required positional argument: 'width'"),
        (f"{FILE}:failing", "RuntimeError: no such checkpoint"),
    ],
)
def test_wrong_targets(target, text):
    with pytest.raises(UsageError) as caught:
        module_of(target)
    assert text in caught.value.message
    assert caught.value.where


def test_a_factory_that_fails_is_said_with_its_line_and_what_is_expected():
    with pytest.raises(UsageError) as caught:
        module_of(f"{FILE}:failing")
    lines = Path(FILE).read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "no such checkpoint" in line)
    assert caught.value.where.endswith(f"torch_modules.py:{number}")
    assert "without arguments" in caught.value.hint


def state(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {"fc.weight": torch.randn(3, 4, generator=generator), "fc.bias": torch.randn(3, generator=generator)}


def test_weights_from_safetensors_and_checkpoints(tmp_path):
    save_file(state(), tmp_path / "w.safetensors")
    torch.save(state(), tmp_path / "plain.pt")
    torch.save({"state_dict": state()}, tmp_path / "nested.ckpt")
    for path in tmp_path.iterdir():
        module = torch_modules.Perceptron()
        load_weights(module, path)
        assert torch.equal(module.fc.weight, state()["fc.weight"]), path.name
        assert torch.equal(module.fc.bias, state()["fc.bias"]), path.name


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_with_code_is_refused_and_the_code_does_not_run(save, tmp_path):
    path, trace = tmp_path / "w.pt", tmp_path / "trace"
    save({**state(), "extra": torch_modules.MakesFolder(trace)}, path)
    with pytest.raises(DataError) as caught:
        load_weights(torch_modules.Perceptron(), path)
    assert "could run code" in caught.value.message
    assert "safetensors" in caught.value.hint
    assert not trace.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\xff" * 64])
def test_damaged_weights(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_weights(torch_modules.Perceptron(), path)
    assert caught.value.where == str(path)


def test_truncated_and_missing_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(torch_modules.Perceptron(), path)
    with pytest.raises(DataError, match="no such weights"):
        load_weights(torch_modules.Perceptron(), tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fc.bias": None}, "fc.bias"),
        ({"head.bias": torch.ones(3)}, "head.bias"),
        ({"fc.bias": torch.ones(5)}, "size mismatch"),
    ],
)
def test_weights_that_do_not_fit(change, text, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({name: value for name, value in {**state(), **change}.items() if value is not None}, path)
    with pytest.raises(DataError, match="do not fit") as caught:
        load_weights(torch_modules.Perceptron(), path)
    assert text in caught.value.message


def test_a_checkpoint_that_holds_one_tensor_does_not_fit(tmp_path):
    torch.save(torch.ones(3), tmp_path / "w.pt")
    with pytest.raises(DataError, match="do not fit"):
        load_weights(torch_modules.Perceptron(), tmp_path / "w.pt")


def test_inputs_from_examples_keep_name_type_and_values():
    examples = (torch.ones(2, 4), torch.full((2, 4), 7))
    found = inputs_of(torch_modules.Several(), examples, [])
    assert [(i.name, i.dtype, i.shape) for i in found] == [("a", "float32", (2, 4)), ("mask", "int64", (2, 4))]
    assert found[1].example.max() == 7


def test_specs_go_before_examples():
    found = inputs_of(torch_modules.Perceptron(), (torch.ones(2, 4),), ["x:float64[5,4]"])
    assert [(i.dtype, i.shape, i.example) for i in found] == [("float64", (5, 4), None)]


@pytest.mark.parametrize(
    ("module", "examples", "specs", "text"),
    [
        (torch_modules.Bare(), (), [], "not known"),
        (torch_modules.Bare(), (), ["x:float32[2]"], "also needs 'y'"),
        (torch_modules.Bare(), (), ["y:float32[2]"], "also needs 'x'"),
        (torch_modules.Bare(), (), ["x:float32[2]", "y:float32[2]", "x:float32[3]"], "'x' is given twice"),
        (torch_modules.Perceptron(), (torch.ones(2), torch.ones(2)), [], "2 example inputs for 1 arguments"),
    ],
)
def test_inputs_that_do_not_fit_forward(module, examples, specs, text):
    with pytest.raises(UsageError, match=text):
        inputs_of(module, examples, specs)


def test_arguments_with_defaults_may_be_left_out_anywhere():
    module = torch_modules.Defaults()
    assert [i.name for i in inputs_of(module, (), ["y:float32[2]", "x:float32[2]"])] == ["x", "y"]
    assert [i.name for i in inputs_of(module, (torch.ones(2),), [])] == ["x"]
    with pytest.raises(UsageError, match="also needs 'x'"):
        inputs_of(module, (), ["y:float32[2]"])


def test_arguments_by_keyword_only_are_inputs():
    assert [i.name for i in inputs_of(torch_modules.ByKeyword(), (), ["scale:float32[2]", "x:float32[2]"])] == [
        "x",
        "scale",
    ]
    with pytest.raises(UsageError, match="also needs 'scale'"):
        inputs_of(torch_modules.ByKeyword(), (), ["x:float32[2]"])


def test_the_hint_shows_how_to_give_shapes():
    with pytest.raises(UsageError) as caught:
        inputs_of(torch_modules.Bare(), (), [])
    assert "--inputs 'x:float32[1,...]' --inputs 'y:float32[1,...]'" in caught.value.hint


def test_examples_that_numpy_has_no_type_for():
    with pytest.raises(UnsupportedError, match="bfloat16"):
        inputs_of(torch_modules.Perceptron(), (torch.ones(2, 4, dtype=torch.bfloat16),), [])


def test_resolving_captures_with_the_weights_given(tmp_path):
    save_file(state(), tmp_path / "w.safetensors")
    subject = resolve(f"{FILE}:Perceptron", ["x:float32[1,4]"], ["x:0=batch"], tmp_path / "w.safetensors")
    assert [(i.name, i.shape, dict(i.dims)) for i in subject.inputs] == [("x", (2, 4), {0: "batch"})]
    module = torch_modules.Perceptron()
    module.load_state_dict(state())
    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    for call in (subject.eager, subject.captured):
        (got,) = call({"x": x})
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("options", [{"inputs": ["x:float32[2]"]}, {"weights": Path("w.safetensors")}])
def test_a_program_takes_neither_inputs_nor_weights(options):
    with pytest.raises(UsageError, match="brings its inputs and weights"):
        resolve("m.pt2", **{"inputs": [], "dynamic": [], "weights": None, **options})
