"""What all verbs share: common options, the worker, progress, output and failure."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from onnxcomp import documents, errors
from onnxcomp.errors import OnnxcompError, UsageError

if TYPE_CHECKING:
    from onnxcomp.worker import WorkerLimits

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shell:
    """How one invocation talks to the user.

    Attributes:
        verb: the verb's name, part of the JSON schema's name.
        json: print one JSON object instead of tables.
        quiet: no progress, notes or warnings on stderr.
        debug: tracebacks.
        memory_limit: bytes the worker may use; None: 80 % of what is free.
        time_limit: seconds the worker may run; None: no limit.
    """

    verb: str
    json: bool
    quiet: bool
    debug: bool
    memory_limit: int | None = None
    time_limit: float | None = None

    def work(self, fn: Callable[..., Json], *args: Any, **kwargs: Any) -> Json:
        """Run a function of `onnxcomp.cli.work` in a supervised worker, with progress on a terminal."""
        from onnxcomp import worker

        with self.progress() as on_progress:
            return worker.isolated(fn, *args, limits=self.limits(), on_progress=on_progress, **kwargs)

    def limits(self) -> WorkerLimits:
        """What the user allows the worker."""
        from onnxcomp.worker import WorkerLimits

        return WorkerLimits(memory_bytes=self.memory_limit, seconds=self.time_limit)

    def show(self, result: Json, render: Callable[[Any], None], *, schema: str | None = None) -> None:
        """Print a result: JSON, or what `render(result)` prints; notes and warnings go to stderr."""
        if self.json:
            document = {"schema": schema or f"onnxcomp/{self.verb}/1", **result}
            click.echo(documents.to_text(document), nl=False)
            return
        render(result)

    def note(self, text: str) -> None:
        """A line on stderr, unless --quiet or --json."""
        if not (self.quiet or self.json):
            click.echo(text, err=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str, float | None], None] | None]:
        """A progress bar on stderr where that is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(self.verb, total=None)

            def update(text: str, fraction: float | None) -> None:
                bar.update(task, description=text, total=1.0 if fraction is not None else None, completed=fraction)

            yield update


def common(*, worker: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that every verb has; the function gets a `Shell` as its keyword `shell`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(**kwargs: Any) -> None:
            context = click.get_current_context()
            names = [f.name for f in dataclasses.fields(Shell) if f.name in kwargs]
            shell = Shell(verb=context.info_name or "", **{name: kwargs.pop(name) for name in names})
            function(shell=shell, **kwargs)

        options = [
            click.option("--debug", is_flag=True, help="Show tracebacks."),
            click.option("--quiet", is_flag=True, help="No progress, notes or warnings."),
            click.option("--json", is_flag=True, help="Print one JSON object."),
        ]
        if worker:
            options += [
                click.option(
                    "--time-limit", type=float, metavar="SECONDS", help="Stop the worker after this time."
                ),
                click.option(
                    "--memory-limit", type=Size(), metavar="BYTES",
                    help="Stop the worker above this memory (4GiB, 500MB); default 80 % of what is free.",
                ),
            ]  # fmt: skip
        return functools.reduce(lambda wrapped, add: add(wrapped), options, call)

    return decorate


def output_options(function: Callable[..., None]) -> Callable[..., None]:
    """`-o/--output` and `--force`."""
    force = click.option("--force", is_flag=True, help="Replace an existing output.")
    path = click.option("-o", "--output", required=True, metavar="OUT", help="Where the result goes.")
    return path(force(function))


class Size(click.ParamType[int]):
    """A number of bytes: 1000000, 500MB, 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse; `MB` counts in thousands, `MiB` in 1024."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", str(value).strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"'{value}' is not a size like 500MB or 4GiB", param, ctx)
        power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
        return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


class Budget(click.ParamType[float]):
    """A drop: an absolute number in the metric's unit (0.005), or percentage points (0.5%)."""

    name = "drop"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse; a bare number of 0.3 or more is refused, it is most likely meant as a percentage."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            self.fail(f"'{value}' is not a number like 0.005 or 0.5%", param, ctx)
        if text.endswith("%"):
            return number / 100
        if number >= 0.3:
            self.fail(f"{text} would allow a drop of {number:.0%}; write {text}% if you mean points", param, ctx)
        return number


def parse_sizes(specs: tuple[str, ...]) -> dict[str, int]:
    """`NAME=N` options as a dictionary. Raises UsageError."""
    sizes = {}
    for spec in specs:
        name, _, size = spec.partition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise UsageError("not of the form NAME=N", where=spec)
        sizes[name] = int(size)
    return sizes


def fail(failure: BaseException, *, json: bool, debug: bool) -> int:
    """Report a failure on stderr (and as JSON on stdout); the exit code."""
    if debug:
        traceback.print_exception(failure)
    if not isinstance(failure, OnnxcompError):
        last = str(failure).strip().splitlines()[-1:] or [""]
        text = f"internal error, a bug of onnxcomp: {type(failure).__name__}: {last[0]}"
        failure = OnnxcompError(text, hint="run again with --debug and report what it prints")
    if json:
        click.echo(documents.to_text(failure.to_json()), nl=False)
    click.echo(f"error: {one_line(str(failure))}", err=True)
    if failure.hint:
        click.echo(f"hint: {one_line(failure.hint)}", err=True)
    return failure.code


def one_line(text: str) -> str:
    """Control characters and line breaks, which a hostile model may contain, as spaces."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)[: errors.MAX_TEXT]
