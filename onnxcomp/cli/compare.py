"""`onnxcomp compare`."""

from __future__ import annotations

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell


@click.command("compare")
@click.argument("reference")
@click.argument("candidate")
@click.option("--data", required=True, metavar="D", help="Real samples: .npz, .npy, folder, FILE.py:fn.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Samples per run.")
@click.option("--provider", default="cpu", show_default=True, help="cpu or cuda.")
@shells.common()
def command(shell: Shell, reference: str, candidate: str, data: str, batch_size: int, provider: str) -> None:
    """Measure how near CANDIDATE's outputs are to REFERENCE's on the same real inputs."""
    from onnxcomp.report import tables

    result = shell.work(work.compare, reference, candidate, data, batch_size=batch_size, provider=provider)
    shell.show(result, tables.fidelity)
