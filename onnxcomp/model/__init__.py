"""Load, check, fingerprint and publish models: the only package that touches protobuf and external data.

In memory a model is always an `onnx_ir.Model`. `load` refuses what is broken or unsafe with a
typed error, before any runtime sees the file; `publish` writes a model whole or not at all.
"""

from onnxcomp.model.fingerprint import ModelFile, fingerprint
from onnxcomp.model.load import is_normal, load, normalize, read_proto
from onnxcomp.model.publish import Staged, publish, stage, write_to
from onnxcomp.model.scan import Limits
from onnxcomp.model.signature import InputSpec, Signature, signature

__all__ = [
    "InputSpec",
    "Limits",
    "ModelFile",
    "Signature",
    "Staged",
    "fingerprint",
    "is_normal",
    "load",
    "normalize",
    "publish",
    "read_proto",
    "signature",
    "stage",
    "write_to",
]
