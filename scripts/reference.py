#!/usr/bin/env python3
"""Write the reference pages from the code: the command line's help, the passes and their fields.

usage: .venv/bin/python scripts/reference.py          (tests/test_documentation.py says when it is due)
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import VERBS, group
from onnxcomp.passes import CATALOGUE
from onnxcomp.recipe import json_schema

_COMMAND_LINE = """\
# The command line

One file per verb: parse, call one public function, print. `onnxcomp VERB --help` prints what stands
here. Made by `scripts/reference.py`, do not edit."""

_PASSES = """\
# The passes

A pass is a frozen dataclass; its fields are the keys of a recipe and the options of the command line.
The contract of a pass stands in `base.py`. Made by `scripts/reference.py`, do not edit.

A recipe is a TOML file with passes in their order; `onnxcomp run --schema` prints its JSON schema for
editors.

```toml
[[pass]]
name = "simplify"

[[pass]]
name = "quantize-static"
exclude = ["/head/Conv"]
```"""

PACKAGE = Path(__file__).resolve().parent.parent / "onnxcomp"


def pages() -> dict[Path, str]:
    """{path: content} of every generated page."""
    return {PACKAGE / "cli" / "README.md": command_line(), PACKAGE / "passes" / "README.md": passes()}


def command_line() -> str:
    """The help of every verb."""
    parts = [_COMMAND_LINE, "## onnxcomp", _help([])]
    for verb in VERBS:
        parts += [f"## {verb}", _help([verb])]
    return "\n\n".join(parts) + "\n"


def passes() -> str:
    """The catalogue: what each pass does and its fields."""
    parts = [_PASSES]
    types = {v["properties"]["name"]["const"]: v["properties"] for v in _variants()}
    for cls in CATALOGUE:
        exact = "Exact: the runner proves that the outputs are equal." if cls.exact else "Changes the outputs."
        data = " Needs data." if cls.needs_data else ""
        parts += [f"## {cls.name}", inspect.cleandoc(cls.__doc__ or ""), exact + data]
        rows = [_row(field, types[cls.name][field.name]) for field in cls.fields()]
        parts.append("\n".join(["| key | type | default | what it does |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _help(arguments: list[str]) -> str:
    command: Any = group
    context = click.Context(group, info_name="onnxcomp", terminal_width=100, max_content_width=100)
    for name in arguments:
        command = group.get_command(context, name)
        context = click.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
    return f"```text\n{command.get_help(context)}\n```"


def _variants() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json_schema()["properties"]["pass"]["items"]["oneOf"]
    return found


def _row(field: dataclasses.Field[Any], schema: dict[str, Any]) -> str:
    default = "-" if field.default is None else _shown(field.default)
    return f"| `{field.name}` | {_kind(schema)} | {default} | {field.metadata['doc']} |"


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(v)}`" for v in schema["enum"])
    if "const" in schema:
        return f'`"{schema["const"]}"`'
    if "anyOf" in schema:
        return " or ".join(_kind(s) for s in schema["anyOf"] if s["type"] != "null")
    if schema["type"] == "array":
        return f"list of {schema['items']['type']}s"
    return str(schema["type"])


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{v}`" for v in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path)
