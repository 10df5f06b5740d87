"""Real inputs for calibration, judgement and benchmarks: arrays by input name, in batches, with labels.

Quality is never judged on random inputs: `Batches.random` marks seeded noise, and calibration and
accuracy refuse it.
"""

from onnxcomp.data.batches import Batch, Batches
from onnxcomp.data.noise import Whole
from onnxcomp.data.sources import Source, open_source
from onnxcomp.data.unpadded import unpadded

__all__ = ["Batch", "Batches", "Source", "Whole", "open_source", "unpadded"]
