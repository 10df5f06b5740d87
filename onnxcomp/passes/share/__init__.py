"""Parameter sharing: equal tensors once, codebooks, low rank."""

from onnxcomp.passes.share.low_rank import LowRank
from onnxcomp.passes.share.tie import TieInitializers

__all__ = ["LowRank", "TieInitializers"]
