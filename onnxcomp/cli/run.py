"""`onnxcomp run`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell


@click.command("run")
@click.argument("recipe")
@verbs.pass_verb
def command(shell: Shell, recipe: str, model: str, **values: Any) -> None:
    """Run the passes of RECIPE (TOML) on MODEL."""
    options = verbs.pipeline_options(shell, values)
    verbs.finish(shell, shell.work(work.recipe, recipe, model, values["output"], **options))
