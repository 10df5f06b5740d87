"""Load, check, fingerprint and publish models: the only package that touches protobuf and external data.

In memory a model is always an `onnx_ir.Model`. `load` refuses what is broken or unsafe with a
typed error, before any runtime sees the file; `publish` writes a model whole or not at all.
"""

from onnxcomp.model.fingerprint import ModelFile, files, fingerprint, sha256_of, total_bytes
from onnxcomp.model.folder import refuse_folder, stage_folder
from onnxcomp.model.load import is_normal, load, normalize, read_proto
from onnxcomp.model.publish import (
    EXTERNAL_ABOVE,
    Staged,
    publish,
    record_path,
    refuse_target,
    stage,
    write_file,
    write_to,
)
from onnxcomp.model.scan import Limits
from onnxcomp.model.settle import packed_bytes, settle
from onnxcomp.model.signature import InputSpec, Signature, dtype_name, signature

__all__ = [
    "EXTERNAL_ABOVE",
    "InputSpec",
    "Limits",
    "ModelFile",
    "Signature",
    "Staged",
    "dtype_name",
    "files",
    "fingerprint",
    "is_normal",
    "load",
    "normalize",
    "packed_bytes",
    "publish",
    "read_proto",
    "record_path",
    "refuse_folder",
    "refuse_target",
    "settle",
    "sha256_of",
    "signature",
    "stage",
    "stage_folder",
    "total_bytes",
    "write_file",
    "write_to",
]
