"""int8 models of onnxcomp's command line, ONNX Runtime, NNCF and neural-compressor: size, quality, speed, cost.

All get the same float32 file and the same calibration samples, and are judged the same way. A peer that cannot be
installed or fails is a row with its reason. The clock shares the cores with nothing: run it on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxcomp.bench.environment import capture
from onnxcomp.errors import OnnxcompError
from peers import cases, environments, process, quality, rows, speed
from peers.table import markdown

WORK = environments.CACHE / "quantize"


@dataclasses.dataclass(frozen=True)
class Result:
    """One row.

    Attributes:
        name: of the row; 'float32' is the reference.
        path: the model, where there is one that loads and runs.
        why: what went wrong.
        bytes: of the model with its external data.
        judged: see `quality.Quality`.
        cost: of the process that made it.
    """

    name: str
    path: Path | None = None
    why: str | None = None
    bytes: int | None = None
    judged: quality.Quality | None = None
    cost: process.Ran | None = None

    def to_json(self) -> dict[str, Any]:
        """Figures by name, without paths and logs."""
        cost = None if self.cost is None else dataclasses.asdict(self.cost)
        return {
            "name": self.name,
            "failed": self.why,
            "bytes": self.bytes,
            "quality": None if self.judged is None else self.judged.to_json(),
            "cost": cost and {key: cost[key] for key in ("seconds", "cpu_seconds", "peak_bytes")},
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this comparison."""
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(cases.CASES)}; both if none is given")
    cases.add_arguments(parser)
    parser.add_argument("--only", metavar="WORD", help="rows whose name holds this word")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one tool on one model")
    parser.add_argument(
        "--seconds", type=float, default=120, help="time budget of the clock at each shape; 0: no clock"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")


def run(options: argparse.Namespace) -> int:
    """Print a table for each model; 1 where a command of onnxcomp itself failed."""
    if unknown := set(options.names) - set(cases.CASES):
        print(f"error: no model {', '.join(sorted(unknown))}; there is {', '.join(cases.CASES)}", file=sys.stderr)
        return 2
    failed = False
    document: dict[str, Any] = {"environment": dataclasses.asdict(capture()), "versions": {}, "models": {}}
    for name in options.names or cases.CASES:
        case = cases.load(name, options)
        chosen = [row for row in (*rows.OURS, *rows.PEERS) if name in row.models and (options.only or "") in row.name]
        results = made(case, chosen, options.timeout)
        failed |= any(result.why is not None for result in results if result.name.startswith("onnxcomp"))
        speeds = timed(case, results, options.seconds, options.timeout) if options.seconds else []
        print(markdown(case, [(one.name, one.to_json()) for one in results], speeds), flush=True)
        document["models"][name] = {
            "sentences": case.sentences_source,
            "rows": [result.to_json() for result in results],
            "speed": [one.to_json() for one in speeds],
        }
        for peer in {row.peer for row in chosen if row.peer is not None and row.peer.python.exists()}:
            document["versions"][peer.name] = environments.versions(peer)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(failed)


def made(case: cases.Case, chosen: Sequence[rows.Row], timeout: float) -> list[Result]:
    """float32 first, then what every row makes of it."""
    tell(case, "float32")
    reference = quality.outputs(case.model, case.test, case.sentences)
    itself = quality.judge(reference, reference, case.labels)
    return [
        Result("float32", case.model, None, case.model.stat().st_size, itself),
        *(one(case, row, reference, timeout) for row in chosen),
    ]


def one(case: cases.Case, row: rows.Row, reference: quality.Outputs, timeout: float) -> Result:
    """One row: make the model, judge it."""
    tell(case, row.name)
    folder = WORK / case.name / row.name.replace(",", "").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    output = folder / "model.onnx"
    try:
        if row.peer is not None:
            environments.make(row.peer)
        cost = process.run(row.command(case.model, case.calibration, output), timeout)
    except environments.NotInstalledError as error:
        return Result(row.name, why=f"not installed: {error}")
    (folder / "log.txt").write_text(cost.text)
    if cost.code or not output.exists():
        return Result(row.name, why=cost.last_line, cost=cost)
    size = sum(file.stat().st_size for file in folder.glob("model.onnx*") if not file.name.endswith(".json"))
    try:
        found = quality.outputs(output, case.test, case.sentences)
    except OnnxcompError as error:
        return Result(row.name, None, f"does not load or run: {error.message}", size, cost=cost)
    return Result(row.name, output, None, size, quality.judge(reference, found, case.labels), cost)


def timed(case: cases.Case, results: Sequence[Result], seconds: float, timeout: float) -> list[speed.Speed]:
    """Every model that runs, and float32 at every setting, at every shape."""
    arms = [speed.Arm(result.name, result.path) for result in results if result.path is not None]
    arms[0] = dataclasses.replace(arms[0], baseline=True)
    arms += baselines(case, timeout)
    speeds = []
    for shape, feeds in case.shapes.items():
        tell(case, shape)
        speeds.append(speed.measure(shape, arms, feeds, seconds=seconds))
    return speeds


def baselines(case: cases.Case, timeout: float) -> list[speed.Arm]:
    """float32 at other settings, and after `onnxcomp optimize --fuse` at all of them."""
    arms = [speed.Arm(f"float32, {name}", case.model, given, True) for name, given in case.settings.items()]
    output = WORK / case.name / "optimized.onnx"
    command = [sys.executable, "-m", "onnxcomp", "optimize", case.model, "--fuse", "--quiet", "--force", "-o", output]
    output.unlink(missing_ok=True)
    if process.run(command, timeout).code == 0:
        arms.append(speed.Arm("float32, onnxcomp optimize", output, baseline=True))
        for name, given in case.settings.items():
            arms.append(speed.Arm(f"float32, onnxcomp optimize, {name}", output, given, True))
    return arms


def tell(case: cases.Case, text: str) -> None:
    """A line of progress."""
    print(f"{case.name}: {text} ...", file=sys.stderr, flush=True)
