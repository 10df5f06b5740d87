"""A gate for continuous integration: whether a run is slower than a stored one, beyond the noise."""

from onnxcomp.bench.baseline.gate import SESSIONS, TOLERANCE, gate
from onnxcomp.bench.baseline.result import Gate, Gated

__all__ = ["SESSIONS", "TOLERANCE", "Gate", "Gated", "gate"]
