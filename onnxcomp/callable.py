"""Let a module be called like its main function: `onnxcomp.inspect(path)`, though it is a module too."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Calling the module `name` calls `function`; the public API and the module share the name."""

    class CallableModule(types.ModuleType):
        __call__ = staticmethod(function)

    sys.modules[name].__class__ = CallableModule
