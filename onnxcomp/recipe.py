"""Recipes: an ordered list of passes as TOML data. Strict: unknown keys and wrong types are errors.

[[pass]]
name = "simplify"

[[pass]]
name = "quantize-static"
exclude = ["/head/Conv"]
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from onnxcomp.errors import RecipeError, UsageError, from_os_error, nearest
from onnxcomp.passes import CATALOGUE, Pass

_TOP = {"pass", "allow_no_effect", "calibration"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Passes in their order.

    Attributes:
        passes: configured passes.
        allow_no_effect: a pass that changes nothing is passed over instead of failing the recipe.
        calibration: samples that passes see which do not train, spread over all; None: all.
    """

    passes: tuple[Pass, ...]
    allow_no_effect: bool = False
    calibration: int | None = None

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Recipe:
        """Read a TOML file. Raises RecipeError naming the key, OutputError when unreadable."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise from_os_error(error, file) from error
        except UnicodeDecodeError as error:
            raise RecipeError("the recipe is not UTF-8 text", where=file) from error
        return Recipe.parse(text, where=str(file))

    @staticmethod
    def parse(text: str, *, where: str = "recipe") -> Recipe:
        """Read TOML text. Raises RecipeError naming the key."""
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"not valid TOML: {error}", where=where) from error
        for key in tree:
            if key not in _TOP:
                raise RecipeError(f"unknown key '{key}'", where=where, hint=nearest(key, _TOP) or "see the schema")
        steps = tree.get("pass", [])
        if not isinstance(steps, list) or not steps:
            raise RecipeError("the recipe has no [[pass]]", where=where, hint="add [[pass]] with a name")
        allow = tree.get("allow_no_effect", False)
        if not isinstance(allow, bool):
            raise RecipeError("must be true or false", where=f"{where}: allow_no_effect")
        count = tree.get("calibration")
        if count is not None and (type(count) is not int or count < 1):
            raise RecipeError(f"must be a number of samples, 1 or more, not {count!r}", where=f"{where}: calibration")
        return Recipe(tuple(_step(s, f"{where}: pass[{i}]") for i, s in enumerate(steps)), allow, count)

    def to_toml(self) -> str:
        """The recipe as TOML, without options that stand at their defaults."""
        lines = ["allow_no_effect = true"] if self.allow_no_effect else []
        lines += [] if self.calibration is None else [f"calibration = {self.calibration}"]
        lines += [""] if lines else []
        for step in self.passes:
            lines += ["[[pass]]", f"name = {json.dumps(step.name)}"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in _changed(step).items()]
            lines.append("")
        return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """A JSON schema of recipes, for editors; made from the passes' fields."""
    variants = []
    for cls in CATALOGUE:
        schema = _model_of(cls).model_json_schema()
        schema["properties"] = {"name": {"const": cls.name}, **schema.get("properties", {})}
        schema["required"] = ["name"]
        variants.append(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxcomp recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["pass"],
        "properties": {
            "allow_no_effect": {"type": "boolean", "default": False},
            "calibration": {
                "type": "integer",
                "minimum": 1,
                "description": "samples that passes see which do not train; unset: all",
            },
            "pass": {"type": "array", "minItems": 1, "items": {"oneOf": variants}},
        },
    }


def make_pass(name: str, options: Mapping[str, Any], *, where: str = "options") -> Pass:
    """A configured pass by name. Raises RecipeError for an unknown name, key or type."""
    known = {cls.name: cls for cls in CATALOGUE}
    if name not in known:
        hint = nearest(name, known) or f"there are: {', '.join(known)}"
        raise RecipeError(f"unknown pass '{name}'", where=where, hint=hint)
    cls = known[name]
    fields = [f.name for f in cls.fields()]
    for key in options:
        if key not in fields:
            hint = nearest(key, fields) or f"{name} has: {', '.join(fields) or 'no options'}"
            raise RecipeError(f"unknown key '{key}'", where=f"{where}.{key}", hint=hint)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        checked = _model_of(cls).model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        raise RecipeError(f"{first['msg']}, not {first['input']!r}", where=path) from error
    try:
        return cls(**{key: getattr(checked, key) for key in values})
    except UsageError as error:
        raise RecipeError(error.message, where=f"{where}.{error.where}", hint=error.hint) from error


def _step(table: Any, where: str) -> Pass:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise RecipeError("a pass needs a name", where=f"{where}.name", hint='name = "simplify", for example')
    return make_pass(table["name"], {k: v for k, v in table.items() if k != "name"}, where=where)


def _model_of(cls: type[Pass]) -> type[pydantic.BaseModel]:
    """A strict pydantic model of a pass's fields."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {
        f.name: (hints[f.name], pydantic.Field(f.default, description=f.metadata["doc"])) for f in cls.fields()
    }
    config = pydantic.ConfigDict(strict=True, extra="forbid", title=cls.name)
    return pydantic.create_model(cls.__name__, __config__=config, **fields)


def _changed(step: Pass) -> dict[str, Any]:
    fields = step.fields()
    defaults = {f.name: f.default for f in fields}
    values = step.options()
    return {k: v for k, v in values.items() if getattr(step, k) != defaults[k] and v is not None}
