"""Handwritten digits, 8 x 8 pixels: the embedded default model. See README.md, the model card."""

from onnxcomp_models.digits.model import build
from onnxcomp_models.digits.train import Data, accuracy, data, train

__all__ = ["Data", "accuracy", "build", "data", "train"]
