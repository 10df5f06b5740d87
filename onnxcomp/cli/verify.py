"""`onnxcomp verify`."""

from __future__ import annotations

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell


@click.command("verify")
@click.argument("output")
@shells.common()
def command(shell: Shell, output: str) -> None:
    """Re-hash, re-load and re-run OUTPUT, and compare it with OUTPUT.record.json."""
    from onnxcomp.report import tables

    shell.show(shell.work(work.verify, output), tables.verification)
