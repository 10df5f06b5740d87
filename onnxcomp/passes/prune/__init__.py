"""Pruning: fewer numbers that count."""

from onnxcomp.passes.prune.blocks import PruneBlocks
from onnxcomp.passes.prune.magnitude import PruneMagnitude
from onnxcomp.passes.prune.structured import PruneStructured

__all__ = ["PruneBlocks", "PruneMagnitude", "PruneStructured"]
