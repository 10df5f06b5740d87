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

#: time budgets of scenarios that take more than others
_SECONDS = {"sweep": 120.0}


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--provider",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="cpu, cuda, tensorrt or openvino; repeatable.",
)
@click.option(
    "--transfers", is_flag=True,
    help="Count the copies to a GPU and back in every run, as a server pays them ('latency', 'placement').",
)  # fmt: skip
@click.option("--cuda-graph", is_flag=True, help="Record CUDA's kernels once, replay them ('latency', 'placement').")
@click.option(
    "--scenario", default="latency", show_default=True,
    help="latency: one caller, closed loop; cold: from process start to first output; throughput: most samples "
    "per second; server: requests at a rate; workers: several at once, in other ways; sweep: which of many "
    "settings nobody beats; placement: providers' and operators' share of nodes and time.",
)  # fmt: skip
@click.option("--data", metavar="D", help="What is fed; default: seeded noise, random:16.")
@click.option("--batch", type=click.IntRange(min=1), multiple=True, default=(1,), show_default=True, help="Repeatable.")
@click.option(
    "--shape", multiple=True, metavar="NAME=N", help="Size of a symbolic axis of the noise; repeatable ('sweep')."
)
@click.option(
    "--threads", type=click.IntRange(min=0), multiple=True,
    help="Intra-op threads, 0 leaves it to ORT; repeatable. [default: 1, or those of --settings]",
)  # fmt: skip
@click.option("--settings", metavar="S.json", help="Session settings, as --tune-out writes them.")
@click.option(
    "--spinning", type=click.Choice(("on", "off", "both")),
    help="Whether idle threads of a pool spin ('sweep'). [default: both]",
)  # fmt: skip
@click.option(
    "--optimization", type=click.Choice(("disable", "basic", "extended", "all")), multiple=True,
    help="ORT's graph optimization; repeatable ('sweep'). [default: all]",
)  # fmt: skip
@click.option(
    "--tune-out", metavar="S.json",
    help="Search session settings that beat ORT's defaults on this host, and write them ('sweep').",
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
@click.option("--seconds", type=float, help="Time budget per setting; of a whole sweep. [default: 20; of a sweep 120]")
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
    transfers: bool,
    cuda_graph: bool,
    scenario: str,
    data: str | None,
    batch: tuple[int, ...],
    shape: tuple[str, ...],
    threads: tuple[int, ...],
    settings: str | None,
    spinning: str | None,
    optimization: tuple[str, ...],
    tune_out: str | None,
    workers: tuple[int, ...],
    pack: bool,
    rate: float | None,
    slo_p99: float | None,
    processes: bool,
    seconds: float | None,
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

    With --scenario sweep, every combination of --threads, --spinning, --batch, --shape, --provider
    and --optimization is screened, and what nobody clearly beats in latency and CPU time a sample
    is measured longer: the front. With --tune-out, single settings (optimizers, memory, threads)
    race against ORT's defaults, and the winner is proven against them before it is written.

    With --scenario placement, each model runs under ONNX Runtime's profiler: nodes and time by
    provider, before and after fusion, and the operators that take the time, side by side for
    several models.

    With --scenario server, requests arrive at random (Poisson) at --rate, whether or not a worker
    is free, and latency counts from when each was due. Several models are also compared, in rounds
    of the same arrivals; without --rate by the rates that their run times promise. Exit code 5: --slo-p99
    is missed; 9: the run was too short, or the machine too busy, to tell. The result is printed in
    any case.

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
        bind=False if transfers else None,
        cuda_graph=cuda_graph,
        scenario=scenario,
        data=data,
        batch=batch,
        sizes=_sizes(shape),
        threads=threads or None,
        settings=settings,
        spinning=spinning,
        optimization=optimization or None,
        tune_out=tune_out,
        workers=workers or None,
        pack=pack,
        rate=rate,
        slo_p99_ms=slo_p99,
        processes=processes,
        seconds=_SECONDS.get(scenario, 20.0) if seconds is None else seconds,
        sessions=sessions,
        output=output,
        force=force,
        baseline=baseline,
        tolerance=tolerance,
        seed=seed,
    )
    for warning in result.get("warnings", ()):
        shell.note(f"warning: {warning}")
    shell.show(result, tables.benchmark)
    verdicts = [row["slo"]["verdict"] for row in result["results"] if row.get("slo")]
    if "baseline" in result:
        verdicts.append(result["baseline"]["verdict"])
    for verdict, code in _CODES:
        if verdict in verdicts:
            sys.exit(code)


def _sizes(shape: tuple[str, ...]) -> dict[str, int | list[int]]:
    """Sizes by axis; a list for an axis that was named several times."""
    found: dict[str, list[int]] = {}
    for one in shape:
        for name, size in shells.parse_sizes((one,)).items():
            found.setdefault(name, []).append(size)
    return {name: sizes if len(sizes) > 1 else sizes[0] for name, sizes in found.items()}
