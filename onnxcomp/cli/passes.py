"""What the verbs that change a model share: data, output, and the table of what happened."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Json, Shell

_OPTIONS = (
    click.option("--data", metavar="D", help="Real samples: .npz, .npy, folder, FILE.py:fn; they calibrate and judge."),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Samples per run."),
    click.option("--allow-larger", is_flag=True, help="Keep a result that is larger than the input."),
    click.option("--allow-no-effect", is_flag=True, help="Pass over a pass that changes nothing."),
)


def pass_verb(function: Callable[..., None]) -> Callable[..., None]:
    """MODEL, -o, --force, --data and the common options."""
    decorated = shells.output_options(shells.common()(function))
    decorated = functools.reduce(lambda wrapped, add: add(wrapped), reversed(_OPTIONS), decorated)
    return click.argument("model")(decorated)


def run_steps(
    shell: Shell, model: str, steps: Sequence[tuple[str, Mapping[str, Any]]], values: Mapping[str, Any]
) -> None:
    """Run passes given as (name, options) on the model and print the record."""
    finish(shell, shell.work(work.passes, model, values["output"], steps, **pipeline_options(shell, values)))


def pipeline_options(shell: Shell, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `optimize_file` among a verb's values."""
    names = ("data", "batch_size", "force", "allow_larger", "allow_no_effect")
    return {**{name: values[name] for name in names}, "schema": f"onnxcomp/{shell.verb}/1"}


def finish(shell: Shell, record: Json) -> None:
    """Print the record; notes and warnings go to stderr."""
    from onnxcomp.report import tables

    for step in record["passes"]:
        for note in step["notes"]:
            shell.note(f"note: {step['name']}: {note['node'] + ': ' if note['node'] else ''}{note['reason']}")
    for warning in record["warnings"]:
        shell.note(f"warning: {warning}")
    shell.show(record, tables.record)
