"""`onnxcomp export`."""

from __future__ import annotations

from typing import Literal

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli.shell import Shell


@click.command("export")
@click.argument("target")
@shells.output_options
@click.option("--inputs", multiple=True, metavar="SPEC", help="Example shape, 'x:float32[1,3,224,224]'; one per input.")
@click.option("--dynamic", multiple=True, metavar="NAME:AXIS=DIM", help="An axis whose size is open, 'x:0=batch'.")
@click.option("--opset", type=int, default=20, show_default=True, help="Operator set, 18 to 23.")
@click.option("--weights", metavar="FILE", help="A .safetensors file, or a checkpoint of tensors only.")
@click.option("--check-sizes", multiple=True, metavar="SIZES", help="Compare at these sizes too, 'batch=7,seq=33'.")
@click.option("--output-names", metavar="A,B", help="Names of the outputs, in order.")
@click.option(
    "--for", "purpose", type=click.Choice(("serving", "training")), default="serving", show_default=True,
    help="serving folds constants and BatchNorm; training keeps the graph as written.",
)  # fmt: skip
@click.option("--data", metavar="D", help="Real samples to compare on too: .npz, .npy, folder, FILE.py:fn.")
@shells.common()
def command(
    shell: Shell,
    target: str,
    output: str,
    force: bool,
    inputs: tuple[str, ...],
    dynamic: tuple[str, ...],
    opset: int,
    weights: str | None,
    check_sizes: tuple[str, ...],
    output_names: str | None,
    purpose: Literal["serving", "training"],
    data: str | None,
) -> None:
    """Export a PyTorch module and prove it equal to torch at several sizes.

    TARGET is module:attr or file.py:attr (an nn.Module, a callable that returns one, or
    (module, example inputs)), a .pt2 program, or a local Hugging Face folder.
    """
    from onnxcomp.pytorch import export
    from onnxcomp.report import tables

    with shell.progress() as on_progress:
        done = export(
            target,
            output,
            inputs=inputs,
            dynamic=dynamic,
            opset=opset,
            weights=weights,
            check_sizes=check_sizes,
            output_names=output_names.split(",") if output_names else (),
            purpose=purpose,
            data=data,
            force=force,
            limits=shell.limits(),
            on_progress=on_progress,
        )
    shell.show(done.to_json(), tables.exported)
