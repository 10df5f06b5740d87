"""Worker processes as a server starts them: each opens the model itself, and what they share is measured.

Memory is read from outside while all of them are alive and idle, throughput while all run at once.
"""

from onnxcomp.replicas.open_loop import Arrivals, Line, Served, serve
from onnxcomp.replicas.result import POINTS, Caller, Replica, Replicas
from onnxcomp.replicas.start import KINDS, run, sync

__all__ = [
    "KINDS",
    "POINTS",
    "Arrivals",
    "Caller",
    "Line",
    "Replica",
    "Replicas",
    "Served",
    "run",
    "serve",
    "sync",
]
