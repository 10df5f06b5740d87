"""How a session runs, apart from `onnxcomp.runtime`: a worker that only serves imports no model libraries for it."""

from onnxcomp.settings.file import SettingsFile, SettingsWarning, read_settings, taken
from onnxcomp.settings.known import CONFIG_KEYS, OPTIMIZERS
from onnxcomp.settings.session import SessionSettings, session_options

__all__ = [
    "CONFIG_KEYS",
    "OPTIMIZERS",
    "SessionSettings",
    "SettingsFile",
    "SettingsWarning",
    "read_settings",
    "session_options",
    "taken",
]
