"""The command line: one file per verb; each parses, calls one public function and prints.

Nothing heavy is imported here: `onnxcomp --help` answers at once. Verbs that touch a model run in
a worker process (`onnxcomp.worker`), so that no model can take the shell's process down.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from onnxcomp import __version__

#: verb -> its line in `onnxcomp --help`, in the order of a day's work
VERBS: dict[str, str] = {
    "demo": "Train, export, shrink, judge and benchmark a small model; write a report.",
    "shrink": "Find the best model for this machine within an accuracy budget.",
    "export": "Export a PyTorch model to ONNX and prove it equal at several sizes.",
    "inspect": "Show what a model weighs: bytes, parameters, operators, MACs.",
    "optimize": "Rewrite a model into an equal, smaller graph.",
    "quantize": "Quantize a model to int8, dynamic or static.",
    "prune": "Prune the weights of a model.",
    "share": "Store the weights of a model in fewer numbers.",
    "distill": "Train a small model to answer as a large one does.",
    "run": "Run a recipe of passes on a model.",
    "compare": "Measure how near a candidate's outputs are to a reference's.",
    "evaluate": "Judge a model against labels, with intervals.",
    "bench": "Measure latency; compare two or more models with a verdict.",
    "plan": "Find how to serve models at a rate: workers, threads, machines, cost.",
    "pack": "Make a serving pack whose weights worker processes share.",
    "verify": "Check an output against its record.",
    "report": "Make one HTML page of results.",
    "doctor": "Check this environment.",
}


class _LazyGroup(click.Group):
    """Imports a verb's module only when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"onnxcomp.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from onnxcomp.errors import nearest

            hint = nearest(args[0], VERBS)
            ctx.fail(f"No such command '{args[0]}'." + (f" ({hint})" if hint else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 2 usage, 3 bad input, 4 unsupported, 5 gate failed, 6 limit, 7 worker crashed, "
    "8 input/output, 9 undecided, 1 a bug.",
)
@click.version_option(__version__, prog_name="onnxcomp")
def group() -> None:
    """Make a model smaller and faster before it is served, and prove it."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `onnxcomp` command; always leaves through SystemExit with a contract's code."""
    arguments = sys.argv[1:] if argv is None else argv
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    from onnxcomp.errors import OnnxcompError, UsageError

    failure: Any
    try:
        group.main(arguments, prog_name="onnxcomp", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else None
        failure = UsageError(error.format_message(), where=where, hint=f"see '{where or 'onnxcomp'} --help'")
    except click.ClickException as error:
        failure = UsageError(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; nobody is left to tell
        return 8
    except OnnxcompError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - the last place before the user
        failure = error
    else:
        return 0
    from onnxcomp.cli import shell

    return shell.fail(failure, json="--json" in arguments, debug="--debug" in arguments)
