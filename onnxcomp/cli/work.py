"""What the worker process runs for each verb: the public function, its result as plain JSON types.

The shell's process imports none of the heavy libraries; it passes names and paths, and gets JSON.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcomp.passes import Pass

Json = dict[str, Any]


def inspect(model: str) -> Json:
    """See `onnxcomp.inspect`."""
    from onnxcomp.inspect import inspect as run

    return run(model).to_json()


def passes(model: str, output: str, steps: Sequence[tuple[str, Mapping[str, Any]]], **options: Any) -> Json:
    """`onnxcomp.pipeline.optimize_file` with passes given as (name, options)."""
    from onnxcomp.pipeline import optimize_file

    return optimize_file(model, output, _made(steps), **options).to_json()


def quantize_within(
    model: str, output: str, steps: Sequence[tuple[str, Mapping[str, Any]]], *, max_drop: str, **options: Any
) -> Json:
    """`onnxcomp.sensitivity.quantize_within` with passes given as (name, options), and the budget as text."""
    from onnxcomp.recipe import make_pass
    from onnxcomp.sensitivity import parse_drop
    from onnxcomp.sensitivity import quantize_within as run

    made = [make_pass(name, values) for name, values in steps]
    budget = parse_drop(max_drop, options["metric"])
    return run(model, output, made, max_drop=budget, **options).to_json()


def prune_to_latency(
    model: str, output: str, steps: Sequence[tuple[str, Mapping[str, Any]]], *, target_latency: float, **options: Any
) -> Json:
    """`onnxcomp.sensitivity.prune_to_latency` with the pruning given as [(name, options)]."""
    from onnxcomp.sensitivity import prune_to_latency as run

    (step,) = _made(steps)
    return run(model, output, step, target_latency=target_latency, **options).to_json()  # type: ignore[arg-type]


def explain(model: str) -> Json:
    """See `onnxcomp.explain`."""
    from onnxcomp.explain import explain as run

    return run(model).to_json()


def recipe(path: str, model: str, output: str, **options: Any) -> Json:
    """`onnxcomp.pipeline.optimize_file` with the passes of a recipe."""
    from onnxcomp.pipeline import optimize_file
    from onnxcomp.pytorch.recipe import with_torch
    from onnxcomp.recipe import Recipe

    loaded = Recipe.load(path)
    steps = with_torch(loaded.passes)
    options["allow_no_effect"] = options.get("allow_no_effect") or loaded.allow_no_effect
    options["calibration"] = loaded.calibration

    def run() -> Json:
        return optimize_file(model, output, steps, **options).to_json()

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run()
    from onnxcomp.pytorch.distillation.together import together

    return together(run, steps, options.get("data")) or {}


def distill(teacher: str, student: str, data: str, output: str, **options: Any) -> Json:
    """See `onnxcomp.pytorch.distill`."""
    import importlib.util

    from onnxcomp.errors import UnsupportedError

    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("distillation needs torch", hint="pip install 'onnxcomp[torch]'")
    from onnxcomp.pytorch import distill as run

    return run(teacher, student, data, output, **options).to_json()


def compare(reference: str, candidate: str, data: str, **options: Any) -> Json:
    """See `onnxcomp.compare`."""
    from onnxcomp.evaluate import compare as run

    return run(reference, candidate, data, **options).to_json()


def evaluate(model: str, data: str, **options: Any) -> Json:
    """See `onnxcomp.evaluate`."""
    from onnxcomp.evaluate import evaluate as run

    return run(model, data, **options).to_json()


def bench(
    models: Sequence[str],
    *,
    output: str | None = None,
    force: bool = False,
    baseline: str | None = None,
    tolerance: float | None = None,
    sessions: int | None = None,
    tune_out: str | None = None,
    **options: Any,
) -> Json:
    """See `onnxcomp.bench`, with a baseline `onnxcomp.bench.baseline`; the result is stored in `output`, too."""
    from pathlib import Path

    from onnxcomp import documents
    from onnxcomp.bench import baseline as baselines
    from onnxcomp.bench import bench as run
    from onnxcomp.errors import UsageError
    from onnxcomp.model import refuse_target, write_file

    inputs = tuple(map(Path, [*models, *([] if baseline is None else [baseline])]))
    if output is not None:
        refuse_target(Path(output), force=force, inputs=inputs)
    if tune_out is not None:
        if baseline is not None:
            raise UsageError("tuning does not go with a baseline")
        refuse_target(Path(tune_out), force=force, inputs=inputs)
        options["tune"] = True
    if baseline is None:
        usual = 1 if output is None else baselines.SESSIONS
        measured = run(models, sessions=sessions or usual, **options)
        result = measured.to_json()
        if tune_out is not None and measured.tuning is not None:
            write_file(Path(tune_out), documents.to_text(measured.tuning.file().to_json()).encode(), force=force)
            result["tuning"]["file"] = tune_out
    else:
        result = baselines.gate(
            models,
            baseline,
            tolerance=baselines.TOLERANCE if tolerance is None else tolerance,
            sessions=sessions or baselines.SESSIONS,
            **options,
        ).to_json()
    if output is not None:
        write_file(Path(output), documents.to_text({"schema": "onnxcomp/bench/1", **result}).encode(), force=force)
    return result


def plan(models: Sequence[str], *, output: str | None = None, force: bool = False, **options: Any) -> Json:
    """See `onnxcomp.plan`; the result is written to `output`, too."""
    from pathlib import Path

    from onnxcomp import documents
    from onnxcomp.model import refuse_target, write_file
    from onnxcomp.plan import plan as run

    if output is not None:
        refuse_target(Path(output), force=force, inputs=tuple(map(Path, models)))
    result = run(models, **options).to_json()
    if output is not None:
        write_file(Path(output), documents.to_text({"schema": "onnxcomp/plan/1", **result}).encode(), force=force)
    return result


def pack(model: str, output: str, **options: Any) -> Json:
    """See `onnxcomp.pack`."""
    from onnxcomp.pack import pack as run

    return run(model, output, **options).to_json()


def verify(path: str) -> Json:
    """See `onnxcomp.pipeline.verify`, and `onnxcomp.pack.verify` for a folder."""
    from pathlib import Path

    if Path(path).is_dir():
        from onnxcomp.pack import verify as verify_pack

        return verify_pack(path).to_json()
    from onnxcomp.pipeline import verify as run

    return run(path).to_json()


def report(runs: Sequence[str], output: str, *, title: str, force: bool) -> Json:
    """Read results and write the page: HTML, or Markdown where `output` ends with .md."""
    from pathlib import Path

    from onnxcomp import model as models
    from onnxcomp.report import markdown, page
    from onnxcomp.report import runs as stored

    found = stored.read(map(Path, runs))
    models.refuse_target(Path(output), force=force, inputs=tuple(found))
    build = markdown.build if Path(output).suffix == ".md" else page.build
    models.write_file(Path(output), build(list(found.values()), title=title).encode(), force=force)
    return {"output": output, "runs": [str(file) for file in found]}


def doctor() -> Json:
    """See `onnxcomp.doctor`."""
    from onnxcomp.doctor import examine

    return examine().to_json()


def _made(steps: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Pass]:
    """Passes given as (name, options)."""
    from onnxcomp.pytorch.importance import with_gradients
    from onnxcomp.recipe import make_pass

    return with_gradients([make_pass(name, values) for name, values in steps])
