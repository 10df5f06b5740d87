"""CUDA's libraries: where pip installed them, which of them are missing, and which CUDA a package was built for."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path

#: ORT's library of each provider that comes with its own
_LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}

_SHARED = "libonnxruntime_providers_shared.so"


def preload(providers: Sequence[str]) -> None:
    """Load the libraries that these providers of ORT need, once in a process; nothing for the others.

    ORT finds only those of the system by itself. What is missing is told by the session that cannot be opened.
    """
    if _LIBRARIES.keys() & set(providers):
        _preload()


@functools.cache
def _preload() -> None:
    import onnxruntime as ort

    load = getattr(ort, "preload_dlls", None)  # since 1.21
    if load is not None:
        # it prints what it does not find, also where the system's own libraries will do
        with contextlib.redirect_stdout(io.StringIO()):
            load()


def missing(provider: str, folder: Path | None = None) -> str | None:
    """What the loader says of the library of a provider of ORT; None where it loads, or is none of its own.

    Args:
        provider: ORT's name of it.
        folder: where the libraries are; None: those of the installed ORT.
    """
    name = _LIBRARIES.get(provider)
    if name is None:
        return None
    if folder is None:
        import onnxruntime as ort

        folder = Path(ort.__file__).parent / "capi"
        preload([provider])
    if not (folder / name).is_file():
        return None
    try:
        if (folder / _SHARED).is_file():
            ctypes.CDLL(str(folder / _SHARED), mode=ctypes.RTLD_GLOBAL)  # as ORT does, before the provider's own
        ctypes.CDLL(str(folder / name))
    except OSError as error:
        return str(error)
    return None


def ort_cuda() -> str | None:
    """The CUDA that this ORT was built for, as '13.0'; None for a build without."""
    import onnxruntime as ort

    return getattr(ort, "cuda_version", "") or None


def torch_cuda() -> str | None:
    """The CUDA that the installed torch was built for; None without torch, or without CUDA. Does not import torch."""
    try:
        found = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None:
        return None
    try:
        text = Path(found.origin).with_name("version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None
