"""`onnxcomp quantize`."""

from __future__ import annotations

from typing import Any

import click

from onnxcomp.cli import passes as verbs
from onnxcomp.cli.fields import given, not_of, pass_options
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import UsageError
from onnxcomp.passes import Pass, QuantizeDynamic, QuantizeStatic

_MODES: dict[str, type[Pass]] = {"dynamic": QuantizeDynamic, "static": QuantizeStatic}


@click.command("quantize")
@verbs.pass_verb
@click.option("--mode", type=click.Choice(tuple(_MODES)), required=True, help="static needs --data; see the docs.")
@pass_options(QuantizeDynamic, QuantizeStatic)
def command(shell: Shell, model: str, mode: str, **values: Any) -> None:
    """Quantize MODEL to int8.

    dynamic: weights only, no data needed; for transformers, MLPs and LSTMs.
    static: weights and activations, ranges from --data; for CNNs, and faster elsewhere.
    """
    cls = _MODES[mode]
    foreign = not_of(values, cls, tuple(_MODES.values()))
    if foreign:
        raise UsageError(f"--{foreign[0].replace('_', '-')} is not an option of --mode {mode}")
    if cls.needs_data and values["data"] is None:
        raise UsageError(f"--mode {mode} needs --data", hint="give real samples, some hundred")
    verbs.run_steps(shell, model, [(cls.name, given(values, cls))], values)
