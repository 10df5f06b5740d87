"""`onnxcomp share`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli.fields import given, not_of, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UsageError
from onnxcomp.passes import Pass, TieInitializers

_METHODS: dict[str, type[Pass]] = {
    "tie": TieInitializers,
}

_HELP = """Store the weights of MODEL in fewer numbers.

\b
tie:      what is stored twice, or once more turned, is stored once; exact.
          A smaller file and download; a session takes the same memory.
"""


@click.command("share", help=_HELP)
@verbs.pass_verb
@click.option("--method", type=click.Choice(tuple(_METHODS)), required=True, help="See above.")
@pass_options(*_METHODS.values())
def command(shell: Shell, model: str, method: str, **values: Any) -> None:
    """Store the weights of MODEL in fewer numbers."""
    cls = _METHODS[method]
    foreign = not_of(values, cls, tuple(_METHODS.values()))
    if foreign:
        raise UsageError(f"--{foreign[0].replace('_', '-')} is not an option of --method {method}")
    verbs.run_steps(shell, model, [(cls.name, given(values, cls))], values)
