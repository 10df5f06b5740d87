"""The only package that imports torch: export with a gate, ONNX graphs as torch modules.

Everything else works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxcomp.pytorch.export import Exported, export

if TYPE_CHECKING:
    from onnxcomp.pytorch.distillation.distill import distill
    from onnxcomp.pytorch.distillation.result import Distilled
    from onnxcomp.pytorch.graph_module import GraphModule
    from onnxcomp.pytorch.recipe import with_torch

__all__ = ["Distilled", "Exported", "GraphModule", "distill", "export", "with_torch"]

#: name -> module that defines it; imported on first use: an export needs none of it
_LAZY = {
    "Distilled": "onnxcomp.pytorch.distillation.result",
    "GraphModule": "onnxcomp.pytorch.graph_module",
    "distill": "onnxcomp.pytorch.distillation.distill",
    "with_torch": "onnxcomp.pytorch.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'onnxcomp.pytorch' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
