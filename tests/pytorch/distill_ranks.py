"""What each of several processes does in `test_distill_ranks.py`: one case after the other, results as JSON.

    python distill_ranks.py FOLDER PORT ...

RANK and WORLD_SIZE come from the environment, as torchrun sets them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import distill_samples
import torch

from onnxcomp.errors import DataError, OnnxcompError
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch import distill, with_torch
from onnxcomp.pytorch.distillation import loop, state
from onnxcomp.pytorch.distillation.ranks import from_environment, joined
from onnxcomp.pytorch.distillation.setup import make_settings
from onnxcomp.pytorch.distillation.teach import teach
from onnxcomp.pytorch.distillation.together import together
from onnxcomp.recipe import Recipe

OPTIONS = {"epochs": 3, "batch": 20, "lr": 0.02, "hint": ["h=h"], "average": 0.9}


RECIPE = """
[[pass]]
name = "prune-structured"
sparsity = 0.5
align = 4
repair = "bias"

[[pass]]
name = "distill"
epochs = 2
batch = 20
lr = 0.02

[[pass]]
name = "distill"
quantization_aware = true
epochs = 1
batch = 20
lr = 1e-3
"""


class StopError(Exception):
    """Thrown into a run."""


def run(folder: Path, name: str, **options: Any) -> Any:
    options = {"student": folder / "student8.onnx", **OPTIONS, **options}
    return distill(
        folder / "teacher.onnx", options.pop("student"), folder / "data.npz", folder / f"{name}.onnx", **options
    )


def whole(folder: Path) -> Any:
    return run(folder, "whole", cache=folder / "cache", checkpoint=folder / "kept_whole")


def uneven(folder: Path) -> Any:
    """A step of 21 samples in 2 processes with 2 parts each; the average of weights and metric decide too."""
    return run(folder, "uneven", batch=21, accumulate=2, metric="agreement")


def resumed(folder: Path) -> Any:
    """Interrupted in step 14 of 27; a checkpoint at every step, by the first process alone."""
    real, count = torch.nn.utils.clip_grad_norm_, 0

    def stopping(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 14:
            raise StopError
        return real(*args, **kwargs)

    options = {"checkpoint": folder / "kept", "checkpoint_seconds": 0.0}
    loop.nn.utils.clip_grad_norm_ = stopping
    try:
        run(folder, "resumed", **options)
    except StopError:
        pass
    finally:
        loop.nn.utils.clip_grad_norm_ = real
    os.environ["MASTER_PORT"] = sys.argv[-1]
    return run(folder, "resumed", resume=True, **options)


def statistics(folder: Path) -> Any:
    """BatchNormalization over one's own half; a Parameter that nothing reads."""
    module = distill_samples.Small()
    module.unused = torch.nn.Parameter(torch.full((2,), float(os.environ["RANK"])))
    with torch.no_grad():
        module.first.weight.add_(float(os.environ["RANK"]))  # what each process drew for itself
    ranks = from_environment()
    settings = make_settings({**OPTIONS, "hint": [], "average": None})
    with joined(ranks, torch.device("cpu")):
        done = teach(folder / "teacher.onnx", module, folder / "data.npz", settings, ranks=ranks)
    held = {name: tensor.tolist() for name, tensor in state.live(module).items()}
    return {"held": held, "best": done.trained.best}


def failing(folder: Path) -> Any:
    """The second process meets bad data in its 6th step."""
    calls = 0

    def bad(feeds: Any, _generator: Any) -> Any:
        nonlocal calls
        calls += 1
        if os.environ["RANK"] == "1" and calls > 6:
            raise DataError("a sample is bad", where="sample 7", hint="look at it")
        return feeds

    return run(folder, "failing", augment=bad)


def stages(folder: Path) -> Any:
    """A recipe: pruned, distilled, distilled in int8; the first process alone prunes and publishes."""
    steps = with_torch(Recipe.parse(RECIPE).passes)
    options = {"data": folder / "data.npz", "checkpoint": folder / f"kept_stages{os.environ['RANK']}"}
    done = together(
        lambda: optimize_file(folder / "teacher.onnx", folder / "stages.onnx", steps, **options), steps, options["data"]
    )
    return {"published": False} if done is None else {"published": True, **done.to_json()}


def failing_stage(folder: Path) -> Any:
    """The second pass is refused by the first process; the other waits for it."""
    steps = with_torch(Recipe.parse(RECIPE.replace("epochs = 2", 'mask = "nothing"')).passes)
    data = folder / "data.npz"
    return together(lambda: optimize_file(folder / "teacher.onnx", folder / "no.onnx", steps, data=data), steps, data)


CASES = (whole, uneven, resumed, statistics, failing, stages, failing_stage)


def main() -> None:
    folder, ports = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for case, port in zip(CASES, ports[:-1], strict=True):
        os.environ["MASTER_PORT"] = port
        try:
            result = case(folder)
            document = result if isinstance(result, dict) else result.to_json()
        except OnnxcompError as error:
            document = error.to_json()
        except Exception:  # noqa: BLE001 - the test shows it
            document = {"bug": traceback.format_exc()}
        (folder / f"{case.__name__}.{os.environ['RANK']}.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
