"""Streaming statistics of activations: bounded memory, however many samples run."""

from onnxcomp.activations.histogram import Histogram
from onnxcomp.activations.observe import observe
from onnxcomp.activations.statistics import Channels, Range, Rows, Statistic

__all__ = ["Channels", "Histogram", "Range", "Rows", "Statistic", "observe"]
