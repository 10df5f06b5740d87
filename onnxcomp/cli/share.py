"""`onnxcomp share`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli import work
from onnxcomp.cli.fields import given, not_of, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UsageError
from onnxcomp.passes import ClusterWeights, LowRank, Pass, TieInitializers

_METHODS: dict[str, type[Pass]] = {
    "tie": TieInitializers,
    "cluster": ClusterWeights,
    "low-rank": LowRank,
}

_HELP = """Store the weights of MODEL in fewer numbers.

\b
tie:      what is stored twice, or once more turned, is stored once; exact.
          A smaller file and download; a session takes the same memory.
cluster:  each weight becomes one of a few numbers, a code of --bits bits.
          Download size only: ORT computes the floats at load. Better with --data.
low-rank: a matrix becomes the product of two thin ones; smaller and faster.
          Give --data: without, text models are ruined. Look at the accuracy.
"""


@click.command("share", help=_HELP)
@verbs.pass_verb
@click.option("--method", type=click.Choice(tuple(_METHODS)), required=True, help="See above.")
@click.option(
    "--measure/--no-measure", default=True, help="Time the result against MODEL, 2 s [default: on]. (low-rank only)"
)
@pass_options(*_METHODS.values())
def command(shell: Shell, model: str, method: str, **values: Any) -> None:
    """Store the weights of MODEL in fewer numbers."""
    cls = _METHODS[method]
    foreign = not_of(values, cls, tuple(_METHODS.values()))
    if foreign:
        raise UsageError(f"--{foreign[0].replace('_', '-')} is not an option of --method {method}")
    options = verbs.pipeline_options(shell, values) | {"measure": values["measure"] and cls is LowRank}
    verbs.finish(shell, shell.work(work.passes, model, values["output"], [(cls.name, given(values, cls))], **options))
