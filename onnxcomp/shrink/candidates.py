"""What can be made of a model: a clean-up, a cut, a training and a kind of numbers, as one recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxcomp.passes import CATALOGUE
from onnxcomp.recipe import Recipe, make_pass

Step = tuple[str, Mapping[str, Any]]

#: ways to clean up, all exact
CLEANUPS: Mapping[str, tuple[Step, ...]] = {
    "as it is": (),
    "clean": (("simplify", {}),),
    "fused": (("simplify", {}), ("fuse", {})),
}

#: how numbers are stored and computed with
NUMBERS: Mapping[str, tuple[Step, ...]] = {
    "float": (),
    "dynamic int8": (("quantize-dynamic", {}),),
    "dynamic int8, smoothed": (("smooth", {}), ("correct-bias", {}), ("quantize-dynamic", {})),
    "static int8": (("quantize-static", {}),),
    "static int8, sums too": (
        ("quantize-static", {"op_types": [
            "Add", "Clip", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Relu"]}),
    ),
    "static int8, widest ranges": (("quantize-static", {"calibration": "minmax"}),),
    "static int8, ranges by error": (("quantize-static", {"calibration": "mse"}),),
    "8-bit blocks": (("quantize-weights", {"bits": 8}),),
    "4-bit blocks": (("quantize-weights", {"bits": 4}),),
    "float16": (("cast-float", {}),),
}  # fmt: skip

#: what can be cut away: a field of `Candidate` -> the pass that does it
CUTS: Mapping[str, str] = {"layers": "prune-blocks", "channels": "prune-structured", "matrices": "low-rank"}

#: samples that calibrate and prune; training sees all
CALIBRATION = 512

_ORDER = {cls.name: index for index, cls in enumerate(CATALOGUE)}


@dataclasses.dataclass(frozen=True, order=True)
class Candidate:
    """What is tried.

    Attributes:
        cleanup: of `CLEANUPS`.
        numbers: of `NUMBERS`.
        layers: how many go.
        channels: share of channels, neurons and heads that goes.
        matrices: share of the parameters of matrices that goes into thin factors.
        epochs: of training after the cut, by the input as teacher; 0: none. What is in int8 trains once more so.
        exclude: nodes that stay in float.
        rescue: whether those nodes are still to be found: the fewest with which the budget holds.
    """

    cleanup: str = "clean"
    numbers: str = "float"
    layers: int = 0
    channels: float = 0.0
    matrices: float = 0.0
    epochs: int = 0
    exclude: tuple[str, ...] = ()
    rescue: bool = False

    @property
    def name(self) -> str:
        """In words: 'channels -50 %, distilled, static int8'."""
        words = []
        if self.layers:
            words.append(f"{self.layers} layers fewer" if self.layers > 1 else "a layer fewer")
        if self.channels:
            words.append(f"channels -{self.channels:.0%}")
        if self.matrices:
            words.append(f"matrices -{self.matrices:.0%}")
        if self.epochs:
            words.append("distilled")
        if self.numbers != "float" or not words:
            words.append(self.numbers if self.numbers != "float" else self.cleanup)
        if self.rescue:
            words.append("some nodes in float")
        elif self.exclude:
            words.append(f"{len(self.exclude)} nodes in float")
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**dataclasses.asdict(self), "exclude": list(self.exclude)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Candidate:
        """What `to_json` gave."""
        return Candidate(**{**values, "exclude": tuple(values["exclude"])})

    def recipe(self) -> Recipe:
        """The passes, in the catalogue's order; those that find nothing to do are passed over."""
        steps = [*CLEANUPS[self.cleanup], *self._cut()]
        if self.epochs:
            steps.append(("distill", {"epochs": self.epochs, "lr": 2e-3}))
        made = [make_pass(name, options) for name, options in steps]
        made += [make_pass(name, self._excluding(name, options)) for name, options in NUMBERS[self.numbers]]
        made.sort(key=lambda step: _ORDER[step.name])
        if self.epochs and any(step.name == "quantize-static" for step in made):
            made.append(make_pass("distill", {"quantization_aware": True, "epochs": 1, "lr": 2e-4}))
        return Recipe(tuple(made), allow_no_effect=True, calibration=CALIBRATION)

    def _cut(self) -> list[Step]:
        asked: list[Step] = []
        if self.layers:
            asked.append(("prune-blocks", {"blocks": self.layers}))
        if self.channels:
            asked.append(("prune-structured", {"sparsity": self.channels}))
        if self.matrices:
            asked.append(("low-rank", {"keep": round(1 - self.matrices, 6)}))
        return asked

    def _excluding(self, name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**options, "exclude": list(self.exclude)} if self.exclude and name.startswith("quantize-") else options
