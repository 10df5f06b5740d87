"""Fashion-MNIST, 28 x 28 pixels: a residual net, a wide one, and a small student. See README.md, the model card."""

from onnxcomp_models.fashion.files import Data, data, download
from onnxcomp_models.fashion.model import build, student, wide
from onnxcomp_models.fashion.train import train
from onnxcomp_models.fitting import accuracy

__all__ = ["Data", "accuracy", "build", "data", "download", "student", "train", "wide"]
