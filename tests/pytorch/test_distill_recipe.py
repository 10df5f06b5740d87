"""`distill` in a recipe: the verb's training, the stages in the record, interruption, refusals."""

from __future__ import annotations

import importlib.util

import builders
import distill_samples
import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import ROOT

from onnxcomp.data import Batches
from onnxcomp.errors import DataError, NoEffectError, RecipeError, UnsupportedError, UsageError
from onnxcomp.evaluate import evaluate
from onnxcomp.model import load, signature
from onnxcomp.passes import Distill, PruneStructured, Simplify
from onnxcomp.pipeline import optimize, optimize_file
from onnxcomp.pytorch import distill, with_torch
from onnxcomp.pytorch.distillation.checkpoint import Checkpoints
from onnxcomp.pytorch.distillation.recipe import DistillWithTorch
from onnxcomp.recipe import Recipe

QUICK = {"epochs": 2, "batch": 16, "lr": 0.02}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    builders.save(builders.mlp(width=128), folder / "teacher.onnx")  # int8 saves bytes even of half of it
    distill_samples.student(folder)
    everything = distill_samples.samples(folder / "teacher.onnx", 300)
    np.savez(folder / "train.npz", x=everything["x"][:200])
    np.savez(folder / "test.npz", **{name: array[200:] for name, array in everything.items()})
    return folder


def run(place, output, steps, source="teacher.onnx", **options):
    return optimize_file(place / source, output, with_torch(steps), data=place / "train.npz", **options)


def test_the_record_shows_every_stage(place, tmp_path):
    steps = [
        PruneStructured(sparsity=0.5, align=4, repair="bias"),
        Distill(**QUICK),
        Distill(quantization_aware=True, epochs=1, lr=1e-3),
    ]
    heard = {"eval": place / "test.npz", "calibration": 40, "checkpoint": tmp_path / "kept"}
    record = run(place, tmp_path / "out.onnx", steps, **heard).to_json()
    first, second, third = record["passes"]
    assert record["score"]["value"] == 1.0  # the labels are the teacher's
    assert record["score"]["samples"] == 100
    assert record["input"]["bytes"] > first["bytes"] == second["bytes"] > third["bytes"] == record["output"]["bytes"]
    for step in record["passes"]:
        assert step["score"]["reference"] == {key: record["score"][key] for key in ("value", "low", "high")}
        assert step["score"]["drop"]["value"] == pytest.approx(1 - step["score"]["value"])
        assert step["speed"]["ratio"] > 0
        assert step["speed"]["samples"] == 1
    assert second["score"]["value"] > first["score"]["value"]
    alone = evaluate(tmp_path / "out.onnx", place / "test.npz", against=place / "teacher.onnx").to_json()
    assert {**third["score"], "data": ""} == {**alone, "data": ""}
    # four fifths of 200 samples train and judge the epochs, 40 of them prune
    assert second["effect"]["samples"] == {"trained": 144, "judged": 16}
    assert first["effect"]["repair"]["samples"]["judged"] < 40
    assert [step["effect"]["teacher"]["sha256"] for step in (second, third)] == 2 * [record["input"]["sha256"]]
    assert {node.op_type for node in load(tmp_path / "out.onnx").graph} >= {"QuantizeLinear", "DequantizeLinear"}
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["2-distill", "3-distill"]


def test_without_eval_the_stages_are_unknown(place, tmp_path):
    record = run(place, tmp_path / "out.onnx", [PruneStructured(sparsity=0.5, align=4, repair="bias")]).to_json()
    assert record["score"] is None
    assert {key: record["passes"][0][key] for key in ("bytes", "score", "speed")} == dict.fromkeys(
        ("bytes", "score", "speed")
    )


def test_it_is_the_training_of_the_verb(place, tmp_path):
    """A given teacher, and the part of the samples that calibrates: the same bits."""
    step = Distill(**QUICK, teacher=str(place / "teacher.onnx"))
    run(place, tmp_path / "pass.onnx", [step], source="student8.onnx")
    samples = Batches(place / "train.npz", signature(load(place / "teacher.onnx")).inputs).split(0.8)[0]
    x = np.concatenate([batch.feeds["x"] for batch in samples])
    distill(place / "teacher.onnx", place / "student8.onnx", {"x": x}, tmp_path / "verb.onnx", **QUICK)
    assert (tmp_path / "pass.onnx").read_bytes() == (tmp_path / "verb.onnx").read_bytes()


def test_the_teacher_of_a_model_in_memory_is_the_model_before_the_first_pass(place):
    model = load(place / "teacher.onnx")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    data = Batches(place / "train.npz", signature(model).inputs)
    steps = with_torch([PruneStructured(sparsity=0.5, align=4, repair="bias"), Distill(**QUICK)])
    effect = optimize(model, steps, data=data).passes[1].effect
    assert effect["after"]["loss"] < effect["before"]["loss"]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    of_file = optimize(place / "teacher.onnx", steps, data=data).passes[1].effect
    assert {**of_file, "teacher": 0, "history": 0} == {**effect, "teacher": 0, "history": 0}


