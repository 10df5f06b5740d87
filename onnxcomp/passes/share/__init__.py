"""Parameter sharing: equal tensors once, codebooks, low rank."""

from onnxcomp.passes.share.cluster import ClusterWeights
from onnxcomp.passes.share.low_rank import LowRank
from onnxcomp.passes.share.tie import TieInitializers

__all__ = ["ClusterWeights", "LowRank", "TieInitializers"]
