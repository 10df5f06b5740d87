"""The two models of the comparison: files, data, shapes, and the settings at which float32 is tried."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxcomp.runtime import SessionSettings
from peers.environments import CACHE, ROOT
from peers.quality import Arrays
from peers.speed import Feeds

SENTENCES = 300
#: sets of inputs that take turns while the clock runs
TURNS = 16
#: tokens of BERT's vocabulary that open and close a sentence
_OPEN, _CLOSE = 101, 102


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and what it is judged with.

    Attributes:
        name: 'minilm' or 'fashion'.
        model: float32, as exported.
        calibration: an .npz of training data.
        test: inputs that nothing was fitted to, (samples, ...).
        labels: (samples,) int64.
        sentences: ids and masks of further text; None for images.
        sentences_source: where they come from.
        shapes: inputs for the clock, by the name of the shape.
        settings: of float32's sessions beside the default, by name.
    """

    name: str
    model: Path
    calibration: Path
    test: Arrays
    labels: np.ndarray
    sentences: Arrays | None
    sentences_source: str | None
    shapes: Mapping[str, Feeds]
    settings: Mapping[str, SessionSettings]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the models and data are; what is missing at its default place is made."""
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="fashion-mnist and text")
    for name in CASES:
        parser.add_argument(
            f"--{name}",
            type=Path,
            metavar="MODEL",
            help=f"default: runs/peers/models/{name}/exported.onnx, made where missing",
        )
        parser.add_argument(
            f"--{name}-data", type=Path, metavar="FOLDER", help="calibration.npz and test.npz [beside the model]"
        )


def load(name: str, options: argparse.Namespace) -> Case:
    """One case; a model of our own is trained and exported where there is none yet."""
    given: Path | None = getattr(options, name)
    model = given or CACHE / "models" / name / "exported.onnx"
    if given is None and not model.exists():
        _export(name, model.parent, options.data)
    folder: Path = getattr(options, f"{name}_data") or model.parent
    with np.load(folder / "test.npz") as file:
        test = dict(file)
    labels = test.pop("labels")
    return CASES[name](model, folder / "calibration.npz", test, labels, options.data)


def _minilm(model: Path, calibration: Path, test: Arrays, labels: np.ndarray, data: Path) -> Case:
    with np.load(calibration) as file:
        tokens = file["input_ids"][file["attention_mask"] > 0]
    words = tokens[~np.isin(tokens, (_OPEN, _CLOSE))]
    sentences, source = _sentences(test, data)
    return Case(
        "minilm",
        model,
        calibration,
        test,
        labels,
        sentences,
        source,
        {f"({b},{n})": _text(words, b, n) for b, n in ((1, 32), (1, 128), (8, 32), (8, 128))},
        {"no SkipLayerNormFusion": SessionSettings(disabled_optimizers=("SkipLayerNormFusion",))},
    )


def _fashion(model: Path, calibration: Path, test: Arrays, labels: np.ndarray, _data: Path) -> Case:
    return Case(
        "fashion",
        model,
        calibration,
        test,
        labels,
        None,
        None,
        {f"batch {b}": _cut(test, b) for b in (1, 8)},
        {"extended optimization": SessionSettings(optimization="extended")},
    )


CASES: Mapping[str, Callable[[Path, Path, Arrays, np.ndarray, Path], Case]] = {"minilm": _minilm, "fashion": _fashion}


def _sentences(test: Arrays, data: Path) -> tuple[Arrays, str]:
    """300 sentences of voice commands, calibrated for by nobody; of the test set where there are none."""
    path, generator = data / "text" / "snips_valid.tsv", np.random.default_rng(0)
    if not path.is_file():
        rows = np.sort(generator.choice(len(test["input_ids"]), SENTENCES, replace=False))
        return {name: array[rows] for name, array in test.items()}, "test.npz"
    from onnxcomp_models.minilm.sentences import encode

    with path.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    rows = np.sort(generator.choice(len(texts), SENTENCES, replace=False))
    ids, mask = encode([texts[i] for i in rows])
    return {"input_ids": ids, "attention_mask": mask}, path.name


def _text(words: np.ndarray, batch: int, length: int) -> Feeds:
    """Sentences of exactly `length` tokens, made of real words: what a run costs hangs on the padding otherwise."""
    rows = np.resize(words, (TURNS * batch, length - 2))
    ids = np.pad(rows, ((0, 0), (1, 0)), constant_values=_OPEN)
    ids = np.pad(ids, ((0, 0), (0, 1)), constant_values=_CLOSE)
    return _cut({"input_ids": ids, "attention_mask": np.ones_like(ids)}, batch)


def _cut(arrays: Arrays, batch: int) -> Feeds:
    """The first batches of these arrays."""
    return [{name: array[i * batch : (i + 1) * batch] for name, array in arrays.items()} for i in range(TURNS)]


def _export(name: str, folder: Path, data: Path) -> None:
    """Make weights, data and exported model with the commands of the model's card."""
    python: list[str] = [sys.executable, "-m"]
    source = {"minilm": data / "text", "fashion": data / "fashion-mnist"}[name]
    export = [*python, "onnxcomp", "export", f"onnxcomp_models.{name}:build", *_INPUTS[name]]
    if name == "fashion":  # the weights of minilm come with its package
        export += ["--weights", str(folder / "weights.safetensors")]
    if not (folder / "test.npz").exists():
        subprocess.run([*python, f"onnxcomp_models.{name}", "--data", source, "-o", folder], check=True, stdout=2)
    subprocess.run([*export, "-o", folder / "exported.onnx"], check=True, stdout=2)


_TOKENS = ("input_ids", "attention_mask")
_INPUTS: Mapping[str, Sequence[str]] = {
    "minilm": (
        *(part for token in _TOKENS for part in ("--inputs", f"{token}:int64[2,16]")),
        *(part for token in _TOKENS for part in ("--dynamic", f"{token}:0=batch", "--dynamic", f"{token}:1=seq")),
        "--output-names",
        "embedding",
    ),
    "fashion": ("--inputs", "image:float32[2,1,28,28]", "--dynamic", "image:0=batch"),
}
