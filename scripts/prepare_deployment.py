#!/usr/bin/env python3
"""From a model to what a server needs, each step a gate: export, shrink, verify, pack, plan.

    scripts/prepare_deployment.py SOURCE -o DIR --data D --max-drop 0.5% --rate 100 --slo-p99 50

SOURCE is an `.onnx` file, or what `onnxcomp export` takes; options of a step stand behind its name:
`--export "--inputs 'x:float32[1,3,224,224]' --dynamic x:0=batch" --shrink "--train --time-budget 20m"`.

DIR gets `model.onnx` (where SOURCE was exported), `shrunk/` with the model, its evidence and settings, `pack/` and
`plan.json`; `--pack "--layout triton --plan DIR/plan.json"` lays out for Triton by it. A step that fails ends the
script with the exit code of `onnxcomp`: 5 a gate, 9 undecided, and so on. Where nothing beats the model within the
budget it goes on with the model as it is, unless `--strict`.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import subprocess
import sys

_GATE = 5


def main() -> int:
    """Run the steps; the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    parser.add_argument("--data", required=True, help="real samples")
    parser.add_argument("--eval", help="samples that choose and judge; default: a part of --data")
    parser.add_argument("--max-drop", required=True)
    parser.add_argument("--rate", required=True, help="requests per second")
    parser.add_argument("--slo-p99", required=True, help="ms")
    parser.add_argument("--strict", action="store_true", help="nothing better is a failure")
    for step in ("export", "shrink", "pack", "plan"):
        parser.add_argument(f"--{step}", default="", metavar="OPTIONS", help=f"more options of 'onnxcomp {step}'")
    options = parser.parse_args()
    try:
        prepare(options)
    except subprocess.CalledProcessError as error:
        print(f"stopped: {shlex.join(map(str, error.cmd))} ended with {error.returncode}", file=sys.stderr)
        return int(error.returncode)
    return 0


def prepare(options: argparse.Namespace) -> None:
    """All steps. Raises CalledProcessError."""
    folder: pathlib.Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    model = pathlib.Path(options.source)
    if model.suffix != ".onnx":
        model = folder / "model.onnx"
        run("export", options.source, "-o", model, "--force", *shlex.split(options.export))
    samples = ["--data", options.data]
    judging = [] if options.eval is None else ["--eval", options.eval]
    shrunk = folder / "shrunk"
    settings: list[str | pathlib.Path] = []
    wanted = ["--max-drop", options.max_drop, *shlex.split(options.shrink)]
    try:
        run("shrink", model, *samples, *judging, *wanted, "-o", shrunk, "--force")
    except subprocess.CalledProcessError as error:
        if error.returncode != _GATE or options.strict:
            raise
        print("going on with the model as it is", file=sys.stderr)
    else:
        model = shrunk / "best.onnx"
        run("verify", model)
        if (shrunk / "settings.json").exists():
            settings = ["--settings", shrunk / "settings.json"]
    plan = folder / "plan.json"
    demand = ["--rate", options.rate, "--slo-p99", options.slo_p99]
    inputs = shlex.split(options.plan)
    run("plan", model, *samples, *demand, *settings, *inputs, "-o", plan, "--force")
    run("pack", model, *samples, *settings, *shlex.split(options.pack), "-o", folder / "pack", "--force")


def run(verb: str, *arguments: str | pathlib.Path) -> None:
    """`onnxcomp VERB ...`; what it prints is printed."""
    command = [sys.executable, "-m", "onnxcomp", verb, *map(str, arguments)]
    print(f"$ onnxcomp {shlex.join(command[3:])}", flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
