"""`onnxcomp run`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli import torchrun, work
from onnxcomp.cli.shell import Shell


def _print_schema(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from onnxcomp import documents
        from onnxcomp.recipe import json_schema

        click.echo(documents.to_text(json_schema()), nl=False)
        ctx.exit()


@click.command("run")
@click.option(
    "--schema", is_flag=True, is_eager=True, expose_value=False, callback=_print_schema,
    help="Print the JSON schema of recipes, for editors, and leave.",
)  # fmt: skip
@click.argument("recipe")
@click.option(
    "--eval", metavar="E", help="Samples with labels: after every pass the model is scored, weighed and timed."
)
@click.option("--metric", default="accuracy", show_default=True, help="What --eval measures, as in evaluate.")
@click.option("--checkpoint", metavar="DIR", help="Keep trainings there, every minute and epoch.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, where there is one; other passes run again.")
@verbs.pass_verb
def command(shell: Shell, recipe: str, model: str, **values: Any) -> None:
    """Run the passes of RECIPE (TOML) on MODEL.

    A recipe may train: its pass distill teaches what the passes before have left to answer as MODEL does. With
    --checkpoint an interruption costs at most a minute of the training; the other passes run again, and what they
    leave must be what it was. Without, all is lost. Under torchrun the first process runs the recipe, and the others
    help where it trains.
    """
    names = ("eval", "metric", "checkpoint", "resume")
    options = {name: values[name] for name in names} | verbs.pipeline_options(shell, values)
    result = torchrun.speaker(shell).work(work.recipe, recipe, model, values["output"], **options)
    if torchrun.speaks():
        verbs.finish(shell, result)
