"""Recipes are strict: what is not understood is an error that names the key."""

from __future__ import annotations

import pytest

from onnxcomp.errors import OutputError, RecipeError
from onnxcomp.passes import CATALOGUE, PruneMagnitude, QuantizeStatic, Simplify
from onnxcomp.recipe import Recipe, json_schema


def test_round_trip():
    recipe = Recipe((Simplify(), QuantizeStatic(exclude=("a/b",), reduce_range=True)), allow_no_effect=True)
    assert Recipe.parse(recipe.to_toml()) == recipe


def test_defaults_are_the_passes_own():
    assert Recipe.parse('[[pass]]\nname = "prune-magnitude"\n').passes == (PruneMagnitude(),)


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ('[[pass]]\nname = "simplfy"', "pass[0]", "simplify"),
        ('[[pass]]\nname = "prune-magnitude"\nsparsty = 0.5', "pass[0].sparsty", "sparsity"),
        ('[[pass]]\nname = "prune-magnitude"\nsparsity = "0.5"', "pass[0].sparsity", None),
        ('[[pass]]\nname = "prune-magnitude"\nscope = "globl"', "pass[0].scope", None),
        ('[[pass]]\nname = "quantize-dynamic"\nper_channel = 1', "pass[0].per_channel", None),
        ('[[pass]]\nname = "quantize-dynamic"\nop_types = [1]', "pass[0].op_types", None),
        ("[[pass]]\nsparsity = 0.5", "pass[0].name", None),
        ('[[pas]]\nname = "simplify"', "recipe", "pass"),
        ("", "recipe", None),
        ("x = ", "recipe", None),
        ('allow_no_effect = "yes"\n[[pass]]\nname = "simplify"', "allow_no_effect", None),
    ],
)
def test_errors_name_the_key(text, key, hint):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(text)
    assert key in error.value.where
    assert error.value.code == 2
    if hint is not None:
        assert hint in error.value.hint


def test_missing_file(tmp_path):
    with pytest.raises(OutputError):
        Recipe.load(tmp_path / "none.toml")


def test_schema_knows_every_pass_and_field():
    variants = json_schema()["properties"]["pass"]["items"]["oneOf"]
    assert {v["title"] for v in variants} == {cls.name for cls in CATALOGUE}
    for variant, cls in zip(variants, CATALOGUE, strict=True):
        assert set(variant["properties"]) == {"name", *(f.name for f in cls.fields())}
        assert all("description" in variant["properties"][f.name] for f in cls.fields())
