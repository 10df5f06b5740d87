"""`onnxcomp shrink`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import GateError, UndecidedError, UnsupportedError


class Duration(click.ParamType[float]):
    """Seconds: 90, 90s, 10m, 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(value).strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f"'{value}' is not a duration like 90s, 10m or 2h", param, ctx)
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@click.command("shrink")
@click.argument("model")
@click.option(
    "--data", required=True, metavar="D", help="Real samples: .npz, .npy, folder, FILE.py:fn; with labels or without."
)
@click.option(
    "--eval", metavar="E", help="Samples that choose and judge; --data then calibrates and trains [default: a part]."
)
@click.option(
    "--max-drop", required=True, metavar="DROP", help="What the metric may lose: 0.5% (points), or 0.005 in its unit."
)
@click.option(
    "--metric", metavar="M",
    help="As in evaluate; agreement or cosine without labels [default: accuracy, else what fits the outputs].",
)  # fmt: skip
@click.option(
    "--gate", type=click.Choice(("upper", "mean")), default="upper", show_default=True,
    help="What meets the budget: the upper end of the drop's interval, or the drop.",
)  # fmt: skip
@click.option("--minimize", type=click.Choice(("latency", "size", "cost")), default="latency", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per run.")
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True, help="Intra-op threads.")
@click.option("--provider", default="cpu", show_default=True, help="Where it runs.")
@click.option("--max-bytes", type=shells.Size(), metavar="BYTES", help="Largest file (24MB).")
@click.option("--min-speedup", type=float, metavar="X", help="At least so many times as fast as MODEL.")
@click.option(
    "--slo-p99", "slo_p99_ms", type=float, metavar="MS", help="99 of 100 requests within so many ms ('cost')."
)
@click.option("--price-per-hour", type=float, default=1.0, show_default=True, help="Of this machine ('cost').")
@click.option("--passes", metavar="P[,P...]", help="Only these passes may be used.")
@click.option(
    "--train/--no-train", default=False, show_default=True,
    help="Cut deeper, and let MODEL teach what is left; needs torch, and most of the time.",
)  # fmt: skip
@click.option(
    "--tune/--no-tune", default=True, show_default=True,
    help="Look for session settings of the result and of MODEL, and compare both at their best ('latency').",
)  # fmt: skip
@click.option("--time-budget", type=Duration(), default="10m", show_default=True, metavar="TIME", help="For all of it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random orders of the comparison.")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder of the result.")
@click.option("--resume", is_flag=True, help="Go on with what DIR holds: no candidate is made twice.")
@click.option("--force", is_flag=True, help="Start anew where DIR holds a result.")
@shells.common()
def command(shell: Shell, model: str, **values: Any) -> None:
    """Find the best model for this machine that MODEL can be made into within an accuracy budget.

    Samples are divided: some calibrate, some choose, some are looked at once, in the end: the drop that is
    printed is theirs. Candidates are made by all passes that may pay for this kind of model, and by
    their combinations; each in a worker of its own. The fastest (or smallest) few are timed against MODEL
    beside a control, and the best of them that holds the budget on the last samples wins.

    DIR gets best.onnx with its record, recipe.toml, that 'onnxcomp run' makes it of again, settings.json,
    shrink.json and report.html.
    Exit code 5: nothing beats MODEL within the budget, and why; 9: noise alone stands in the way.
    """
    from onnxcomp.report import shrinking
    from onnxcomp.sensitivity import parse_drop
    from onnxcomp.shrink import shrink

    passes, metric, folder = values.pop("passes"), values["metric"], Path(values.pop("output"))
    values["max_drop"] = parse_drop(values["max_drop"], metric or "accuracy")
    with shell.progress() as bar:
        told = shrinking.Teller(bar, shell.note)
        result = shrink(
            model,
            values.pop("data"),
            folder,
            passes=None if passes is None else [name.strip() for name in passes.split(",")],
            limits=shell.limits(),
            on_progress=told.progress,
            on_outcome=told.outcome,
            **values,
        )
    shell.show({**result.to_json(), "report": _report(shell, folder, model)}, shrinking.table)
    if result.best is None:
        sys.exit(UndecidedError.code if result.undecided else GateError.code)


def _report(shell: Shell, folder: Path, model: str) -> str | None:
    """Write the page; None where its libraries are not installed."""
    page, title = str(folder / "report.html"), f"{Path(model).name}, shrunk"
    try:
        shell.work(work.report, [str(folder / "shrink.json")], page, title=title, force=True)
    except UnsupportedError as error:
        shell.note(f"no report: {error.message}")
        return None
    return page
