"""`onnxcomp prune`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli.fields import given, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.passes import PruneMagnitude


@click.command("prune")
@verbs.pass_verb
@click.option(
    "--structure", type=click.Choice(["none"]), required=True,
    help="none: single weights become zero; makes downloads smaller, nothing faster.",
)  # fmt: skip
@pass_options(PruneMagnitude)
def command(shell: Shell, model: str, structure: str, **values: Any) -> None:  # noqa: ARG001 - one choice so far
    """Prune the weights of MODEL."""
    verbs.run_steps(shell, model, [(PruneMagnitude.name, given(values, PruneMagnitude))], values)
