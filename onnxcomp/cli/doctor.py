"""`onnxcomp doctor`."""

from __future__ import annotations

import importlib.util

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UnsupportedError


@click.command("doctor")
@shells.common()
def command(shell: Shell) -> None:
    """Check this environment: ORT builds, providers that really work, CPU features, versions.

    Exits with 4 when something is wrong.
    """
    from onnxcomp.report import tables

    if importlib.util.find_spec("onnxruntime") is None:
        raise UnsupportedError("onnxruntime is not installed", hint="pip install 'onnxcomp[cpu]' or 'onnxcomp[gpu]'")
    result = shell.work(work.doctor)
    if not result["ok"]:
        first = next(f for f in result["findings"] if not f["ok"])
        tables.doctor(result, stderr=True)
        raise UnsupportedError(first["text"], where=first["name"], hint=first["hint"])
    shell.show(result, tables.doctor)
