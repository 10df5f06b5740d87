"""Pruning: fewer numbers that count."""

from onnxcomp.passes.prune.magnitude import PruneMagnitude
from onnxcomp.passes.prune.structured import PruneStructured

__all__ = ["PruneMagnitude", "PruneStructured"]
