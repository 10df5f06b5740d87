"""all-MiniLM-L6-v2, a pretrained sentence encoder; there is no training. See README.md, the model card."""

from onnxcomp_models.minilm.model import build
from onnxcomp_models.minilm.sentences import Data, data, embed, encode, same_intent

__all__ = ["Data", "build", "data", "embed", "encode", "same_intent"]
