"""`onnxcomp evaluate`."""

from __future__ import annotations

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Budget, Json, Shell
from onnxcomp.errors import AccuracyGateError, UsageError


@click.command("evaluate")
@click.argument("model")
@click.option("--data", required=True, metavar="D", help="Samples with 'labels': .npz, folder, FILE.py:fn.")
@click.option(
    "--metric", default="accuracy", show_default=True, metavar="M",
    help="accuracy, top5, f1, mse, spearman, or FILE.py:fn (one score per sample).",
)  # fmt: skip
@click.option("--against", metavar="REFERENCE", help="Also judge this model, and give the paired drop.")
@click.option("--max-drop", type=Budget(), metavar="DROP", help="Exit 5 unless the drop's upper bound is within.")
@click.option("--output-name", metavar="NAME", help="Which output is scored.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Samples per run.")
@click.option("--provider", default="cpu", show_default=True, help="cpu or cuda.")
@shells.common()
def command(
    shell: Shell,
    model: str,
    data: str,
    metric: str,
    against: str | None,
    max_drop: float | None,
    output_name: str | None,
    batch_size: int,
    provider: str,
) -> None:
    """Judge MODEL against labels, with a 95 % interval."""
    from onnxcomp.report import tables

    if max_drop is not None and against is None:
        raise UsageError("--max-drop needs --against REFERENCE")
    result = shell.work(
        work.evaluate,
        model,
        data,
        metric=metric,
        against=against,
        output=output_name,
        batch_size=batch_size,
        provider=provider,
    )
    if max_drop is not None:
        _gate(result, max_drop, model)
    shell.show(result, tables.score)


def _gate(result: Json, max_drop: float, model: str) -> None:
    """The drop's bound on the bad side must be within the budget."""
    drop = result["drop"]
    worst = drop["high"] if result["higher_is_better"] else -drop["low"]
    if worst > max_drop:
        raise AccuracyGateError(
            f"the drop may be as large as {worst:.4g}, {max_drop:g} is allowed "
            f"(measured {drop['value']:.4g} on {result['samples']} samples)",
            where=model,
            hint="more labelled samples make the interval narrower" if drop["value"] <= max_drop else None,
        )
