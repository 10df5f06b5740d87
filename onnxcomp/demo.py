"""The main job on the embedded default: train, export, shrink, judge, benchmark, report."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp import documents, worker
from onnxcomp.errors import OnnxcompError, UnsupportedError, from_os_error

Json = dict[str, Any]
Progress = Callable[[str, float | None], None]

MAX_DROP = 0.005
TARGET = "onnxcomp_models.digits:build"

#: what is tried: (name, passes as (name, options))
CANDIDATES: tuple[tuple[str, tuple[tuple[str, Json], ...]], ...] = (
    ("dynamic int8", (("quantize-dynamic", {}),)),
    ("dynamic int8, Conv too", (("quantize-dynamic", {"op_types": ["Conv", "Gemm", "MatMul"]}),)),
    ("static int8", (("quantize-static", {}),)),
    ("static int8, all of a CNN", (("quantize-static", {"op_types": [
        "Add", "Clip", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Relu"]}),)),
)  # fmt: skip


def demo(
    folder: str | os.PathLike[str] = "runs/demo",
    *,
    max_drop: float = MAX_DROP,
    seconds: float = 30.0,
    epochs: int | None = None,
    seed: int = 0,
    limits: worker.WorkerLimits | None = None,
    on_progress: Progress | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Json:
    """Run everything and write models, records, `demo.json` and `report.html` into `folder`.

    Args:
        folder: made if missing; files of an earlier demo are replaced.
        max_drop: budget: how much accuracy a candidate may lose, measured on held-out samples.
        seconds: time budget of the benchmark.
        epochs: of training; None: the model's own number.
        seed: of training.
        limits: of each worker.
        on_progress: called with (text, fraction or None).
        on_step: called with a line when a step is done.

    Each step runs in a worker; a candidate that fails is a row with its reason, not the end.

    Raises UnsupportedError when torch, scikit-learn or the report's libraries are missing.
    """
    _require("torch", "sklearn", "matplotlib", "jinja2", "onnxruntime")
    run = functools.partial(worker.isolated, limits=limits, on_progress=on_progress)
    say = on_step or (lambda _: None)
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, place) from error
    start = time.perf_counter()
    trained = run(_train, str(place), seed, epochs)
    say(
        f"trained in {trained['seconds']:.0f} s: {trained['accuracy']:.2%} right in torch "
        f"on {trained['test']} held-out samples"
    )
    model, exported = _export(place, limits, on_progress)
    say(
        f"exported: equal to torch within {max(p['max_rel_error'] for p in exported['parity']):.0e} "
        f"at {len(exported['parity'])} batch sizes"
    )
    rows, refused = _candidates(run, place, model, say)
    for row in rows:
        row.update(_judge(run, row, place, model, max_drop))
    bench = run(_bench, [row["path"] for row in rows], str(place / "test.npz"), seconds, seed)
    _add_speed(rows, bench)
    result: Json = {
        "title": "Handwritten digits, a residual CNN",
        "metric": "accuracy",
        "max_drop": max_drop,
        "training": trained,
        "export": exported,
        "models": rows,
        "refused": refused,
        "bench": bench,
        **_choose(rows, max_drop),
        "seconds": round(time.perf_counter() - start, 1),
        "report": str(place / "report.html"),
    }
    run(_write, str(place), result)
    return result


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(f"the demo needs {', '.join(missing)}", hint="pip install 'onnxcomp[demo]'")


def _train(folder: str, seed: int, epochs: int | None) -> Json:
    """Train, and write weights and data into the folder."""
    import numpy as np
    from onnxcomp_models import digits
    from safetensors.torch import save_file

    start = time.perf_counter()
    options = {} if epochs is None else {"epochs": epochs}
    network = digits.train(seed=seed, on_progress=worker.report, **options)
    found = digits.data()
    place = Path(folder)
    save_file(network.state_dict(), place / "digits.safetensors")
    np.savez(place / "calibration.npz", image=found.train_images)
    np.savez(place / "test.npz", image=found.test_images, labels=found.test_labels)
    return {
        "accuracy": digits.accuracy(network, found.test_images, found.test_labels),
        "train": len(found.train_labels),
        "test": len(found.test_labels),
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _export(place: Path, limits: worker.WorkerLimits | None, on_progress: Progress | None) -> tuple[str, Json]:
    from onnxcomp.pytorch import export

    path = str(place / "digits.onnx")
    done = export(
        TARGET,
        path,
        inputs=["image:float32[2,1,8,8]"],
        dynamic=["image:0=batch"],
        weights=place / "digits.safetensors",
        force=True,
        limits=limits,
        on_progress=on_progress,
    )
    return path, done.to_json()


def _candidates(
    run: Callable[..., Json], place: Path, model: str, say: Callable[[str], None]
) -> tuple[list[Json], list[Json]]:
    """(rows, refusals): the reference first, then every candidate that could be made."""
    size = Path(model).stat().st_size
    rows: list[Json] = [
        {"name": "float32", "path": model, "bytes": size, "size_ratio": 1.0, "passes": [], "fidelity": None}
    ]
    refused = []
    for name, steps in CANDIDATES:
        path = str(place / f"digits-{name.replace(',', '').replace(' ', '-')}.onnx")
        try:
            record = run(_compress, model, path, steps, str(place / "calibration.npz"))
        except OnnxcompError as error:
            refused.append({"name": name, "class": type(error).__name__, "reason": str(error)})
            say(f"{name}: refused: {error.message}")
            continue
        say(f"{name}: {1 / record['size_ratio']:.2f}x smaller")
        kept = ("size_ratio", "passes", "fidelity")
        rows.append({"name": name, "path": path, "bytes": record["output"]["bytes"], **{k: record[k] for k in kept}})
    return rows, refused


def _compress(model: str, output: str, steps: Sequence[tuple[str, Json]], data: str) -> Json:
    from onnxcomp.pipeline import optimize_file
    from onnxcomp.recipe import make_pass

    passes = [make_pass(name, options) for name, options in steps]
    record = optimize_file(model, output, passes, data=data, force=True)
    return record.to_json()


def _judge(run: Callable[..., Json], row: Json, place: Path, reference: str, max_drop: float) -> Json:
    """Accuracy on the held-out third, the paired drop, and whether the budget is met."""
    against = None if row["path"] == reference else reference
    found = run(_evaluate, row["path"], str(place / "test.npz"), against)
    score = {k: found[k] for k in ("value", "low", "high")}
    drop = found["drop"]
    if drop is None:
        gate = "reference"
    elif drop["value"] > max_drop:
        gate = "failed"
    else:
        gate = "passed" if drop["high"] <= max_drop else "passed, not certain"
    return {"score": score, "samples": found["samples"], "drop": drop, "gate": gate}


def _evaluate(model: str, data: str, against: str | None) -> Json:
    from onnxcomp.evaluate import evaluate

    return evaluate(model, data, against=against).to_json()


def _bench(models: Sequence[str], data: str, seconds: float, seed: int) -> Json:
    from onnxcomp.bench import bench

    return bench(models, data=data, seconds=seconds, seed=seed).to_json()


def _add_speed(rows: Sequence[Json], bench: Mapping[str, Any]) -> None:
    found = {c["candidate"]: c for c in bench["comparison"]}
    for row in rows:
        one = found.get(row["path"])
        row["speedup"] = None if one is None else one["speedup"]
        row["verdict"] = None if one is None else one["verdict"]


def _choose(rows: Sequence[Json], max_drop: float) -> Json:
    """The fastest candidate within the budget that is measurably faster; else the smallest, named so."""
    fit = [r for r in rows if r["gate"].startswith("passed")]
    faster = [r for r in fit if r["verdict"] == "faster"]
    if faster:
        best = max(faster, key=lambda r: r["speedup"]["low"])
        text = (
            f"{best['name']} is {best['speedup']['value']:.2f} times faster and "
            f"{1 / best['size_ratio']:.2f} times smaller than float32, "
            f"at a drop of {100 * best['drop']['value']:.2f} points"
        )
    elif fit:
        best = min(fit, key=lambda r: r["bytes"])
        text = (
            f"nothing is measurably faster than float32 on this machine; {best['name']} is "
            f"{1 / best['size_ratio']:.2f} times smaller, "
            f"at a drop of {100 * best['drop']['value']:.2f} points"
        )
    else:
        return {"winner": None, "conclusion": "No candidate is within the budget; serve float32."}
    if best["gate"] != "passed":
        needed = _samples_needed(best["drop"], max_drop, best["samples"])
        text += f" (between {100 * best['drop']['low']:.2f} and {100 * best['drop']['high']:.2f}" + (
            ")" if needed is None else f"; about {needed:,} held-out samples would make it certain)"
        )
    return {"winner": best["name"], "conclusion": text[0].upper() + text[1:] + "."}


def _samples_needed(drop: Mapping[str, float], max_drop: float, samples: int) -> int | None:
    """Samples at which the interval's upper end, shrinking with the square root, meets the budget.

    None where the drop fills the budget: no number of samples would do.
    """
    half = (drop["high"] - drop["low"]) / 2
    room = max_drop - drop["value"]
    return math.ceil(samples * (half / room) ** 2) if room > 0 else None


def _write(folder: str, result: Json) -> None:
    from onnxcomp import model as models
    from onnxcomp.report.page import build

    place = Path(folder)
    document = {"schema": "onnxcomp/demo/1", **result}
    models.write_file(place / "demo.json", documents.to_text(document).encode(), force=True)
    page = build([document], title="onnxcomp demo")
    models.write_file(place / "report.html", page.encode(), force=True)
