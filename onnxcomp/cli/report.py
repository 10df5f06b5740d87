"""`onnxcomp report`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell


@click.command("report")
@click.argument("runs", nargs=-1, required=True)
@shells.output_options
@click.option("--title", default="onnxcomp report", show_default=True, help="Heading of the page.")
@shells.common()
def command(shell: Shell, runs: tuple[str, ...], output: str, force: bool, title: str) -> None:
    """Make one self-contained HTML page of RUNS, or with -o report.md Markdown for a pull request.

    A run is a file with the --json output of a verb (bench -o writes one), a .record.json, or a
    folder of these, whose other files are left out. The page has the tables and pictures of all runs:
    it needs no network and no script. Markdown has the tables.
    """
    result = shell.work(work.report, runs, output, title=title, force=force)
    shell.show(
        result,
        lambda done: click.echo(
            f"{done['output']}: {len(done['runs'])} results, {Path(done['output']).stat().st_size} bytes"
        ),
    )
