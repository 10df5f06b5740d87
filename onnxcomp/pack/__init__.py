"""A serving pack: a model whose weights worker processes of one host share.

    onnxcomp.pack("model.onnx", "packs/model")           # proven, published whole
    onnxcomp.pack.open("packs/model")                    # in each worker, by any process model
    onnxruntime.InferenceSession("packs/model/model.onnx")   # the same, without onnxcomp

A pack belongs to one version of ONNX Runtime on one kind of CPU. The model it was made from stays the
source; make the pack on the machine that serves.
"""

from onnxcomp.callable import make_callable
from onnxcomp.pack.make import LAYOUTS, Pack, pack
from onnxcomp.pack.manifest import is_pack
from onnxcomp.pack.opening import PackWarning, Verified, verify
from onnxcomp.pack.opening import open_pack as open  # noqa: A004 - reads onnxcomp.pack.open(...)

__all__ = ["LAYOUTS", "Pack", "PackWarning", "Verified", "is_pack", "open", "pack", "verify"]

make_callable(__name__, pack)
