"""The best model within a budget: candidates, a search that can be resumed, and one look at samples that chose nothing.

`onnxcomp.shrink(...)` is the function.
"""

from onnxcomp.callable import make_callable
from onnxcomp.shrink.make import shrink
from onnxcomp.shrink.result import Shrunk
from onnxcomp.shrink.wanted import Wanted

__all__ = ["Shrunk", "Wanted", "shrink"]

make_callable(__name__, shrink)
