"""`onnxcomp optimize`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli.fields import given, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.passes import Simplify, UpgradeOpset


@click.command("optimize")
@verbs.pass_verb
@pass_options(Simplify, UpgradeOpset)
def command(shell: Shell, model: str, **values: Any) -> None:
    """Rewrite MODEL into an equal, smaller graph, proven equal on data or on seeded inputs."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if values["opset"] is not None:
        steps.append((UpgradeOpset.name, given(values, UpgradeOpset)))
        values["allow_no_effect"] = True  # asked for one of the two, the other may find nothing to do
    steps.append((Simplify.name, given(values, Simplify)))
    verbs.run_steps(shell, model, steps, values)
