"""`onnxcomp plan`."""

from __future__ import annotations

import sys

import click

from onnxcomp.cli import shell as shells
from onnxcomp.cli import work
from onnxcomp.cli.shell import Shell
from onnxcomp.errors import GateError, UndecidedError


@click.command("plan")
@click.argument("models", nargs=-1, required=True)
@click.option("--rate", type=float, required=True, metavar="QPS", help="Requests per second, of one sample each.")
@click.option(
    "--slo-p99", type=float, required=True, metavar="MS", help="99 of 100 requests within so many ms, waiting included."
)
@click.option("--price-per-hour", type=float, metavar="P", help="Of a machine, in any currency.")
@click.option(
    "--memory-limit", "memory", type=shells.Size(), metavar="BYTES",
    help="What the workers of a machine may hold together (4GiB, 500MB).",
)  # fmt: skip
@click.option("--cores", type=click.IntRange(min=1), help="Of a machine; default: those of this one.")
@click.option("--data", metavar="D", help="What is fed; default: seeded noise, random:16.")
@click.option("--shape", multiple=True, metavar="NAME=N", help="Size of a symbolic axis of the noise.")
@click.option(
    "--batch", type=click.IntRange(min=1), multiple=True,
    help="Samples that callers send together, at the same samples per second; repeatable.",
)  # fmt: skip
@click.option("--pack/--no-pack", default=True, show_default=True, help="Try processes on a pack, too.")
@click.option("--settings", metavar="FILE", help="Session settings (onnxcomp/settings/1); threads are chosen here.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Time budget of each model.")
@click.option("--seed", type=int, help="Seed of arrivals and random orders; drawn and recorded otherwise.")
@click.option("-o", "--output", metavar="PLAN.json", help="Write the plan as JSON, for 'onnxcomp pack --plan', too.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@shells.common(worker=False)
def command(
    shell: Shell,
    models: tuple[str, ...],
    rate: float,
    slo_p99: float,
    price_per_hour: float | None,
    memory: int | None,
    cores: int | None,
    data: str | None,
    shape: tuple[str, ...],
    batch: tuple[int, ...],
    pack: bool,
    settings: str | None,
    seconds: float,
    seed: int | None,
    output: str | None,
    force: bool,
) -> None:
    """Find how to serve MODELS at a rate within a p99: workers, threads, batch, machines, cost.

    Ways to use a machine (threads on one session, processes, processes on a pack, intra-op threads) are
    measured while all their workers run. The line of requests is simulated for the rate each can hold,
    and the best are verified by real open-loop runs. With two or more models, the first is the reference.

    Exit code 5: nothing holds the objective, and what would is told; 9: the runs were too short, or the
    machine too small or too busy, to tell. The plan is printed in any case.
    """
    from onnxcomp.report import plans

    result = shell.work(
        work.plan,
        models,
        settings=settings,
        output=output,
        force=force,
        rate=rate,
        slo_p99_ms=slo_p99,
        price_per_hour=price_per_hour,
        memory_limit=memory,
        cores=cores,
        data=data,
        sizes=shells.parse_sizes(shape),
        batch=batch or None,
        pack=pack,
        seconds=seconds,
        seed=seed,
    )
    shell.show(result, plans.plan)
    if result["verdict"] != "met":
        sys.exit(UndecidedError.code if result["verdict"] == "undecided" else GateError.code)
