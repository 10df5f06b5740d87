"""Snips voice commands: a small intent transformer. See README.md, the model card."""

from onnxcomp_models.fitting import accuracy
from onnxcomp_models.snips.model import INTENTS, build, student
from onnxcomp_models.snips.train import hide_words, train
from onnxcomp_models.snips.words import Data, data, encode

__all__ = ["INTENTS", "Data", "accuracy", "build", "data", "encode", "hide_words", "student", "train"]