def test_an_interrupted_recipe_goes_on_with_the_same_bits(place, tmp_path, monkeypatch):
    steps = [
        PruneStructured(sparsity=0.5, align=4, repair="bias"),
        Distill(**QUICK),
        Distill(quantization_aware=True, **QUICK),
    ]
    run(place, tmp_path / "whole.onnx", steps)
    saved, save = [], Checkpoints.save

    def interrupted(self, checkpoint):
        save(self, checkpoint)
        saved.append(self.path)
        if len(saved) == 5:  # three of the first training, epoch 1 of the second
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "kept"}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(place, tmp_path / "parts.onnx", steps, **options)
    assert not (tmp_path / "parts.onnx").exists()
    with pytest.raises(UsageError, match="there is a checkpoint already"):
        run(place, tmp_path / "parts.onnx", steps, **options)
    record = run(place, tmp_path / "parts.onnx", steps, resume=True, **options)
    assert [step.effect["resumed_from_step"] for step in record.passes[1:]] == [18, 9]
    assert (tmp_path / "parts.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    with pytest.raises(UsageError, match="--resume needs --checkpoint"):
        run(place, tmp_path / "more.onnx", steps, resume=True)


def test_no_better_epoch_is_no_effect_but_for_int8(place, tmp_path):
    idle = {"epochs": 1, "lr": 1e-30, "teacher": str(place / "teacher.onnx")}
    with pytest.raises(NoEffectError, match="no epoch is better than the student as it came on 16 samples"):
        run(place, tmp_path / "out.onnx", [Distill(**idle)], source="student8.onnx")
    run(place, tmp_path / "out.onnx", [Distill(**idle)], source="student8.onnx", allow_no_effect=True)
    same = load(tmp_path / "out.onnx").graph.initializers
    for name, value in load(place / "student8.onnx").graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), same[name].const_value.numpy())
    record = run(place, tmp_path / "q.onnx", [Distill(quantization_aware=True, **idle)], source="teacher.onnx")
    (step,) = record.passes
    assert step.effect["best_epoch"] == 0
    assert "no epoch is better" in step.notes[-1].reason
    assert record.output.bytes < record.input.bytes


def test_what_does_not_fit_fails_with_the_passs_name(place, tmp_path):
    builders.save(builders.cnn(), tmp_path / "other.onnx")
    with pytest.raises(DataError) as error:
        run(place, tmp_path / "out.onnx", [Distill(teacher=str(tmp_path / "other.onnx"))])
    assert error.value.where.startswith("distill")
    with pytest.raises(DataError, match="distill needs data"):
        optimize(place / "teacher.onnx", with_torch([Distill()]))
    with pytest.raises(DataError, match="no 'labels'"):  # before any pass has run
        run(place, tmp_path / "out.onnx", [Distill(lr=1e-30)], eval=place / "train.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]


def test_without_torch_it_says_so_before_any_work(place, monkeypatch):
    data = Batches(place / "train.npz", signature(load(place / "teacher.onnx")).inputs)
    with pytest.raises(UnsupportedError) as error:
        optimize(place / "teacher.onnx", [Distill()], data=data)
    assert "onnxcomp.pytorch.with_torch(passes)" in error.value.hint
    assert type(with_torch([Distill(seed=3)])[0]) is DistillWithTorch
    assert with_torch([Distill(seed=3)])[0].options() == Distill(seed=3).options()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="distillation needs torch") as error:
        with_torch([PruneStructured(), Distill()])
    assert error.value.hint == "pip install 'onnxcomp[torch]'"
    assert with_torch([Simplify()]) == [Simplify()]


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ('[[pass]]\nname = "distil"', "pass[0]", "distill"),
        ('[[pass]]\nname = "distill"\nepoch = 3', "pass[0].epoch", "epochs"),
        ('[[pass]]\nname = "distill"\nepochs = 0', "pass[0].epochs=0", None),
        ('[[pass]]\nname = "distill"\nloss = "l1"', "pass[0].loss", None),
        ('[[pass]]\nname = "distill"\naugment = "file.py:fn"', "pass[0].augment", None),  # a recipe runs no code
        ('calibration = 0\n[[pass]]\nname = "distill"', "calibration", None),
        ('calibration = true\n[[pass]]\nname = "distill"', "calibration", None),
        ('calibrate = 5\n[[pass]]\nname = "distill"', "recipe", "calibration"),
    ],
)
def test_recipes_are_strict_about_it(text, where, hint):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(text)
    assert where in error.value.where
    assert hint is None or hint in error.value.hint


def test_recipes_with_it_round_trip():
    recipe = Recipe((Distill(quantization_aware=True, hint=("a=b",), average=0.99),), calibration=512)
    assert Recipe.parse(recipe.to_toml()) == recipe


def test_the_recipe_of_the_fashion_card():
    text = (ROOT / "models" / "fashion" / "shrink.toml").read_text()
    recipe = Recipe.parse(text)
    assert [step.name for step in recipe.passes] == ["prune-structured", "distill", "distill"]
    assert [step.quantization_aware for step in recipe.passes[1:]] == [False, True]
    assert text.strip() in (ROOT / "models" / "fashion" / "README.md").read_text()
