"""Measure models so that the numbers can be believed, and say so where they cannot.

Percentiles carry exact intervals, comparisons run in interleaved rounds of fresh sessions beside an
A/A control, and the result names its environment and how far to trust it.
"""

from onnxcomp.bench.result import Benchmark
from onnxcomp.bench.scenario import SCENARIOS, bench
from onnxcomp.callable import make_callable

__all__ = ["SCENARIOS", "Benchmark", "bench"]

make_callable(__name__, bench)
