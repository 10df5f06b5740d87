"""Which nodes quantization hurts, and the fewest to leave in float.

`rank` measures the damage that each node does alone, in one pass over a few samples. `quantize_within`
quantizes all that an accuracy budget allows and explains what it left in float.
"""

from onnxcomp.sensitivity.budget import parse_drop
from onnxcomp.sensitivity.judge import Verdict
from onnxcomp.sensitivity.rank import Ranking, Sensitivity, rank
from onnxcomp.sensitivity.search import Found, Tried, search
from onnxcomp.sensitivity.within import QuantizeWithin, quantize_within

__all__ = [
    "Found",
    "QuantizeWithin",
    "Ranking",
    "Sensitivity",
    "Tried",
    "Verdict",
    "parse_drop",
    "quantize_within",
    "rank",
    "search",
]
