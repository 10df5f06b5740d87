"""`onnxcomp prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp import documents
from onnxcomp.cli import passes as verbs
from onnxcomp.cli import work
from onnxcomp.cli.fields import given, not_of, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UsageError
from onnxcomp.passes import Pass, PruneBlocks, PruneMagnitude, PruneStructured

_STRUCTURES: dict[str, type[Pass]] = {
    "none": PruneMagnitude,
    "2:4": PruneMagnitude,
    "channels": PruneStructured,
    "blocks": PruneBlocks,
}

_HELP = """Prune the weights of MODEL.

\b
none:     single weights become zero; makes downloads smaller, nothing faster.
2:4:      two of four neighbours become zero, for kernels that skip them; ONNX
          Runtime has none, so this is download size too. Others: --pattern.
channels: channels, neurons and heads are cut out; smaller and faster.
          What is gone was trained: look at the accuracy, and fine-tune.
          Give --data, and what matters least to real activations goes.
blocks:   whole layers are taken out, those that the outputs on --data miss
          least; smaller and faster. --blocks says how many.
"""


@click.command("prune", help=_HELP)
@verbs.pass_verb
@click.option("--structure", type=click.Choice(tuple(_STRUCTURES)), required=True, help="See above.")
@click.option("--sparsity", type=float, metavar="S", help="Share to remove [default: 0.5 for none, 0.3 for channels].")
@click.option(
    "--align", metavar="auto|N", help="Channels that stay are a multiple of N [default: auto]. (channels only)"
)
@click.option(
    "--target-latency",
    type=float,
    metavar="SHARE",
    help="Cut until this share of MODEL's latency on this host is left: candidates are timed. (channels only)",
)
@click.option("--plan-out", metavar="P.json", help="Write what stays, for --plan and for torch. (channels only)")
@click.option("--measure/--no-measure", default=True, help="Time the result against MODEL, 2 s [default: on].")
@pass_options(PruneMagnitude, PruneStructured, PruneBlocks, without=("sparsity", "align"))
def command(shell: Shell, model: str, structure: str, **values: Any) -> None:
    """Prune the weights of MODEL."""
    cls = _STRUCTURES[structure]
    if structure == "2:4":
        if values["pattern"] is not None:
            raise UsageError("--pattern is not an option of --structure 2:4", hint="give --structure none")
        values["pattern"] = structure
    own = () if cls is PruneStructured else ("align", "plan_out", "target_latency")
    foreign = [option for option in own if values[option] is not None]
    foreign += not_of(values, cls, tuple(_STRUCTURES.values()))
    if foreign:
        raise UsageError(f"--{foreign[0].replace('_', '-')} is not an option of --structure {structure}")
    values["align"] = _align(values["align"])
    plan_out = None if values["plan_out"] is None else Path(values["plan_out"])
    if plan_out is not None:
        _refuse(plan_out, model, values)
    options = verbs.pipeline_options(shell, values) | {"measure": values["measure"] and cls is not PruneMagnitude}
    steps = [(cls.name, given(values, cls))]
    if values["target_latency"] is None:
        record = shell.work(work.passes, model, values["output"], steps, **options)
    else:
        options["target_latency"] = values["target_latency"]
        record = shell.work(work.prune_to_latency, model, values["output"], steps, **options)
    if plan_out is not None:
        _write(plan_out, record["passes"][0]["effect"]["plan"], force=values["force"])
    verbs.finish(shell, record)


def _align(text: str | None) -> int | None:
    if text is None or text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"'{text}' is neither 'auto' nor a number", where="--align")
    return int(text)


def _refuse(plan_out: Path, model: str, values: dict[str, Any]) -> None:
    from onnxcomp.model import refuse_target

    if plan_out.absolute() == Path(values["output"]).absolute():
        raise UsageError("the plan and the model cannot be one file", where="--plan-out")
    refuse_target(plan_out, force=values["force"], inputs=(Path(model),))


def _write(plan_out: Path, plan: dict[str, Any], *, force: bool) -> None:
    from onnxcomp.model import write_file

    write_file(plan_out, documents.to_text(plan).encode(), force=force)
