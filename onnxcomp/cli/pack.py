"""`onnxcomp pack`."""

from __future__ import annotations

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell


@click.command("pack")
@click.argument("model")
@click.option(
    "--layout", type=click.Choice(("plain", "triton")), default="plain", show_default=True,
    help="triton: DIR is a model of a Triton model repository.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=2), default=4, show_default=True,
    help="Processes that are measured, instances that Triton starts.",
)  # fmt: skip
@click.option("--data", metavar="D", help="Outputs are compared on these samples; default: seeded noise.")
@click.option("--shape", multiple=True, metavar="NAME=N", help="Size of a symbolic axis of the noise.")
@click.option("--plan", metavar="PLAN.json", help="Workers, threads and batch for Triton.")
@click.option("--settings", metavar="S.json", help="Session settings, as 'bench --tune-out' writes them.")
@click.option(
    "--portable/--no-portable", default=True, show_default=True,
    help="Keep a copy of MODEL, to fall back to where the pack does not fit.",
)  # fmt: skip
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder that the pack becomes.")
@click.option("--force", is_flag=True, help="Replace an existing pack.")
@shells.common()
def command(
    shell: Shell,
    model: str,
    layout: str,
    workers: int,
    data: str | None,
    shape: tuple[str, ...],
    plan: str | None,
    settings: str | None,
    portable: bool,
    output: str,
    force: bool,
) -> None:
    """Make a serving pack of MODEL for this host: worker processes share its weights.

    Real workers prove that outputs are bit-identical and that the memory is shared. A pack belongs to
    one version of ONNX Runtime and one kind of CPU: make it where it is served, and keep MODEL.
    """
    from onnxcomp.report import packs

    result = shell.work(
        work.pack,
        model,
        output,
        layout=layout,
        workers=workers,
        data=data,
        sizes=shells.parse_sizes(shape),
        plan=plan,
        settings=settings,
        portable=portable,
        force=force,
    )
    for warning in result["warnings"]:
        shell.note(f"warning: {warning}")
    shell.show(result, packs.packed)
