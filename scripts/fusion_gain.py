#!/usr/bin/env python3
"""What does `fuse` gain? CPU time of unfused over fused, in rounds of fresh sessions beside an A/A control.

usage: .venv/bin/python scripts/fusion_gain.py [NAME ...] [--model M.onnx ...] [--seconds 60] [--shape BATCHxSEQ ...]

The models are random ones of transformers and torch, exported at opset 20 with dynamic axes; names
choose among them. Both files are simplified. Needs the extras 'cpu' and 'hf'.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onnxcomp import model as models
from onnxcomp.bench import bench
from onnxcomp.passes import Fuse, Simplify, UpgradeOpset
from onnxcomp.pipeline import optimize_file
from onnxcomp.runtime import SessionSettings

WIDTH, LAYERS, HEADS = 256, 4, 4


def main() -> None:
    """Export, fuse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all if none is given")
    parser.add_argument("--model", type=Path, action="append", default=[], help="an ONNX file beside them")
    parser.add_argument("--seconds", type=float, default=60.0, help="time budget of one comparison")
    parser.add_argument("--shape", action="append", metavar="BATCHxSEQ", help="default: 1x64 and 8x128")
    parser.add_argument("--disable", action="append", default=[], help="an optimizer of ORT's to switch off in both")
    options = parser.parse_args()
    names = options.names or ([] if options.model else list(MODELS))
    shapes = [tuple(int(n) for n in shape.split("x")) for shape in options.shape or ["1x64", "8x128"]]
    settings = SessionSettings(disabled_optimizers=tuple(options.disable))

    table = Table("model", "batch x seq", "unfused / fused CPU time", "verdict", "A/A", "trust")
    with tempfile.TemporaryDirectory() as folder:
        for name in [*names, *options.model]:
            source = name if isinstance(name, Path) else exported(name, Path(folder))
            reference, candidate = prepared(source, Path(folder))
            for batch, length in shapes:
                names = {d for spec in inputs(reference) for d in (spec.shape or ())[1:] if isinstance(d, str)}
                done = bench(
                    [reference, candidate],
                    batch=batch,
                    sizes=dict.fromkeys(names, length),
                    seconds=options.seconds,
                    settings=settings,
                    seed=0,
                ).to_json(samples=False)
                table.add_row(Path(name).stem, f"{batch} x {length}", *row(done))
    Console(width=110).print(table)


def inputs(path: Path) -> tuple[models.InputSpec, ...]:
    """The inputs of a file."""
    return models.signature(models.load(path)).inputs


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

    module, arguments, axes = MODELS[name]()
    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():  # fresh biases are 0, and would be simplified away
            parameter.add_(torch.randn_like(parameter) * 0.02)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            opset_version=20,
            dynamic_shapes=tuple(axes.values()),
            input_names=list(axes),
        )
    program.save(path)


def prepared(source: Path, folder: Path) -> tuple[Path, Path]:
    """(simplified, simplified and fused)."""
    made = []
    for label, fuse in (("unfused", []), ("fused", [Fuse()])):
        output = folder / f"{source.stem}.{label}.onnx"
        steps = [UpgradeOpset(opset=17), Simplify(), *fuse]
        optimize_file(source, output, steps, allow_no_effect=True, force=True)
        made.append(output)
    return made[0], made[1]


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


def _text(model: Any, config: Any) -> tuple[Any, ...]:
    import torch

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model(config)

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.inner(input_ids=ids, attention_mask=mask, use_cache=False)[0]

    axes = {0: "batch", 1: "seq"}
    ids = torch.randint(0, config.vocab_size, (2, 12))
    return Hidden(), (ids, torch.ones_like(ids)), {"ids": axes, "mask": axes}


def bert() -> tuple[Any, ...]:
    """BERT."""
    import transformers as hf

    config = hf.BertConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
    )
    return _text(hf.BertModel, config)


def distilbert() -> tuple[Any, ...]:
    """DistilBERT."""
    import transformers as hf

    config = hf.DistilBertConfig(vocab_size=1000, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=4 * WIDTH)
    return _text(hf.DistilBertModel, config)


def gpt2() -> tuple[Any, ...]:
    """GPT-2."""
    import transformers as hf

    config = hf.GPT2Config(vocab_size=1000, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=0)
    return _text(hf.GPT2LMHeadModel, config)


def vit() -> tuple[Any, ...]:
    """ViT of 64 patches; its sequence is part of the model."""
    import torch
    import transformers as hf

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = hf.ViTModel(
                hf.ViTConfig(
                    image_size=64,
                    patch_size=8,
                    hidden_size=WIDTH,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=HEADS,
                    intermediate_size=4 * WIDTH,
                )
            )

        def forward(self, image: Any) -> Any:
            return self.inner(pixel_values=image)[0]

    return Pooled(), (torch.randn(2, 3, 64, 64),), {"image": {0: "batch"}}


def encoder() -> tuple[Any, ...]:
    """torch's own encoder, as wide and deep as MiniLM-L6."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)
    module = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return module, (torch.randn(2, 12, 384),), {"src": {0: "batch", 1: "seq"}}


MODELS = {"bert": bert, "distilbert": distilbert, "gpt2": gpt2, "vit": vit, "encoder": encoder}


if __name__ == "__main__":
    main()
