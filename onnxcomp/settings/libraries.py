"""CUDA's libraries, where pip installed them: ONNX Runtime finds only those of the system by itself."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Sequence

_NEED = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})


def preload(providers: Sequence[str]) -> None:
    """Load the libraries that these providers of ORT need, once in a process; nothing for the others.

    What is missing is told by the session that cannot be opened.
    """
    if _NEED & set(providers):
        _preload()


@functools.cache
def _preload() -> None:
    import onnxruntime as ort

    load = getattr(ort, "preload_dlls", None)  # since 1.21
    if load is not None:
        # it prints what it does not find, also where the system's own libraries will do
        with contextlib.redirect_stdout(io.StringIO()):
            load()
