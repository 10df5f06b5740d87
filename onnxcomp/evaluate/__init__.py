"""Is the candidate as good? Fidelity to a reference's outputs, and metrics against labels.

Every figure carries a 95 % interval, and a drop is a paired interval over the same samples: two
models that err on the same samples differ by little, however wide each one's own interval is.
"""

from onnxcomp.callable import make_callable
from onnxcomp.evaluate.fidelity import Fidelity, OutputFidelity, compare, compare_sessions
from onnxcomp.evaluate.intervals import Interval, paired_drop, wilson
from onnxcomp.evaluate.score import Score, evaluate

__all__ = [
    "Fidelity",
    "Interval",
    "OutputFidelity",
    "Score",
    "compare",
    "compare_sessions",
    "evaluate",
    "paired_drop",
    "wilson",
]

make_callable(__name__, evaluate)
