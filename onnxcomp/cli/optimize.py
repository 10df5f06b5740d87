"""`onnxcomp optimize`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli.fields import given, not_of, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UsageError
from onnxcomp.passes import CastFloat, Fuse, Simplify, UpgradeOpset


@click.command("optimize")
@verbs.pass_verb
@click.option("--fuse", is_flag=True, help="Then fuse attention, Gelu and layer normalization; see the pass 'fuse'.")
@click.option("--float16", "dtype", flag_value="float16", help="Then halve it: weights and computation in float16.")
@click.option("--bfloat16", "dtype", flag_value="bfloat16", help="Then halve it: weights in bfloat16, computed wide.")
@pass_options(Simplify, UpgradeOpset, CastFloat, without=("dtype",))
def command(shell: Shell, model: str, **values: Any) -> None:
    """Rewrite MODEL into an equal, smaller graph, proven equal on data or on seeded inputs.

    With --float16 or --bfloat16 the outputs are near instead; the largest difference is reported.
    """
    steps: list[tuple[str, dict[str, Any]]] = []
    asked = values["allow_no_effect"]
    if values["opset"] is not None:
        steps.append((UpgradeOpset.name, given(values, UpgradeOpset)))
        values["allow_no_effect"] = True  # asked for one of the two, the other may find nothing to do
    steps.append((Simplify.name, given(values, Simplify)))
    if values["fuse"]:
        steps.append((Fuse.name, {}))
        values["allow_no_effect"] = asked or [UpgradeOpset.name, Simplify.name]
    if values["dtype"] is not None:
        steps.append((CastFloat.name, given(values, CastFloat)))
        values["allow_no_effect"] = asked or [UpgradeOpset.name, Simplify.name]  # what was asked for is the cast
    elif foreign := not_of(values, Simplify, (Simplify, CastFloat)):
        raise UsageError(f"--{foreign[0].replace('_', '-')} goes with --float16 or --bfloat16")
    verbs.run_steps(shell, model, steps, values)
