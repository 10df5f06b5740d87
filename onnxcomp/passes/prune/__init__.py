"""Pruning: fewer numbers that count."""

from onnxcomp.passes.prune.magnitude import PruneMagnitude

__all__ = ["PruneMagnitude"]
