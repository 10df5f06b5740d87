#!/usr/bin/env python3
"""What is a teacher worth? The Fashion net, cut to a quarter, trained on with and without it, seed after seed.

usage: .venv/bin/python scripts/distillation_gain.py runs/fashion DATA -o runs/gain [NAME ...] [--seeds 0 1 2 3 4]

runs/fashion holds fashion.onnx, raw.onnx and calibration.npz as the card of the model makes them
(models/fashion/README.md); DATA holds the files of Fashion-MNIST. NAME is one or more of

  student         more than half of the teacher's channels are cut; what is left learns from the teacher's
                  answers alone: images without labels
  control         the same cut net, the same order of images, mirroring and shifts, the same steps, on labels
                  alone: no teacher is asked
  int8            what `student` gave, trained on in int8

Every run that ends goes into results.jsonl in runs/gain; what is interrupted loses a minute. The same command
again goes on from there, and prints what there is. 3,000 training images of each seed choose the epoch; test
images are looked at when a run has ended. One thread; needs the extras 'cpu' and 'torch'.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxcomp_models import fashion
from onnxcomp_models.fashion.train import augmented
from rich.console import Console
from rich.table import Table
from scipy import stats

from onnxcomp.passes import PruneStructured
from onnxcomp.pipeline import optimize_file
from onnxcomp.pytorch import distill
from onnxcomp.runtime import open_session

#: 71,426 of 310,603 floats stay, BatchNormalization's statistics among them: less than a quarter
QUARTER = PruneStructured(sparsity=0.53, align=4)

CUT = {"epochs": 4, "batch": 64, "lr": 4e-3, "validation": 0.05}
INT8 = {"epochs": 1, "batch": 64, "lr": 2e-4, "validation": 0.05}
LABELS = {"labels_weight": 1.0}

#: what each run begins with, and its settings
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "student": ("cut", CUT),
    "control": ("cut", {**CUT, **LABELS}),
    "int8": ("student", INT8),
}

#: (better, than): compared seed by seed
PAIRS = (("student", "control"), ("int8", "student"))


def main() -> None:
    """Train what is missing, print what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher", type=Path, help="folder of fashion.onnx, raw.onnx and calibration.npz")
    parser.add_argument("data", type=Path, help="folder of Fashion-MNIST")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; all if none is given")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of results.jsonl and the students")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], metavar="N", help="none: train nothing"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(RUNS):
        parser.error(f"no such run: {', '.join(sorted(unknown))}")

    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.teacher, options.data, options.output)
    for seed in options.seeds:
        for name in options.names or RUNS:
            if (name, seed) not in bench.done:
                one = bench.run(name, seed)
                print(f"{name}, seed {seed}: {len(one.wrong)} wrong, epoch {one.epoch}, {one.seconds} s", flush=True)
    Console(width=120).print(*bench.tables())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run. `wrong`: rows of the test images; `seconds`: of the processor, with the teacher; None: interrupted."""

    name: str
    seed: int
    settings: Mapping[str, float]
    parameters: int
    epoch: int
    seconds: float | None
    wrong: tuple[int, ...]


class Bench:
    """The teacher, the images, and the runs that have ended."""

    def __init__(self, folder: Path, data: Path, output: Path) -> None:
        self.folder, self.output, self.results = folder, output, output / "results.jsonl"
        self.images = fashion.data(data)
        entries = map(json.loads, self.results.read_text().splitlines() if self.results.exists() else [])
        self.done = {(e["name"], e["seed"]): Outcome(**{**e, "wrong": tuple(e["wrong"])}) for e in entries}
        for one in self.done.values():
            if one.settings != RUNS[one.name][1]:
                raise SystemExit(f"{self.results}: {one.name} of other settings; name another folder")

    def run(self, name: str, seed: int) -> Outcome:
        """Train, judge and keep one."""
        began, settings = RUNS[name]
        data = {"image": self.images.train_images}
        if settings.get("labels_weight"):
            data["labels"] = self.images.train_labels
        path, kept = self.output / f"{name}-{seed}.onnx", self.output / f"{name}-{seed}"
        source = self.start(began, seed)
        start = time.process_time()
        done = distill(
            self.folder / "fashion.onnx", source, data, path, augment=mirrored_and_shifted, seed=seed, force=True,
            quantization_aware=name == "int8", checkpoint=kept, resume=True, **settings,
        )  # fmt: skip
        seconds = round(time.process_time() - start, 1) if done.trained.resumed is None else None
        outcome = Outcome(name, seed, settings, done.elements[1], done.trained.best, seconds, self.wrong(path))
        self.done[name, seed] = outcome
        with self.results.open("a") as file:  # several of these commands may run at a time
            file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        shutil.rmtree(kept)
        return outcome

    def start(self, began: str, seed: int) -> Path:
        """What a run trains."""
        if began == "student":
            return self.output / f"student-{seed}.onnx"
        path = self.output / "cut.onnx"
        if not path.exists():
            samples = self.folder / "calibration.npz"
            optimize_file(self.folder / "raw.onnx", path, [QUARTER], data=samples)
        return path

    def wrong(self, path: Path) -> tuple[int, ...]:
        """Test images with another class than their label's, by ONNX Runtime."""
        session, images = open_session(path), self.images.test_images
        output = session.signature.outputs[0].name
        parts = [session.run({"image": part})[output].argmax(1) for part in np.split(images, 100)]
        return tuple(np.flatnonzero(np.concatenate(parts) != self.images.test_labels).tolist())

    def tables(self) -> Iterator[Table]:
        """Each run's accuracy, and the pairs."""
        teacher = self.right(self.wrong(self.folder / "fashion.onnx"))
        table = Table("run", "seeds", "parameters", "accuracy, %", "spread", "below the teacher", "CPU s a run")
        table.add_row("teacher", "", "", f"{100 * teacher.mean():.2f}", "", "", "")
        for name in RUNS:
            if runs := [one for (other, _), one in sorted(self.done.items()) if other == name]:
                right = np.array([self.right(one.wrong) for one in runs])
                spread = f"{100 * right.mean(1).std(ddof=1):.2f}" if len(runs) > 1 else ""
                timed = [one.seconds for one in runs if one.seconds is not None]
                seconds = f"{np.mean(timed):.0f}" if timed else ""
                drop = over_images(teacher - right.mean(0))
                counts = (str(len(runs)), f"{runs[0].parameters:,}")
                table.add_row(name, *counts, f"{100 * right.mean():.2f}", spread, drop, seconds)
        yield table
        pairs = Table("", "points, seed by seed", "mean", "95 % over seeds", "mean, 95 % over images")
        for one, two in PAIRS:
            if seeds := sorted({s for n, s in self.done if n == one} & {s for n, s in self.done if n == two}):
                gain = np.array([np.subtract(*(self.right(self.done[n, s].wrong) for n in (one, two))) for s in seeds])
                each, images = 100 * gain.mean(1), over_images(gain.mean(0))
                texts = ", ".join(f"{value:+.2f}" for value in each)
                pairs.add_row(f"{one} - {two}", texts, f"{each.mean():+.2f}", over_seeds(each), images)
        yield pairs

    def right(self, wrong: tuple[int, ...]) -> np.ndarray:
        """1 or 0 for each test image."""
        right = np.ones(len(self.images.test_labels))
        right[list(wrong)] = 0
        return right


def mirrored_and_shifted(feeds: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """As the teacher's training does it, in numbers of the step's own."""
    torch.manual_seed(int(generator.integers(1 << 31)))
    return {"image": augmented(torch.from_numpy(feeds["image"])).numpy()}


def over_seeds(each: np.ndarray) -> str:
    """Student's t; '' for a single seed."""
    if len(each) < 2:
        return ""
    half = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each)
    return f"[{each.mean() - half:+.2f}, {each.mean() + half:+.2f}]"


def over_images(each: np.ndarray) -> str:
    """Mean in points, and its interval as if other test images had been drawn."""
    mean, half = 100 * each.mean(), 196 * stats.sem(each)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


if __name__ == "__main__":
    main()
