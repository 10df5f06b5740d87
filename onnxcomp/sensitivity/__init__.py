"""Which nodes quantization hurts, and the fewest to leave in float.

`rank` measures the damage that each node does alone, in one pass over a few samples. `quantize_within`
quantizes all that an accuracy budget allows and explains what it left in float. `prune_to_latency` cuts
no more than a latency target needs.
"""

from onnxcomp.sensitivity.budget import parse_drop
from onnxcomp.sensitivity.judge import Verdict
from onnxcomp.sensitivity.latency import PruneToLatency, prune_to_latency
from onnxcomp.sensitivity.rank import Ranking, Sensitivity, rank
from onnxcomp.sensitivity.search import Found, Tried, search
from onnxcomp.sensitivity.within import QuantizeWithin, quantize_within

__all__ = [
    "Found",
    "PruneToLatency",
    "QuantizeWithin",
    "Ranking",
    "Sensitivity",
    "Tried",
    "Verdict",
    "parse_drop",
    "prune_to_latency",
    "quantize_within",
    "rank",
    "search",
]
