"""Hints with losses of their own, and embeddings compared by how samples lie to each other."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest
import real_data
import torch

from onnxcomp import model as models
from onnxcomp.data import Batches
from onnxcomp.errors import RecipeError, UsageError
from onnxcomp.passes import PruneStructured
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.pytorch import distill, with_torch
from onnxcomp.pytorch.distillation.losses import LOSSES
from onnxcomp.recipe import Recipe
from onnxcomp.runtime import open_session


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inner(path, names, feeds, folder):
    """Tensors of a file, as ONNX Runtime gives them."""
    model = models.load(path)
    there = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(there[name] for name in names)
    made = models.write_to(model, folder, f"{Path(path).stem}-inner")
    found = open_session(made).run(feeds)
    return {name: torch.from_numpy(found[name]) for name in names}


@pytest.mark.shared
def test_a_transformer_learns_its_teachers_attention_and_relations(shared, tmp_path):
    """The intent transformer with noise in its weights, by 192 sentences: both maps come nearer."""
    teacher = shared / "models" / "snips_transformer.onnx"
    data = {"ids": real_data.snips_calibration(shared / "data")["ids"][:192]}
    student, generator = models.load(teacher), np.random.default_rng(0)
    for value in student.graph.initializers.values():
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.ndim == 2:
            value.const_value = ir.tensor(
                array + (0.5 * array.std() * generator.standard_normal(array.shape)).astype("f")
            )
    noisy = models.write_to(student, tmp_path, "noisy")
    hints = ("softmax_1=softmax_1:attention", "layer_norm_2=layer_norm_2:relation")
    done = distill(
        teacher, noisy, data, tmp_path / "out.onnx", hint=hints, hint_weight=30.0, epochs=2, lr=2e-3, batch=32
    )
    assert done.to_json()["passes"][0]["options"]["hint"] == list(hints)
    feeds = {"ids": real_data.samples("snips_transformer", shared)[0]["ids"][:200]}
    names = {"softmax_1": "attention", "layer_norm_2": "relation"}
    expected, *found = (inner(path, names, feeds, tmp_path) for path in (teacher, noisy, done.output.path))
    for name, loss in names.items():
        before, after = (LOSSES[loss]()(one[name], expected[name]).item() for one in found)
        assert after < 0.8 * before, (name, before, after)


@pytest.mark.shared
def test_another_number_of_heads_is_named(shared, tmp_path):
    """Pruning leaves two of four, and attention goes head by head."""
    teacher = shared / "models" / "snips_transformer.onnx"
    data = {"ids": real_data.snips_calibration(shared / "data")["ids"][:64]}
    optimize_file(teacher, tmp_path / "cut.onnx", [PruneStructured(sparsity=0.5, repair="none")], data=data)
    options = {"epochs": 1, "batch": 32}
    with pytest.raises(UsageError, match="2 heads of the student, 4 of the teacher") as caught:
        distill(
            teacher, tmp_path / "cut.onnx", data, tmp_path / "a.onnx", hint=["softmax_1=softmax_1:attention"], **options
        )
    assert "relation" in caught.value.hint


@pytest.fixture
def embedders(tmp_path):
    """x (batch, 16) -> an embedding of 10; a student with one of 6; samples."""
    teacher = builders.save(builders.mlp(width=32), tmp_path / "teacher.onnx")
    proto = builders.mlp(width=16)
    for i, tensor in enumerate(proto.graph.initializer):
        shape = [6 if size == 10 else size for size in tensor.dims]
        tensor.CopyFrom(builders.weight(tensor.name, *shape, seed=7 + i))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    return teacher, builders.save(proto, tmp_path / "student.onnx"), {"x": builders.samples(400, 16)}


def test_a_narrower_embedding_keeps_its_neighbours(embedders, tmp_path):
    """Distances between samples correlate with the teacher's better than before, in 6 of 10 dimensions."""
    teacher, student, data = embedders
    done = distill(teacher, student, data, tmp_path / "out.onnx", loss="rkd", epochs=5, batch=32, lr=0.02)
    assert done.fidelity is None
    assert any("were not compared" in warning for warning in done.warnings)
    x = builders.samples(100, 16, seed=5)

    def lengths(path):
        y = open_session(path).run({"x": x})["y"]
        return np.linalg.norm(y[:, None] - y[None], axis=-1)[np.triu_indices(100, 1)]

    before, after = (np.corrcoef(lengths(path), lengths(teacher))[0, 1] for path in (student, done.output.path))
    assert after > 0.7 > before + 0.4, (before, after)


def test_other_losses_want_the_teachers_width(embedders, tmp_path):
    teacher, student, data = embedders
    for options in ({"loss": "mse"}, {"loss": "rkd", "labels_weight": 1.0}):
        labelled = {**data, "labels": np.zeros(400, np.int64)}
        with pytest.raises(UsageError, match=r"shape \(.*6\) of the student, \(.*10\) of the teacher"):
            distill(teacher, student, labelled, tmp_path / "out.onnx", **options)
    with pytest.raises(UsageError, match=r"attention h=h") as caught:
        distill(teacher, student, data, tmp_path / "out.onnx", loss="rkd", hint=["h=h:attention"])
    assert "shape" in caught.value.message


RECIPE = """
[[pass]]
name = "prune-structured"
sparsity = 0.5
align = 4
repair = "none"

[[pass]]
name = "distill"
loss = "rkd"
hint = ["h=h:rkd"]
epochs = 3
batch = 32
lr = 0.01
"""


def test_recipes_take_them_too(embedders):
    """Half of the neurons are left: their widths differ, and no projector is needed."""
    teacher, _, data = embedders
    recipe = Recipe.parse(RECIPE)
    assert Recipe.parse(recipe.to_toml()) == recipe
    samples = Batches(data, models.signature(models.load(teacher)).inputs)
    effect = optimize(teacher, with_torch(recipe.passes), data=samples).passes[1].effect
    assert effect["after"]["loss"] < 0.8 * effect["before"]["loss"]
    with pytest.raises(RecipeError, match="a hint has no loss 'atention'"):
        Recipe.parse(RECIPE.replace("h=h:rkd", "h=h:atention"))
