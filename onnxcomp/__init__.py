"""Make a model smaller and faster before it is served, and prove it on the machine where it will run."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Both must stand before onnxruntime is imported, in every process: since 1.29 its Linux wheels send
# telemetry by default, and the second lets a model set session options. A user may opt in to the first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)

__version__ = "0.1.0"

#: public name -> module that defines it; imported on first use, so that `import onnxcomp` is light
_PUBLIC: dict[str, str] = {
    "Batches": "onnxcomp.data",
    "Benchmark": "onnxcomp.bench",
    "Fidelity": "onnxcomp.evaluate",
    "Inspection": "onnxcomp.inspect",
    "Interval": "onnxcomp.evaluate",
    "OnnxcompError": "onnxcomp.errors",
    "Optimized": "onnxcomp.pipeline",
    "Plan": "onnxcomp.plan",
    "PruneMagnitude": "onnxcomp.passes",
    "QuantizeDynamic": "onnxcomp.passes",
    "QuantizeStatic": "onnxcomp.passes",
    "Recipe": "onnxcomp.recipe",
    "Record": "onnxcomp.record",
    "Score": "onnxcomp.evaluate",
    "SessionSettings": "onnxcomp.runtime",
    "Shrunk": "onnxcomp.shrink",
    "Simplify": "onnxcomp.passes",
    "UpgradeOpset": "onnxcomp.passes",
    "bench": "onnxcomp.bench",
    "compare": "onnxcomp.evaluate",
    "evaluate": "onnxcomp.evaluate",
    "inspect": "onnxcomp.inspect",
    "load": "onnxcomp.model",
    "open_session": "onnxcomp.runtime",
    "optimize": "onnxcomp.pipeline",
    "optimize_file": "onnxcomp.pipeline",
    "pack": "onnxcomp.pack",
    "plan": "onnxcomp.plan",
    "read_settings": "onnxcomp.settings",
    "save": "onnxcomp.pipeline",
    "shrink": "onnxcomp.shrink",
    "verify": "onnxcomp.pipeline",
}

__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604 - names from the table

if TYPE_CHECKING:
    from onnxcomp.bench import Benchmark, bench
    from onnxcomp.data import Batches
    from onnxcomp.errors import OnnxcompError
    from onnxcomp.evaluate import Fidelity, Interval, Score, compare, evaluate
    from onnxcomp.inspect import Inspection, inspect
    from onnxcomp.model import load
    from onnxcomp.pack import pack
    from onnxcomp.passes import PruneMagnitude, QuantizeDynamic, QuantizeStatic, Simplify, UpgradeOpset
    from onnxcomp.pipeline import Optimized, optimize, optimize_file, save, verify
    from onnxcomp.plan import Plan, plan
    from onnxcomp.recipe import Recipe
    from onnxcomp.record import Record
    from onnxcomp.runtime import SessionSettings, open_session
    from onnxcomp.settings import read_settings
    from onnxcomp.shrink import Shrunk, shrink


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'onnxcomp' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
