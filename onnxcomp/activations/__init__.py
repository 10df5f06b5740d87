"""Streaming statistics of activations: bounded memory, however many samples run."""

from onnxcomp.activations.histogram import Histogram
from onnxcomp.activations.moments import Moments, moments_of, observe_moments
from onnxcomp.activations.observe import observe
from onnxcomp.activations.statistics import Channels, Range, Rows, Statistic

__all__ = [
    "Channels",
    "Histogram",
    "Moments",
    "Range",
    "Rows",
    "Statistic",
    "moments_of",
    "observe",
    "observe_moments",
]
