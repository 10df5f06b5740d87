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
    """Re-hash, re-load and re-run OUTPUT, and compare it with OUTPUT.record.json.

    Where OUTPUT is a pack's folder, also prove again that its outputs are the model's and that
    workers share its weights.
    """
    from onnxcomp.report import packs

    result = shell.work(work.verify, output)
    for warning in result.get("warnings", ()):
        shell.note(f"warning: {warning}")
    shell.show(result, packs.verified)
