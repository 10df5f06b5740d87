"""The pass contract, over the whole catalogue and all models built in code."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp import model as models
from onnxcomp.data import Batches
from onnxcomp.errors import NoEffectError, OnnxcompError
from onnxcomp.model import load, signature, write_to
from onnxcomp.passes import CATALOGUE
from onnxcomp.pipeline import optimize
from onnxcomp.runtime import check_loads

MODELS = {
    "mlp": builders.mlp,
    "mlp opset 9": lambda: builders.mlp(opset=9),
    "cnn": builders.cnn,
    "cnn IR 3": lambda: builders.as_old(builders.cnn()),
    "encoder": builders.encoder,
    "branch": builders.branch,
    "relu": builders.relu,
    "layer norm": builders.layer_norm_empty_bias,
    "function": lambda: builders.function_bomb(3),
}


def feeds(inputs) -> dict[str, np.ndarray]:
    """Twelve samples that fit any of the models above, one whole input each."""
    out = {}
    for spec in inputs:
        shape = [d if isinstance(d, int) else 3 for d in spec.shape]
        if spec.dtype == "float32":
            out[spec.name] = builders.samples(12, *shape)
        else:
            out[spec.name] = np.random.default_rng(0).integers(0, 2, (12, *shape)).astype(spec.dtype)
    return out


@pytest.fixture(params=MODELS)
def path(request, tmp_path):
    return builders.save(MODELS[request.param](), tmp_path / "m.onnx")


@pytest.mark.parametrize("cls", CATALOGUE, ids=lambda cls: cls.name)
def test_contract(cls, path, tmp_path):
    """A pass refuses with a type, or: input untouched, signature kept, loads, same bytes, JSON effect."""
    model = load(path)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    data = Batches(feeds(signature(model).inputs), signature(model).inputs) if cls.needs_data else None
    outputs = []
    for attempt in ("a", "b"):
        try:
            done = optimize(model, [cls()], data=data)
        except OnnxcompError:
            assert ir.to_proto(model).SerializeToString(deterministic=True) == before
            return
        folder = tmp_path / attempt
        folder.mkdir()
        outputs.append(write_to(done.model, folder, "out"))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before, "the input was changed"
    assert outputs[0].read_bytes() == outputs[1].read_bytes(), "two runs, different bytes"
    assert signature(done.model).inputs == signature(model).inputs
    check_loads(outputs[0])
    record = done.passes[0].to_json()
    models_text = __import__("json").dumps(record, allow_nan=False)
    assert cls.name in models_text
    assert str(tmp_path) not in models_text
    with pytest.raises(NoEffectError) if cls.exact else pytest.raises(OnnxcompError):
        again = optimize(done.model, [cls()], data=data)
        assert again.passes[0].effect != record["effect"]  # a second zeroing may find more ties
        raise NoEffectError("changed again")


@pytest.mark.parametrize("cls", CATALOGUE, ids=lambda cls: cls.name)
def test_every_field_has_help(cls):
    assert cls.__doc__
    assert cls.name
    assert all(f.metadata["doc"] for f in cls.fields())


def test_catalogue_names_are_unique():
    assert len({cls.name for cls in CATALOGUE}) == len(CATALOGUE)


def test_a_pass_works_in_any_ir_pipeline(tmp_path):
    from onnxcomp.passes import Simplify

    model = load(builders.save(builders.cnn(), tmp_path / "m.onnx"))
    result = ir.passes.Sequential(Simplify())(model)
    assert result.modified
    assert "BatchNormalization" not in {n.op_type for n in result.model.graph}


def test_models_is_the_package():
    assert models.load is load
