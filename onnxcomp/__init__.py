"""Make a model smaller and faster before it is served, and prove it on the machine where it will run."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Both must stand before onnxruntime is imported, in every process: since 1.29 its Linux wheels send
# telemetry by default, and the second lets a model set session options. A user may opt in to the first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)

__version__ = "0.1.0"
