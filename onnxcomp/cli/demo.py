"""`onnxcomp demo`."""

from __future__ import annotations

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli.shell import Budget, Shell


@click.command("demo")
@click.option("-o", "--output", default="runs/demo", show_default=True, metavar="DIR", help="Where everything goes.")
@click.option("--max-drop", type=Budget(), default="0.5%", show_default=True, help="Accuracy a candidate may lose.")
@click.option("--seconds", type=float, default=30.0, show_default=True, help="Time budget of the benchmark.")
@click.option("--epochs", type=click.IntRange(min=1), help="Training epochs; default: the model's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of training and of random orders.")
@shells.common()
def command(shell: Shell, output: str, max_drop: float, seconds: float, epochs: int | None, seed: int) -> None:
    """Train a CNN on handwritten digits, export, shrink, judge and benchmark it; write a report."""
    from onnxcomp.demo import demo
    from onnxcomp.report import tables

    with shell.progress() as on_progress:
        result = demo(
            output,
            max_drop=max_drop,
            seconds=seconds,
            epochs=epochs,
            seed=seed,
            limits=shell.limits(),
            on_progress=on_progress,
            on_step=shell.note,
        )
    shell.show(result, tables.demo)
