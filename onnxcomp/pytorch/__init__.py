"""The only package that imports torch: export with a gate, ONNX graphs as torch modules.

Everything else works without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxcomp.pytorch.export import Exported, export

if TYPE_CHECKING:
    from onnxcomp.pytorch.graph_module import GraphModule

__all__ = ["Exported", "GraphModule", "export"]


def __getattr__(name: str) -> Any:
    if name == "GraphModule":  # on first use: an export needs none of it
        from onnxcomp.pytorch.graph_module import GraphModule

        return GraphModule
    raise AttributeError(f"module 'onnxcomp.pytorch' has no attribute '{name}'")
