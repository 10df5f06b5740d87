"""`onnxcomp bench`."""

from __future__ import annotations

import sys

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import GateError, RegressionError, UndecidedError

#: verdict on an objective or a baseline -> exit code, worst first
_CODES = (
    ("missed", GateError.code),
    ("regression", RegressionError.code),
    ("undecided", UndecidedError.code),
)


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@click.option("--provider", multiple=True, default=("cpu",), show_default=True, help="cpu or cuda; repeatable.")
@click.option(
    "--scenario", default="latency", show_default=True,
    help="latency: one caller, closed loop; cold: from process start to first output; throughput: most samples "
    "per second; server: requests at a rate; workers: several at once, in other ways; placement: providers' and "
    "operators' share of nodes and time.",
)  # fmt: skip
@click.option("--data", metavar="D", help="What is fed; default: seeded noise, random:16.")
@click.option("--batch", type=click.IntRange(min=1), multiple=True, default=(1,), show_default=True, help="Repeatable.")
@click.option("--shape", multiple=True, metavar="NAME=N", help="Size of a symbolic axis of the noise.")
@click.option(
    "--threads", type=click.IntRange(min=0), multiple=True, default=(1,), show_default=True,
    help="Intra-op threads, 0 leaves it to ORT; repeatable.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), multiple=True,
    help="How many ('workers', 'server': one per core; 'throughput': 1 caller); repeatable.",
)  # fmt: skip
@click.option("--pack", is_flag=True, help="Make a pack of each model and measure it, too ('workers').")
@click.option("--rate", type=float, metavar="Q", help="Requests per second ('server').")
@click.option(
    "--slo-p99", type=float, metavar="MS",
    help="99 of 100 requests within so many ms ('server'); without --rate the highest rate is sought.",
)  # fmt: skip
@click.option("--processes", is_flag=True, help="Workers are processes, not threads ('server', 'throughput').")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Time budget per setting.")
@click.option(
    "--sessions", type=click.IntRange(min=1), metavar="N",
    help="Fresh sessions that share the runs of a model ('latency'); 1, with -o or --baseline 20.",
)  # fmt: skip
@click.option("-o", "--output", metavar="RUN.json", help="Store the result, with all samples.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--baseline", metavar="RUN.json", help="A stored run that this one must not be slower than.")
@click.option(
    "--tolerance", type=shells.Budget(), default="2%", show_default=True, metavar="X",
    help="A slowdown that passes ('--baseline').",
)  # fmt: skip
@click.option("--seed", type=int, help="Seed of all random orders; drawn and recorded otherwise.")
@shells.common()
def command(
    shell: Shell,
    models: tuple[str, ...],
    provider: tuple[str, ...],
    scenario: str,
    data: str | None,
    batch: tuple[int, ...],
    shape: tuple[str, ...],
    threads: tuple[int, ...],
    workers: tuple[int, ...],
    pack: bool,
    rate: float | None,
    slo_p99: float | None,
    processes: bool,
    seconds: float,
    sessions: int | None,
    output: str | None,
    force: bool,
    baseline: str | None,
    tolerance: float,
    seed: int | None,
) -> None:
    """Measure the latency of MODELS; with two or more, the first is the reference.

    A comparison runs rounds of fresh sessions in random order beside an A/A control, and says
    faster, slower, equivalent or undecided.

    With --scenario workers, each model runs in N processes, in N threads on one session, and,
    where MODELS names the folder of a pack, in N processes on the pack: throughput, latency and
    memory (PSS, USS, peak) of all together, and their ratios to one plain process and to N.

    With --scenario placement, each model runs under ONNX Runtime's profiler: nodes and time by
    provider, before and after fusion, and the operators that take the time, side by side for
    several models.

    With --scenario server, requests arrive at random (Poisson) at --rate, whether or not a worker
    is free, and latency counts from when each was due. Exit code 5: --slo-p99 is missed; 9: the
    run was too short, or the machine too busy, to tell. The result is printed in any case.

    With --baseline, each row is judged by the stored row of the same model, scenario and setting:
    side by side in interleaved rounds where the baseline's model file is still there, byte for
    byte (latency), else by what was stored, on the same machine and software only. Exit code 5: a
    row is slower than --tolerance allows, beyond the noise; 9: undecided. The result is printed,
    and stored with -o, in any case.
    """
    from onnxcomp.report import tables

    result = shell.work(
        work.bench,
        models,
        provider=provider,
        scenario=scenario,
        data=data,
        batch=batch,
        sizes=shells.parse_sizes(shape),
        threads=threads,
        workers=workers or None,
        pack=pack,
        rate=rate,
        slo_p99_ms=slo_p99,
        processes=processes,
        seconds=seconds,
        sessions=sessions,
        output=output,
        force=force,
        baseline=baseline,
        tolerance=tolerance,
        seed=seed,
    )
    shell.show(result, tables.benchmark)
    verdicts = [row["slo"]["verdict"] for row in result["results"] if row.get("slo")]
    if "baseline" in result:
        verdicts.append(result["baseline"]["verdict"])
    for verdict, code in _CODES:
        if verdict in verdicts:
            sys.exit(code)
