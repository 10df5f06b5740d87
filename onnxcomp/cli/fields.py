"""Command-line options made from a pass's fields, so that each is declared once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import click

from onnxcomp.passes import Pass

#: what a flag is called when it is off
_OFF = {"per_channel": "--per-tensor"}

#: tuple options whose items cannot hold commas
_COMMAS = {"op_types", "keep_op_types"}


def pass_options(
    *passes: type[Pass], without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for every field of the passes, but for those `without`; passes can share one."""
    fields: dict[str, tuple[dataclasses.Field[Any], Any, list[type[Pass]]]] = {}
    for cls in passes:
        hints = typing.get_type_hints(cls)
        for field in cls.fields():
            if field.name in without:
                continue
            fields.setdefault(field.name, (field, hints[field.name], []))[2].append(cls)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for field, hint, owners in reversed(list(fields.values())):
            function = _option(field, hint, owners, len(passes))(function)
        return function

    return decorate


def given(values: Mapping[str, Any], cls: type[Pass]) -> dict[str, Any]:
    """The options of this pass that the user gave, by field name; the others keep their defaults."""
    names = [f.name for f in cls.fields()]
    chosen = {n: values[n] for n in names if n in values and values[n] is not None and values[n] != ()}
    return {n: _split(v) if n in _COMMAS else list(v) if isinstance(v, tuple) else v for n, v in chosen.items()}


def not_of(values: Mapping[str, Any], cls: type[Pass], others: tuple[type[Pass], ...]) -> list[str]:
    """Names of options that the user gave and that only another pass has."""
    mine = {f.name for f in cls.fields()}
    theirs = {f.name for other in others for f in other.fields()}
    return [n for n in sorted(theirs - mine) if values.get(n) not in (None, ())]


def _option(
    field: dataclasses.Field[Any], hint: Any, owners: list[type[Pass]], of: int
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = "--" + field.name.replace("_", "-")
    text = field.metadata["doc"]
    if field.default not in (None, ()):
        default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        text += f" [default: {default}]"
    if len(owners) < of:
        text += f" ({', '.join(o.name for o in owners)} only)"
    text = text[0].upper() + text[1:]
    # 'Literal | None' is typing's union, 'int | None' the language's
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kind = kinds[0]
    if kind is bool:
        off = _OFF.get(field.name, "--no-" + field.name.replace("_", "-"))
        return click.option(f"{flag}/{off}", field.name, default=None, help=text)
    if typing.get_origin(kind) is Literal:
        return click.option(flag, field.name, type=click.Choice(typing.get_args(kind)), default=None, help=text)
    if typing.get_origin(kind) is tuple:
        metavar = "OP[,OP...]" if field.name in _COMMAS else "NODE"
        return click.option(flag, field.name, multiple=True, metavar=metavar, help=text)
    return click.option(flag, field.name, type=kind, default=None, help=text)


def _split(items: tuple[str, ...]) -> list[str]:
    return [part.strip() for item in items for part in item.split(",") if part.strip()]
