#!/usr/bin/env python3
"""What does `prune-structured` gain? CPU time of the whole model over the cut one, beside an A/A control.

usage: .venv/bin/python scripts/pruning_gain.py [NAME ...] [--seconds 60]

The models are MobileNetV2 (30 % of the channels go), ResNet-18 (half) and a six-layer encoder as wide as
MiniLM-L6 (half of the neurons and heads), with random weights, exported by torch at opset 20, images at
batch 1, texts with open axes; names choose among them. One thread. Needs the extras 'cpu' and 'torch'.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onnxcomp.bench import bench
from onnxcomp.passes import PruneStructured
from onnxcomp.pipeline import optimize_file


def main() -> None:
    """Export, prune, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all if none is given")
    parser.add_argument("--seconds", type=float, default=60.0, help="time budget of one comparison")
    options = parser.parse_args()

    table = Table("model", "cut", "size", "MACs", "equal within", "whole / cut CPU time", "verdict", "A/A", "trust")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or MODELS:
            case = MODELS[name]
            source, output = exported(name, Path(folder)), Path(folder) / f"{name}.cut.onnx"
            record = optimize_file(source, output, [PruneStructured(sparsity=case.sparsity)], force=True)
            effect = record.passes[0].effect
            done = bench([source, output], batch=1, sizes=case.sizes, seconds=options.seconds, seed=0)
            table.add_row(
                name,
                f"{case.sparsity:.0%}",
                f"{record.size_ratio:.3f}",
                f"{effect['macs_ratio']:.3f}",
                f"{effect['equivalence_error']:.1e}",
                *row(done.to_json(samples=False)),
            )
    Console(width=120).print(table)


def exported(name: str, folder: Path) -> Path:
    """The model's file, written by a process of its own."""
    path = folder / f"{name}.onnx"
    process = multiprocessing.get_context("spawn").Process(target=export, args=(name, path))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the export of {name} failed")
    return path


def export(name: str, path: Path) -> None:
    """Write one of `MODELS`."""
    import torch

    module, arguments, axes = MODELS[name].build()
    randomise(module)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), arguments, dynamo=True, opset_version=20, dynamic_shapes=(axes,), input_names=["x"]
        )
    program.save(path)


def randomise(module: Any) -> None:
    """Statistics and biases too: layers that begin alike would be stored once, and equal zeros hide mistakes."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.02)


def row(done: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one comparison."""
    one = done["comparison"][0]
    speedup, control = one["speedup"], one["aa"]
    return (
        f"{speedup['value']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        one["verdict"],
        f"{control['ratio']:.3f} {'ok' if control['ok'] else 'FAILED'}",
        done["trust"]["grade"],
    )


def mobilenet_v2(width: int = 32, size: int = 224) -> tuple[Any, ...]:
    """MobileNetV2: inverted residuals with depthwise convolutions; `width` is that of the stem."""
    import torch
    from torch import nn

    def layer(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs)]

    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, times: int) -> None:
            super().__init__()
            inner = inputs * times
            wider = [*layer(inputs, inner), nn.ReLU6()] if times > 1 else []
            deep = [*layer(inner, inner, 3, stride, inner), nn.ReLU6()]
            self.body = nn.Sequential(*wider, *deep, *layer(inner, outputs))
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.residual else self.body(x)

    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers, inputs = [*layer(3, width, 3, 2), nn.ReLU6()], width
    for times, channels, count, stride in stages:
        outputs = channels * width // 32
        for i in range(count):
            layers.append(Inverted(inputs, outputs, stride if i == 0 else 1, times))
            inputs = outputs
    last = 1280 * width // 32
    head = [*layer(inputs, last), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 1000)]
    return nn.Sequential(*layers, *head), (torch.randn(1, 3, size, size),), {}


def resnet_18(width: int = 64, size: int = 224) -> tuple[Any, ...]:
    """ResNet-18; `width` is that of the stem."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.short = nn.Identity() if inputs == outputs else short

        def forward(self, x: Any) -> Any:
            return torch.relu(self.body(x) + self.short(x))

    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for i in range(4):
        outputs = width << i
        inputs = outputs if i == 0 else outputs // 2
        layers += [Block(inputs, outputs, 1 if i == 0 else 2), Block(outputs, outputs, 1)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 8, 1000)]
    return nn.Sequential(*layers), (torch.randn(1, 3, size, size),), {}


def encoder(width: int = 384, layers: int = 6) -> tuple[Any, ...]:
    """torch's own encoder; `width` 384 is as wide as MiniLM-L6."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(width, 12, 4 * width, activation="gelu", batch_first=True)
    module = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return module, (torch.randn(2, 12, width),), {0: "batch", 1: "seq"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, how much of it goes, and the sizes of its open axes."""

    build: Callable[..., tuple[Any, ...]]
    sparsity: float
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


MODELS = {
    "mobilenet-v2": Case(mobilenet_v2, 0.3),
    "resnet-18": Case(resnet_18, 0.5),
    "encoder": Case(encoder, 0.5, {"seq": 128}),
}


if __name__ == "__main__":
    main()
