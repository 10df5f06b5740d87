"""`onnxcomp inspect`."""

from __future__ import annotations

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell


@click.command("inspect")
@click.argument("model")
@shells.common()
def command(shell: Shell, model: str) -> None:
    """Show what MODEL weighs: bytes, parameters, operators, MACs, inputs and outputs."""
    from onnxcomp.report import tables

    shell.show(shell.work(work.inspect, model), tables.inspection)
